"""Small jobs: an encoder that costs nothing and makes trouble on request, and what a store holds, to compare."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.embedding import EmbedSummary, embed_videos
from lvmae.errors import InputError, WorkError
from lvmae.store import EmbeddingStore


class Mean:
    """An encoder without weights: mean brightness of the frames' four rows of blocks. Trouble on request, by file in the way."""

    name, dim, num_frames, image_size, interpolation, framing = "mean", 4, 2, 32, "bilinear", "crop"
    licence, has_text, space_id = "CC0", False, "mean"

    def __init__(self, trouble: str = "") -> None:
        self.options: dict[str, Any] = {"trouble": trouble} if trouble else {}

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        kind, _, argument = self.options.get("trouble", "").partition("=")
        if kind == "raise":
            raise RuntimeError(argument)
        if kind == "miss":
            raise FileNotFoundError(argument)
        if kind == "log":
            time.sleep(0.2)
            with Path(argument).open("a") as log:
                log.write("." * len(frames))
        if kind == "die" and (frames > 200).mean() > 0.9:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang" and (frames > 200).mean() > 0.9:
            if argument:
                Path(argument).touch()
            time.sleep(600)
        return frames.reshape(len(frames), 2, 4, 8, -1).mean(axis=(1, 3, 4)).astype(np.float32) / 255

    def encode_text(self, texts: list[str]) -> np.ndarray:
        raise InputError("no text")

    def self_test(self) -> None:
        if self.options.get("trouble") == "self-test":
            raise WorkError("it failed its self-test")


MEAN = "jobs:Mean"


def embed(videos: Any, out: Path, **options: Any) -> EmbedSummary:
    return embed_videos(videos, out, **({"encoder": MEAN, "segment_seconds": 1.0, "workers": 1} | options))


def contents(path: Path) -> dict[str, tuple[str, float, bytes, bytes, bytes]]:
    store = EmbeddingStore.open(path)
    assert len(set(store.ids)) == len(store.ids)
    rows = (store[i] for i in range(len(store)))
    return {
        r.id: (r.source, r.duration, r.starts.tobytes(), r.ends.tobytes(), np.asarray(r.embeddings).tobytes())
        for r in rows
    }
