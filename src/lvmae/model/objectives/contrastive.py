"""Predicts which of the hidden segments it is, by InfoNCE (van den Oord et al., arXiv 1807.03748)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .objective import Objective, in_full_precision, weighted

if TYPE_CHECKING:
    from ..configuration_lvmae import LVMAEConfig


class Contrastive(Objective):
    """A prediction has to be nearer to its own segment than to the other masked segments of the batch.

    Those of the same video are among the others, so what all segments of a video share, its style, does not help. The
    others are those of one micro-batch on one device. Memory: 4 bytes x Q x Q.

    Args:
        temperature: cosines are divided by it.
    """

    per_row: ClassVar[bool] = False

    def __init__(self, config: LVMAEConfig, temperature: float = 0.1) -> None:
        super().__init__(config)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; choose a number above 0")
        self.temperature = float(temperature)

    def loss(self, predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(Q,D), (Q,D), (Q) -> ()."""
        with in_full_precision(predicted):
            guess, own = F.normalize(predicted.float(), dim=-1), F.normalize(targets.float(), dim=-1)
            logits = guess @ own.T / self.temperature  # (Q,Q)
            places = torch.arange(len(logits), device=logits.device)
            dummies = (weights == 0)[None] & (places[:, None] != places[None])  # no negative, but a row needs its own
            logits = logits.masked_fill(dummies, float("-inf"))
            return weighted(F.cross_entropy(logits, places, reduction="none"), weights)
