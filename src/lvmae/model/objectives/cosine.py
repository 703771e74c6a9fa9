"""Predicts the embedding's direction, by cosine."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .objective import Objective, weighted


class Cosine(Objective):
    """The mean over masked segments of 1 - cosine similarity."""

    def loss(self, predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(Q,D), (Q,D), (Q) -> ()."""
        return weighted(1 - F.cosine_similarity(predicted.float(), targets.float(), dim=-1), weights)
