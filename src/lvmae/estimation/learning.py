"""A store -> what pre-training on it, or computing its representations, costs: steps, time, memory.

Steps are measured, not guessed: the run's own model takes a few real steps on the store's own windows, in this process, on the
device that the run would use. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lvmae.devices import pick_device
from lvmae.estimation.embedding import duration, megabytes
from lvmae.pretraining.loop import Stores
from lvmae.pretraining.rehearsal import rehearse, timed
from lvmae.recipes import Recipe
from lvmae.runs import load_run_encoder
from lvmae.store import EmbeddingStore


@dataclass(frozen=True)
class LearningEstimate:
    """The estimated cost of a pre-training, or of computing representations.

    Attributes:
        what: "pretrain" or "represent".
        videos: that take part. segments: computed in all, over all epochs. steps: of the optimiser, 0 for representations.
        seconds: of time. bytes: on disk. device: where it runs.
        device_bytes: peak memory of the device; None on a CPU.
    """

    what: str
    videos: int
    segments: int
    steps: int
    seconds: float
    bytes: int
    device: str
    device_bytes: int | None

    def to_text(self) -> str:
        """Returns the estimate as lines of text."""
        lines = [f"{self.videos} videos, {self.segments} segments" + (f", {self.steps} steps" if self.steps else "")]
        lines.append(f"{megabytes(self.bytes)} on disk")
        if self.device_bytes is not None:
            lines.append(f"{megabytes(self.device_bytes)} of GPU memory")
        lines.append(f"about {duration(self.seconds)} on {self.device}")
        return "\n".join(lines)


def estimate_pretraining(
    store: Stores,
    *,
    recipe: str | os.PathLike[str] | Recipe = "base",
    settings: Mapping[str, Any] | None = None,
) -> LearningEstimate:
    """Estimates what `pretrain` would cost with the same arguments, on one process.

    Raises:
        InputError: the stores or settings do not go together.
    """
    tried = rehearse(store, recipe=recipe, settings=settings)
    return LearningEstimate(
        what="pretrain",
        videos=tried.videos,
        segments=round(tried.segments_per_step * tried.steps),
        steps=tried.steps,
        seconds=tried.seconds_per_step * tried.steps,
        bytes=tried.parameters * 4 + tried.checkpoints * tried.parameters * 12,  # checkpoints hold both moments too
        device=tried.device,
        device_bytes=tried.device_bytes,
    )


def estimate_representing(run: str | Path, store: str | Path | EmbeddingStore) -> LearningEstimate:
    """Estimates what `represent` would cost with the same arguments.

    Raises:
        InputError: the run or the store is none.
    """
    store = EmbeddingStore.open(store)
    device = pick_device(None)
    model = load_run_encoder(run).to(device)  # type: ignore[arg-type]
    sample = [int(i) for i in range(min(len(store), 16))]
    rows = [F.normalize(torch.tensor(store.embeddings(i)).float(), dim=-1).to(device) for i in sample]
    segments = sum(len(row) for row in rows)

    def encode() -> None:
        with torch.no_grad():
            model(inputs_embeds=torch.cat(rows)[None], lengths=[len(row) for row in rows])

    per_segment = timed(encode, device) / segments
    total = int(store.lengths.sum())
    return LearningEstimate(
        what="represent",
        videos=len(store),
        segments=total,
        steps=0,
        seconds=per_segment * total,
        bytes=total * store.dim * 2 + len(store) * store.dim * 8,
        device=str(device),
        device_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )
