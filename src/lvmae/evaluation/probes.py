"""The probes (method: section 6): what is trained on frozen features; `fitting` trains them.

Shapes: B videos, S tokens padded, D width, H heads, K outputs (classes, or 1 for a regression).

The attentive probe is one pre-norm transformer block over [CLS] and all tokens, whose output is read at [CLS] alone.
So only [CLS] asks, and the block can be computed exactly at a cost of 12 D^2 a VIDEO instead of a token: a query's
score against a key, q . (W_k x), is (W_k^T q) . x, and a head's value, sum a (W_v x), is W_v (sum a x). The norm's
scale and shift go the same way, so nothing is differentiated with respect to the tokens. Over 3,000 clips of 2 minutes
that is 20 times less work than the block as written. What is left is 12 D^2 weights, read and stepped for 16 videos at a
time; where all videos share one learned [CLS], its query and what it asks the keys are computed once a batch, not once a video.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-6


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
            cls = self.cls[None]
        scale, shift = self.norm1.weight, self.norm1.bias
        x = F.layer_norm(tokens, (dim,), eps=_EPS)  # (B, S, D), without the norm's scale and shift
        x_cls = F.layer_norm(cls, (dim,), eps=_EPS)  # (B, D), or (1, D) where all share it: so are the next two

        query = self.query(x_cls * scale + shift).view(len(cls), self.heads, -1)  # (B, H, D/H)
        asked = torch.einsum("bhc,hcd->bhd", query, self.key.weight.view(self.heads, -1, dim)) * scale  # (B, H, D)
        asked, x_cls = asked.expand(batch, -1, -1), x_cls.expand(batch, -1)
        scores = torch.cat([asked @ x_cls[:, :, None], (asked @ x.mT).masked_fill(~mask[:, None], -torch.inf)], dim=-1)
        weights = (scores / math.sqrt(dim // self.heads)).softmax(dim=-1)  # (B, H, 1 + S)
        seen = weights[..., :1] * x_cls[:, None] + weights[..., 1:] @ x  # (B, H, D)
        values = torch.einsum("bhd,hcd->bhc", seen * scale + shift, self.value.weight.view(self.heads, -1, dim))
        cls = cls + self.out(values.reshape(batch, dim) + self.value.bias)
        cls = cls + self.mlp(self.norm2(cls))
        return self.head(self.norm(cls))  # type: ignore[no-any-return]


def heads_for(dim: int) -> int:
    """The most heads of at least 64 that divide the width; 16 for the paper's 1024."""
    return next(h for h in range(max(1, dim // 64), 0, -1) if dim % h == 0)


def _linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    # Torch's own initialisation would draw from the global generator.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
