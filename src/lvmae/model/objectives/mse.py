"""The paper's objective: the embedding itself, by squared error (Naiman et al., Sec. 3.3)."""

from __future__ import annotations

from torch import Tensor

from .objective import Objective, weighted


class MSE(Objective):
    """The mean over masked segments of the mean over D of the squared error; the paper's sum over D is D times it."""

    def loss(self, predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(Q,D), (Q,D), (Q) -> ()."""
        return weighted((predicted.float() - targets.float()).square().mean(-1), weights)
