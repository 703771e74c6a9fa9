"""Predicts the kind of a segment: a code of a codebook fitted before training (after HuBERT, Hsu et al., arXiv 2106.07447)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .objective import Guess, Objective, Rows, in_full_precision, weighted

if TYPE_CHECKING:
    from ..configuration_lvmae import LVMAEConfig
    from ..modeling_lvmae import LVMAEForPreTraining


class Clusters(Objective):
    """Cross-entropy on the k-means code of the centred embedding.

    A prediction is compared with each centre by cosine. The codebook is fitted once, on training segments minus their mean,
    and lies in the run's weights as `objective.centre` (D) and `objective.codebook` (K,D).

    Args:
        clusters: K. temperature: cosines are divided by it.
    """

    centre: Tensor
    codebook: Tensor

    def __init__(self, config: LVMAEConfig, clusters: int = 128, temperature: float = 0.1) -> None:
        super().__init__(config)
        if not isinstance(clusters, int) or clusters < 2:
            raise ValueError(f"clusters is {clusters!r}; choose a whole number of at least 2")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; choose a number above 0")
        self.temperature = float(temperature)
        self.register_buffer("centre", torch.zeros(config.hidden_size))
        self.register_buffer("codebook", torch.zeros(clusters, config.hidden_size))

    def begin(self, model: LVMAEForPreTraining, sample: Callable[[], Tensor]) -> None:
        """Fits the codebook. Raises ValueError if there are fewer different segments than clusters."""
        from sklearn.cluster import KMeans

        embeddings = sample().double()
        centre = embeddings.mean(0)
        centred = embeddings - centre
        different = len(torch.unique(centred, dim=0))
        if different < len(self.codebook):
            raise ValueError(
                f"{different} different segments cannot make {len(self.codebook)} clusters; set clusters to fewer"
            )
        fitted = KMeans(len(self.codebook), n_init=1, max_iter=50, random_state=0).fit(centred.numpy())
        self.centre.copy_(centre)
        self.codebook.copy_(torch.from_numpy(fitted.cluster_centers_))

    def targets(self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows) -> Tensor:
        """(N,D) -> (Q) codes."""
        with in_full_precision(tokens):
            centred = tokens.index_select(0, rows.wanted).float() - self.centre.float()
            book = self.codebook.float()
            return (book.square().sum(-1) - 2 * centred @ book.T).argmin(-1)

    def loss(self, predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(Q,D), (Q) codes, (Q) -> ()."""
        return weighted(F.cross_entropy(self._logits(predicted), targets, reduction="none"), weights)

    def reconstruct(self, predicted: Tensor, tokens: Tensor, rows: Rows) -> Tensor:
        """The mean of the centres by their probabilities: (Q,D) -> (Q,D)."""
        with in_full_precision(predicted):
            return self._logits(predicted).softmax(-1) @ self.codebook.float() + self.centre.float()

    def scores(self, predicted: Tensor, targets: Tensor, tokens: Tensor, rows: Rows) -> dict[str, Tensor]:
        """The cosine of the reconstruction, and the accuracy of the code."""
        right = (self._logits(predicted).argmax(-1) == targets).float()
        return super().scores(predicted, targets, tokens, rows) | {"accuracy": right}

    def floors(
        self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows, guesses: Mapping[str, Guess]
    ) -> dict[str, Tensor]:
        """The guessed embeddings, centred as a prediction is."""
        return {name: guess(tokens) - self.centre.float() for name, guess in guesses.items()}

    def _logits(self, predicted: Tensor) -> Tensor:
        """(Q,D) -> (Q,K)."""
        with in_full_precision(predicted):
            near = F.normalize(predicted.float(), dim=-1) @ F.normalize(self.codebook.float(), dim=-1).T
            return near / self.temperature
