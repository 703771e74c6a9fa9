"""The optimiser's settings: the learning rate of a step, and which parameters decay (Sec. 4; He et al. 2022). And compiling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lvmae.model import LVMAEForPreTraining


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


def compile_blocks(model: LVMAEForPreTraining) -> None:
    """Compiles the transformer blocks, each whole, once for all sizes of batches. It happens when they are first called.

    Blocks and not the model: 40 layers at once take minutes, and the hooks of DDP and FSDP cannot be in a graph.
    """
    # Encoder, decoder and its last layer, with and without gradients, and a size that happens to equal another one.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    for block in model.blocks():
        # The method and not the module: hooks, such as those that gather a sharded block's weights, stay outside.
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True)


def uncompile_blocks(model: LVMAEForPreTraining) -> None:
    """Undoes `compile_blocks`."""
    for block in model.blocks():
        block.__dict__.pop("forward", None)
