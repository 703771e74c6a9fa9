"""Predicts a teacher's representation of the hidden segment in its context (after data2vec, Baevski et al., arXiv 2202.03555)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .objective import Guess, Objective, Rows, weighted

if TYPE_CHECKING:
    from ..configuration_lvmae import LVMAEConfig
    from ..modeling_lvmae import LVMAEForPreTraining


class Latent(Objective):
    """Smooth L1 to the mean of a teacher's top blocks, each normalised; the teacher sees everything.

    The teacher is a running mean of the encoder (`objective.teacher` in the run's weights). A linear layer beside it,
    `objective.readout`, learns what embedding a prediction stands for; it looks at predictions without their gradient, so it
    teaches the model nothing.

    Args:
        momentum: the teacher is momentum x teacher + (1 - momentum) x encoder after every step.
        top: how many of the last blocks are averaged; by default half of them.
        beta: where the loss goes over from squares to absolute values.
    """

    score: ClassVar[str] = "feature_cosine"
    floors_move: ClassVar[bool] = True

    def __init__(self, config: LVMAEConfig, momentum: float = 0.99, top: int | None = None, beta: float = 1.0) -> None:
        from ..modeling_lvmae import LVMAEModel  # which imports this package

        super().__init__(config)
        depth = config.num_hidden_layers
        self.top = max(1, depth // 2) if top is None else top
        if not isinstance(self.top, int) or not 1 <= self.top <= depth:
            raise ValueError(f"top is {top!r}; choose a whole number from 1 to the {depth} layers")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum!r}; choose a number from 0 to below 1")
        if not beta > 0:
            raise ValueError(f"beta is {beta!r}; choose a number above 0")
        self.momentum, self.beta = float(momentum), float(beta)
        teacher: nn.Module = LVMAEModel(config)
        self.teacher = teacher.requires_grad_(False)
        self.readout = nn.Linear(config.hidden_size, config.hidden_size)

    def begin(self, model: LVMAEForPreTraining, sample: Callable[[], Tensor]) -> None:
        """The teacher begins as the encoder."""
        self.teacher.load_state_dict(model.lvmae.state_dict())

    @torch.no_grad()
    def after_step(self, model: LVMAEForPreTraining) -> None:
        """Moves the teacher."""
        encoder: nn.Module = model.lvmae
        for ours, theirs in zip(self.teacher.parameters(), encoder.parameters(), strict=True):
            ours.lerp_(theirs.to(ours.dtype), 1 - self.momentum)

    def targets(self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows) -> Tensor:
        """(N,D) -> (Q,2D): the teacher's features, then the embeddings, for the readout."""
        features = self._features(rows).index_select(0, rows.wanted)
        return torch.cat([features, tokens.index_select(0, rows.wanted).float()], dim=-1)

    def loss(self, predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(Q,D), (Q,2D), (Q) -> ()."""
        features, embeddings = targets.chunk(2, dim=-1)
        away = F.smooth_l1_loss(predicted.float(), features, reduction="none", beta=self.beta).mean(-1)
        read = self.readout(predicted.detach()).float()
        misread = 1 - F.cosine_similarity(read, embeddings, dim=-1)
        # The reported loss leaves it out: it exists only for its gradient, which reaches the readout alone.
        return weighted(away + (misread - misread.detach()), weights)

    def reconstruct(self, predicted: Tensor, tokens: Tensor, rows: Rows) -> Tensor:
        """What the readout takes it for: (Q,D) -> (Q,D), of any length."""
        read: Tensor = self.readout(predicted)
        return read

    def scores(self, predicted: Tensor, targets: Tensor, tokens: Tensor, rows: Rows) -> dict[str, Tensor]:
        """The cosine with the teacher's features, and that of the readout with the embedding."""
        features = targets.chunk(2, dim=-1)[0]
        found = super().scores(predicted, targets, tokens, rows)
        return found | {"feature_cosine": F.cosine_similarity(predicted.float(), features, dim=-1)}

    def floors(
        self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows, guesses: Mapping[str, Guess]
    ) -> dict[str, Tensor]:
        """Guesses from the teacher's features of the visible segments, which know the hidden ones: hard floors."""
        features = self._features(rows)
        return {name: guess(features) for name, guess in guesses.items()}

    def _features(self, rows: Rows) -> Tensor:
        """(N,D) float32."""
        given = rows.encode_whole(self.teacher)[-self.top :]
        return torch.stack([F.layer_norm(block.float(), block.shape[-1:]) for block in given]).mean(0)
