"""Networks in bfloat16 or float16: which parts stay in float32, and which blocks of one are alike.

Weights and activations are lowered, so that matrix products read half the bytes and no weight is cast at each call. Norms keep
their weights and their arithmetic in float32; softmax is computed in float32 by torch's fused attention and, under autocast,
elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def natural_dtype(device: torch.device) -> torch.dtype:
    """The type of numbers that a device is fast with and exact enough: float32 on a CPU, bfloat16 elsewhere, where it has it."""
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def lower_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Lowers a network's weights to `dtype`, in place, but for norms: those take and give `dtype` and compute in float32.

    Buffers stay as they are: they hold tables of positions and frequencies, which lose their meaning when rounded.
    """
    for module in network.modules():
        if is_norm(module):
            module.register_forward_pre_hook(_to_float32)
            module.register_forward_hook(_Lowered(dtype))
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation, of torch's or of a model's own, by its name."""
    return type(module).__name__.lower().rstrip("0123456789d").endswith("norm")


def _to_float32(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments)


class _Lowered:
    """A hook that brings a norm's output back to a type; a class, so that networks can be pickled and copied."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, _arguments: Any, output: Any) -> Any:
        return output.to(self.dtype) if isinstance(output, torch.Tensor) else output


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that come several times, each alike: compiled one by one they share their code."""
    found: list[nn.Module] = []
    for module in network.modules():
        children = list(module.children())
        if isinstance(module, nn.ModuleList) and len(children) > 1 and len({type(child) for child in children}) == 1:
            found += children
    inner = {id(m) for block in found for m in block.modules() if m is not block}
    return [block for block in found if id(block) not in inner]
