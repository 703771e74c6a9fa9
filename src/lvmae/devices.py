"""The choice of a device, in one place for the whole package."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from lvmae.errors import InputError

if TYPE_CHECKING:
    import torch

CHOICES = "auto, cpu, cuda, cuda:N or mps"
PRECISIONS = ("auto", "fp32", "bf16")


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """A torch device by name; "auto" or None is the first accelerator (CUDA, MPS, ...), else the CPU. InputError without it."""
    import torch

    if name is None or name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if accelerator is None else accelerator.type
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"The device {str(name)!r} is not available here; use {CHOICES}.") from None
    return device


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """A context in which models with float32 weights compute so; what flows from block to block stays float32.

    Args:
        precision: "fp32", "bf16" or "auto", which is bf16 on CUDA and else fp32.

    Raises:
        InputError: there is no such precision.
    """
    import torch

    if precision not in PRECISIONS:
        raise InputError(f"There is no precision {precision!r}; choose {', '.join(PRECISIONS)}.")
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def all_of_its_kind(device: torch.device) -> tuple[str, ...]:
    """The names of every device of the same kind as this one; this one alone where it has a number."""
    import torch

    if ":" in str(device) or device.type == "cpu":
        return (str(device),)
    accelerator = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if accelerator and accelerator.type == device.type else 1
    return (str(device),) if count < 2 else tuple(f"{device.type}:{index}" for index in range(count))


def release_memory() -> None:
    """Gives memory of models that are no longer used back to their device; without torch loaded there is none."""
    if "torch" not in sys.modules:
        return
    import torch

    gc.collect()
    empty_cache = getattr(torch.accelerator, "empty_cache", None)  # younger than the oldest torch that will do
    if empty_cache is not None and torch.accelerator.is_available():
        empty_cache()
