"""The probes (method: section 6): what is trained on frozen features, and how one is trained.

Shapes: B videos, S tokens padded, D width, H heads, K outputs (classes, or 1 for a regression).

The attentive probe is one pre-norm transformer block over [CLS] and all tokens, whose output is read at [CLS] alone.
So only [CLS] asks, and the block can be computed exactly at a cost of 12 D^2 a VIDEO instead of a token: a query's
score against a key, q . (W_k x), is (W_k^T q) . x, and a head's value, sum a (W_v x), is W_v (sum a x). The norm's
scale and shift go the same way, so nothing is differentiated with respect to the tokens. Over 3,000 clips of 2 minutes
that is 20 times less work than the block as written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lvmae.evaluation.features import Features
from lvmae.evaluation.labels import Task
from lvmae.evaluation.metrics import is_better, score

PROBES = ("linear", "attentive")
_EPS = 1e-6
_EVALUATION_BATCH = 64
_INIT_STREAM, _ORDER_STREAM = 2, 3


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are trained; the defaults are the paper's, but for the least numbers of steps.

    The paper's epochs are of hundreds or thousands of videos. Over a few dozen they make too few steps to learn anything
    (on 36 videos the linear probe's 30 epochs are 90 steps of 1e-4), so there an epoch goes over the training videos
    several times, until the whole makes at least so many steps; the number of epochs to choose from and the course of
    the rate stay as they are. 1,500 linear steps are what the paper's epochs make on LVU's middling tasks of 800 videos.
    `ProbeSettings.paper()` is the paper to the letter.

    Attributes:
        batch_size: videos a step.
        linear_epochs, linear_lr, linear_min_steps: Adam at a constant rate.
        attentive_epochs, attentive_lr, attentive_decay, attentive_min_steps: Adam, the rate multiplied by the decay
            after each epoch.
        bootstrap: resamples of the test videos behind the interval.
        device: "cpu", "cuda", ...; None takes a GPU where there is one.
    """

    batch_size: int = 16
    linear_epochs: int = 30
    linear_lr: float = 1e-4
    linear_min_steps: int = 1500
    attentive_epochs: int = 20
    attentive_lr: float = 1e-3
    attentive_decay: float = 0.9
    attentive_min_steps: int = 300
    bootstrap: int = 1000
    device: str | None = None

    @classmethod
    def paper(cls) -> ProbeSettings:
        """The paper's epochs, however few videos they are of."""
        return cls(linear_min_steps=0, attentive_min_steps=0)


class LinearProbe(nn.Module):
    """Linear on the mean of a video's tokens: (B, D) -> (B, K). With one output it is the paper's regressor."""

    def __init__(self, dim: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.head = _linear(dim, outputs, generator)

    def forward(self, mean: Tensor) -> Tensor:
        return self.head(mean)  # type: ignore[no-any-return]


class AttentiveProbe(nn.Module):
    """A transformer block (heads of 64, MLP of 4 D) over [CLS] and a video's tokens, a norm, and Linear on [CLS].

    Features without a [CLS], the raw embeddings, get one learned vector in its place. The probe itself has no
    positions: it sees order only as far as the features carry it, which is what it is there to measure.
    """

    def __init__(self, dim: int, outputs: int, generator: torch.Generator, *, learn_cls: bool) -> None:
        super().__init__()
        self.heads = heads_for(dim)
        self.cls = nn.Parameter(torch.empty(dim).normal_(std=0.02, generator=generator)) if learn_cls else None
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.query = _linear(dim, dim, generator)
        self.key = _linear(
            dim, dim, generator, bias=False
        )  # its bias would add the same to all scores of a query: nothing
        self.value = _linear(dim, dim, generator)
        self.out = _linear(dim, dim, generator)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = nn.Sequential(_linear(dim, 4 * dim, generator), nn.GELU(), _linear(4 * dim, dim, generator))
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.head = _linear(dim, outputs, generator)

    def forward(self, tokens: Tensor, mask: Tensor, cls: Tensor | None) -> Tensor:
        """tokens (B, S, D), mask (B, S) True where real, cls (B, D) or None -> (B, K)."""
        batch, dim = len(tokens), tokens.shape[-1]
        if cls is None:
            assert self.cls is not None
            cls = self.cls.expand(batch, dim)
        scale, shift = self.norm1.weight, self.norm1.bias
        x = F.layer_norm(tokens, (dim,), eps=_EPS)  # (B, S, D), without the norm's scale and shift
        x_cls = F.layer_norm(cls, (dim,), eps=_EPS)  # (B, D)

        query = self.query(x_cls * scale + shift).view(batch, self.heads, -1)  # (B, H, D/H)
        asked = torch.einsum("bhc,hcd->bhd", query, self.key.weight.view(self.heads, -1, dim)) * scale  # (B, H, D)
        scores = torch.cat([asked @ x_cls[:, :, None], (asked @ x.mT).masked_fill(~mask[:, None], -torch.inf)], dim=-1)
        weights = (scores / math.sqrt(dim // self.heads)).softmax(dim=-1)  # (B, H, 1 + S)
        seen = weights[..., :1] * x_cls[:, None] + weights[..., 1:] @ x  # (B, H, D)
        values = torch.einsum("bhd,hcd->bhc", seen * scale + shift, self.value.weight.view(self.heads, -1, dim))
        cls = cls + self.out(values.reshape(batch, dim) + self.value.bias)
        cls = cls + self.mlp(self.norm2(cls))
        return self.head(self.norm(cls))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Fitted:
    """A trained probe's answer: outputs (n_test, K) at the epoch best on val, that epoch from 1, and steps made."""

    outputs: NDArray[np.float64]
    epoch: int
    steps: int
    paper_steps: int


def fit(probe: str, features: Features, task: Task, seed: int, settings: ProbeSettings) -> Fitted:
    """Trains one probe on the task's train split; `seed` draws the initial weights and the order of the videos.

    The epoch of the best val score is kept, of equals that of the lower val loss; test is looked at once, with that
    epoch's weights.
    """
    device = probe_device(settings)
    rows = task.split(seed)
    outputs_dim = len(task.classes) or 1
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, _INIT_STREAM]).integers(2**62)))
    order = np.random.default_rng([seed, _ORDER_STREAM])
    model: nn.Module
    if probe == "linear":
        model = LinearProbe(features.dim, outputs_dim, generator)
        epochs, rate, decay = settings.linear_epochs, settings.linear_lr, 1.0
        min_steps = settings.linear_min_steps
    else:
        model = AttentiveProbe(features.dim, outputs_dim, generator, learn_cls=features.cls is None)
        epochs, rate, decay = settings.attentive_epochs, settings.attentive_lr, settings.attentive_decay
        min_steps = settings.attentive_min_steps
    model.to(device)
    mean = features.mean.to(device)

    def forward(chosen: NDArray[np.intp]) -> Tensor:
        if probe == "linear":
            return model(mean[torch.from_numpy(chosen)])  # type: ignore[no-any-return]
        return model(*features.batch(chosen, device))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def predict(chosen: NDArray[np.intp]) -> Tensor:
        model.eval()
        size = len(chosen) if probe == "linear" else _EVALUATION_BATCH
        found = torch.cat([forward(chosen[i : i + size]) for i in range(0, len(chosen), size)])
        model.train()
        return found

    targets, loss_of, offset = _objective(task, rows["train"], device)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    train = rows["train"]
    epoch_steps = math.ceil(len(train) / settings.batch_size)
    passes = max(1, math.ceil(min_steps / (epochs * epoch_steps)))
    best: tuple[float, float] | None = None
    best_epoch, best_state = 0, {}
    for epoch in range(1, epochs + 1):
        for _ in range(passes):
            shuffled = order.permutation(train)
            for start in range(0, len(train), settings.batch_size):
                chosen = shuffled[start : start + settings.batch_size]
                loss = loss_of(forward(chosen), targets[torch.from_numpy(chosen)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        schedule.step()
        held_out = predict(rows["val"])
        value = score(task.kind, _outputs(held_out, offset), task.targets[rows["val"]])
        reached = (value, float(loss_of(held_out, targets[torch.from_numpy(rows["val"])])))
        if (
            best is None
            or is_better(task.kind, reached[0], best[0])
            or (reached[0] == best[0] and reached[1] < best[1])
        ):
            best, best_epoch = reached, epoch
            best_state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_state)
    return Fitted(
        _outputs(predict(rows["test"]), offset), best_epoch, epochs * passes * epoch_steps, epochs * epoch_steps
    )


def probe_device(settings: ProbeSettings) -> torch.device:
    """Where probes are trained."""
    return torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def heads_for(dim: int) -> int:
    """The most heads of at least 64 that divide the width; 16 for the paper's 1024."""
    return next(h for h in range(max(1, dim // 64), 0, -1) if dim % h == 0)


def _objective(
    task: Task, train: NDArray[np.intp], device: torch.device
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor], float]:
    """All targets as the loss takes them, the loss, and what was subtracted: a regression is zero-mean on train."""
    if task.kind == "classification":
        return torch.from_numpy(task.targets).to(device), F.cross_entropy, 0.0
    if task.kind == "multilabel":
        return torch.from_numpy(task.targets).float().to(device), F.binary_cross_entropy_with_logits, 0.0
    offset = float(task.targets[train].mean())
    return torch.from_numpy(task.targets - offset).float()[:, None].to(device), F.mse_loss, offset


def _outputs(found: Tensor, offset: float) -> NDArray[np.float64]:
    return found.cpu().double().numpy() + offset


def _linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    # Torch's own initialisation would draw from the global generator.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
