"""Predicts how a segment differs from its video: the embedding minus the mean of the visible segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from .mse import MSE
from .objective import Guess, Rows

if TYPE_CHECKING:
    from ..modeling_lvmae import LVMAEForPreTraining


class Residual(MSE):
    """Squared error of the difference to the mean of what is visible of the sequence, so that this mean costs nothing to know."""

    def targets(self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows) -> Tensor:
        """(N,D) -> (Q,D)."""
        return tokens.index_select(0, rows.wanted) - rows.mean_of_visible(tokens)

    def reconstruct(self, predicted: Tensor, tokens: Tensor, rows: Rows) -> Tensor:
        """The mean is added back: (Q,D) -> (Q,D)."""
        return predicted + rows.mean_of_visible(tokens).to(predicted.dtype)

    def floors(
        self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows, guesses: Mapping[str, Guess]
    ) -> dict[str, Tensor]:
        """The guessed embeddings minus the mean; the mean itself says 0."""
        mean = rows.mean_of_visible(tokens)
        return {name: guess(tokens) - mean for name, guess in guesses.items()}
