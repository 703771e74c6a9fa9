"""Is the model better than guessing from the neighbours? Fixed windows, fixed masks, and two floors under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from lvmae.sequences import Window, collate_packed, interpolate_visible, mean_of_visible


@dataclass(frozen=True)
class Score:
    """How near masked embeddings were met: the training loss, and the mean cosine (1 is exact)."""

    loss: float
    cosine: float


class Validation:
    """Scores a model, and the floors it has to beat, on windows and masks that never change."""

    def __init__(self, windows: Sequence[Window], *, batch_size: int, loss: str) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.mean = _floor(windows, mean_of_visible, loss)
        self.interpolation = _floor(windows, interpolate_visible, loss)

    def score(self, model: nn.Module, accelerator: Accelerator) -> Score:
        """Of the model on all windows; every process has to call it, each does its share."""
        rank, world = accelerator.process_index, accelerator.num_processes
        sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
        model.eval()
        with torch.no_grad():
            for first in range(0, len(self.windows), self.batch_size * world):
                share = range(first, min(first + self.batch_size * world, len(self.windows)))[rank::world]
                # FSDP needs every process in every forward: one that has nothing left repeats a window and counts it 0 times.
                windows = [self.windows[i] for i in share or [first]]
                sums += self._sums(model, windows, accelerator) * (1.0 if share else 0.0)
        model.train()
        loss, cosine, masked = accelerator.reduce(sums, "sum").tolist()
        return Score(loss / masked, cosine / masked)

    def record(self, score: Score) -> dict[str, float]:
        """One line of the curves."""
        return {
            "val_loss": score.loss,
            "val_cosine": score.cosine,
            "mean_loss": self.mean.loss,
            "mean_cosine": self.mean.cosine,
            "interpolation_loss": self.interpolation.loss,
            "interpolation_cosine": self.interpolation.cosine,
        }

    @staticmethod
    def _sums(model: nn.Module, windows: list[Window], accelerator: Accelerator) -> torch.Tensor:
        """(3,) float64: loss and cosine, each summed over masked tokens, and their number."""
        batch: dict[str, Any] = send_to_device(collate_packed(windows), accelerator.device)
        output = model(**batch)
        masked = batch["bool_masked_pos"][0]  # (N,)
        predicted, wanted = output.reconstruction[0][masked].float(), batch["inputs_embeds"][0][masked].float()
        cosine = torch.nn.functional.cosine_similarity(predicted, wanted, dim=-1).double().sum()
        count = masked.sum().double()
        return torch.stack([output.loss.double() * count, cosine, count])


def _floor(windows: Sequence[Window], guess: Any, loss: str) -> Score:
    squares = cosines = 0.0
    masked = 0
    for window in windows:
        predicted = guess(window.embeddings, window.masked)[window.masked].astype(np.float64)  # (M, D)
        wanted = window.embeddings[window.masked].astype(np.float64)
        norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(wanted, axis=1)
        cosines += float(((predicted * wanted).sum(axis=1) / np.maximum(norms, 1e-12)).sum())
        squares += float(((predicted - wanted) ** 2).mean(axis=1).sum())
        masked += len(wanted)
    return Score(squares / masked if loss == "mse" else 1 - cosines / masked, cosines / masked)
