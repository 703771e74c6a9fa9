"""accelerate keeps its settings for the whole process; a run must neither take over the caller's nor change them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


@contextlib.contextmanager
def own_accelerate_state() -> Iterator[None]:
    """Within the block an `Accelerator` is made as in a fresh process; after it the caller's own are as they were.

    accelerate's states are classes whose objects share one dictionary. Objects that exist keep theirs while the classes get
    another. Of several processes, the group that the caller has made stays in use.
    """
    states: list[Any] = [AcceleratorState, GradientState]
    if not torch.distributed.is_initialized():
        states.append(PartialState)
    before = [state._shared_state for state in states]
    for state, shared in zip(states, before, strict=True):
        state._shared_state = type(shared)()
    try:
        yield
    finally:
        for state, shared in zip(states, before, strict=True):
            state._shared_state = shared
