"""Is the model better than guessing from the neighbours? Fixed windows, fixed masks, and the floors under it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from lvmae.model.objectives import Objective, Rows
from lvmae.sequences import Window, collate_packed, interpolate_visible, mean_of_visible

_GUESSES = {"interpolation": interpolate_visible, "mean": mean_of_visible}
_FARTHEST = 4  # segments from the nearest visible one, and what is farther

BEYOND_MEAN = "val_beyond_mean"
AT_DISTANCE = tuple(f"val_cosine_at_{distance}" for distance in range(1, _FARTHEST + 1))


class Validation:
    """Scores a model, and the floors it has to beat, on windows and masks that never change.

    Args:
        windows: what is looked at. batch_size: windows in a batch.
    """

    def __init__(self, windows: Sequence[Window], *, batch_size: int) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self._floors: dict[str, float] = {}

    def score(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """One line of the curves: `val_loss` and `val_SCORE`, and the same of each floor; `val_cosine_at_K` of the segments K
        from the nearest visible one (4: 4 or more), where there are such; `val_beyond_mean`, the share of the variance around
        the mean of the visible segments that reconstructions explain, one common factor of their length left free.

        Every process has to call it, each does its share. Floors are measured once, unless the objective says that they move.
        """
        rank, world = accelerator.process_index, accelerator.num_processes
        objective: Objective = accelerator.unwrap_model(model).objective
        with_floors = objective.floors_move or not self._floors
        sums: dict[str, Tensor] = {}
        model.eval()
        with torch.no_grad():
            for first in range(0, len(self.windows), self.batch_size * world):
                share = range(first, min(first + self.batch_size * world, len(self.windows)))[rank::world]
                # FSDP needs every process in every forward: one that has nothing left repeats a window and counts it 0 times.
                windows = [self.windows[i] for i in share or [first]]
                for key, value in self._sums(model, windows, accelerator, with_floors).items():
                    sums[key] = sums.get(key, 0.0) + value * (1.0 if share else 0.0)
        model.train()
        reduced = dict(zip(sums, accelerator.reduce(torch.stack([*sums.values()]), "sum").tolist(), strict=True))
        masked = reduced.pop("masked")
        parts = {key: reduced.pop(key) for key in [*reduced] if key.startswith("_")}
        figures = {key: value / masked for key, value in reduced.items()}
        if with_floors:
            self._floors = {key: value for key, value in figures.items() if not key.startswith("val_")}
        for distance, key in enumerate(AT_DISTANCE, 1):
            if parts[f"_count_{distance}"]:
                figures[key] = parts[f"_cosine_{distance}"] / parts[f"_count_{distance}"]
        if parts["_around_mean"] > 0:
            explained = (
                parts["_product"] ** 2 / parts["_square"] if parts["_square"] > 0 and parts["_product"] > 0 else 0.0
            )
            figures[BEYOND_MEAN] = 1 - (parts["_wanted"] - explained) / parts["_around_mean"]
        return {key: value for key, value in figures.items() if key.startswith("val_")} | self._floors

    @staticmethod
    def _sums(
        model: nn.Module, windows: list[Window], accelerator: Accelerator, with_floors: bool
    ) -> dict[str, Tensor]:
        """Loss and scores of a batch, each () float64 and summed over masked segments, and their number, "masked"."""
        batch: dict[str, Any] = send_to_device(collate_packed(windows), accelerator.device)
        output = model(**batch, output_predictions=True)
        plain: Any = accelerator.unwrap_model(model)
        objective: Objective = plain.objective
        tokens, rows = output.tokens.float(), output.rows
        masked = sum(int(window.masked.sum()) for window in windows)
        real = torch.arange(len(rows.wanted), device=accelerator.device) < masked  # (Q,), the rest are dummies
        said = {"val": output.predictions.float()}
        if with_floors:
            guesses = {name: _over(windows, guess, rows) for name, guess in _GUESSES.items()}
            said |= objective.floors(tokens, plain, rows, guesses)
        sums = {"masked": real.double().sum()}
        sums |= _details(objective.reconstruct(said["val"], tokens, rows), tokens, rows, _distances(windows), real)
        for name, predicted in said.items():
            loss = objective.loss(predicted, output.targets, real.float() / masked)
            sums[f"{name}_loss"] = loss.double() * masked
            for score, values in objective.scores(predicted, output.targets, tokens, rows).items():
                sums[f"{name}_{score}"] = torch.where(real, values.double(), 0.0).sum()
        return sums


def _distances(windows: Sequence[Window]) -> np.ndarray:
    """(M,): of each masked segment, how many segments away the nearest visible one is."""
    found = []
    for window in windows:
        masked, visible = np.flatnonzero(window.masked), np.flatnonzero(~window.masked)
        found.append(np.abs(masked[:, None] - visible[None]).min(axis=1))
    return np.concatenate(found)


def _details(read: Tensor, tokens: Tensor, rows: Rows, distances: np.ndarray, real: Tensor) -> dict[str, Tensor]:
    """Sums for the figures reported besides loss and scores; `read` (Q,D) are the reconstructed embeddings."""
    read, wanted = read.double(), tokens.index_select(0, rows.wanted).double()
    read, wanted = read * real[:, None], wanted * real[:, None]
    mean = rows.mean_of_visible(tokens).double() * real[:, None]
    near = torch.zeros(len(read), dtype=torch.int64)
    near[: len(distances)] = torch.from_numpy(distances).clamp(max=_FARTHEST)
    near = near.to(read.device)
    cosine = torch.nn.functional.cosine_similarity(read, wanted, dim=-1)
    found = {
        "_product": (read * wanted).sum(),
        "_square": read.square().sum(),
        "_wanted": wanted.square().sum(),
        "_around_mean": (wanted - mean).square().sum(),
    }
    for distance in range(1, _FARTHEST + 1):
        here = (near == distance).double()
        found |= {f"_cosine_{distance}": (cosine * here).sum(), f"_count_{distance}": here.sum()}
    return found


def _over(
    windows: Sequence[Window], guess: Callable[[np.ndarray, np.ndarray], np.ndarray], rows: Rows
) -> Callable[[Tensor], Tensor]:
    """A floor of `lvmae.sequences`, over a packed batch: (N,D) -> (Q,D)."""

    def guessed(values: Tensor) -> Tensor:
        found, start = [], 0
        host = values.float().cpu().numpy()
        for window in windows:
            stop = start + len(window.masked)
            found.append(guess(host[start:stop], window.masked)[window.masked])
            start = stop
        out = values.new_zeros(len(rows.wanted), values.shape[1], dtype=torch.float32)
        joined = np.concatenate(found)
        out[: len(joined)] = torch.from_numpy(joined).to(out.device)
        return out

    return guessed
