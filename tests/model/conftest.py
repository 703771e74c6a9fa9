"""A small model, and the method written a second time: one sequence at a time, plain softmax attention, no packing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lvmae.model import LVMAEConfig, LVMAEForPreTraining

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "max_segments": 160,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> Callable[..., LVMAEForPreTraining]:
    def make(seed: int = 0, **changes: object) -> LVMAEForPreTraining:
        torch.manual_seed(seed)
        model = LVMAEForPreTraining(LVMAEConfig(**(SIZES | changes)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))  # no bias is zero, no norm is the identity
        return model

    return make


def plain_sincos(places: list[float], width: int) -> Tensor:
    rows = []
    for place in places:
        angles = [place / 10000 ** (i / (width / 2)) for i in range(width // 2)]
        rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    return torch.tensor(rows).view(len(places), width)


def plain_block(weights: dict[str, Tensor], prefix: str, x: Tensor, heads: int) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        scaled = (x - mean) / (variance + 1e-6).sqrt()
        return scaled * weights[f"{prefix}.{name}.weight"] + weights[f"{prefix}.{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{prefix}.{name}.weight"].T + weights[f"{prefix}.{name}.bias"]

    width = x.shape[1]
    q, k, v = linear("attn.qkv", norm("norm1", x)).split(width, dim=1)
    channels = width // heads
    mixed = []
    for h in range(heads):
        part = slice(h * channels, (h + 1) * channels)
        mixed.append((q[:, part] @ k[:, part].T / channels**0.5).softmax(-1) @ v[:, part])
    x = x + linear("attn.proj", torch.cat(mixed, dim=1))
    inner = linear("mlp.fc1", norm("norm2", x))
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    return x + linear("mlp.fc2", inner)


def plain_encode(model: LVMAEForPreTraining, x: Tensor, places: list[float]) -> Tensor:
    """x (V,D) at these places -> (1+V,D), [CLS] first."""
    weights = dict(model.named_parameters())
    config = model.config
    x = torch.cat([weights["lvmae.cls_token"][0], x + plain_sincos(places, config.hidden_size)])
    for i in range(config.num_hidden_layers):
        x = plain_block(weights, f"lvmae.blocks.{i}", x, config.num_attention_heads)
    return F.layer_norm(x, x.shape[-1:], weights["lvmae.norm.weight"], weights["lvmae.norm.bias"], 1e-6)


def plain_reconstruct(model: LVMAEForPreTraining, x: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """x (L,D), masked (L) -> the encoder's tokens (1+V,D) and the predictions of all places (L,D)."""
    weights = dict(model.named_parameters())
    config = model.config
    visible = [t for t in range(len(x)) if not masked[t]]
    latent = plain_encode(model, x[visible], [float(t) for t in visible])
    embedded = latent @ weights["decoder.embed.weight"].T + weights["decoder.embed.bias"]
    rows = [weights["decoder.mask_token"][0, 0]] * len(x)
    for n, t in enumerate(visible):
        rows[t] = embedded[1 + n]
    places = [float(t) for t in range(len(x))]
    y = torch.stack(rows) + plain_sincos(places, config.decoder_hidden_size)
    y = torch.cat([embedded[:1], y])
    for i in range(config.decoder_num_hidden_layers):
        y = plain_block(weights, f"decoder.blocks.{i}", y, config.decoder_num_attention_heads)
    y = F.layer_norm(y, y.shape[-1:], weights["decoder.norm.weight"], weights["decoder.norm.bias"], 1e-6)
    return latent, (y @ weights["decoder.pred.weight"].T + weights["decoder.pred.bias"])[1:]


class Example:
    """One batch of random unit embeddings with random masks, packed and padded; padding holds NaN."""

    def __init__(self, lengths: list[int], width: int, *, seed: int = 0, ratio: float = 0.5, extra: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = lengths
        self.sequences = [F.normalize(torch.randn(n, width, generator=generator), dim=-1) for n in lengths]
        self.masks = []
        for n in lengths:
            visible = max(1, int(n * (1 - ratio)))
            mask = torch.ones(n, dtype=torch.bool)
            mask[torch.randperm(n, generator=generator)[:visible]] = False
            self.masks.append(mask)
        self.num_visible = [int((~mask).sum()) for mask in self.masks]
        self.packed = {
            "inputs_embeds": torch.cat(self.sequences)[None],
            "bool_masked_pos": torch.cat(self.masks)[None],
            "lengths": lengths,
            "num_visible": self.num_visible,
        }
        places = max(lengths) + extra
        embeddings = torch.full((len(lengths), places, width), torch.nan)
        real = torch.zeros(len(lengths), places, dtype=torch.long)
        masked = torch.rand(len(lengths), places, generator=generator) < 0.5  # what it says of padding is ignored
        for b, n in enumerate(lengths):
            embeddings[b, :n], real[b, :n], masked[b, :n] = self.sequences[b], 1, self.masks[b]
        self.padded = {"inputs_embeds": embeddings, "attention_mask": real, "bool_masked_pos": masked}


@pytest.fixture
def example() -> type[Example]:
    return Example


@pytest.fixture
def plain() -> type:
    class Plain:
        encode = staticmethod(plain_encode)
        reconstruct = staticmethod(plain_reconstruct)
        sincos = staticmethod(plain_sincos)

    return Plain
