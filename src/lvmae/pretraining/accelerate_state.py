"""accelerate keeps its settings for the whole process; a run must neither take over the caller's nor change them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

from lvmae.devices import pick_device
from lvmae.errors import InputError
from lvmae.recipes import Recipe


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


@contextlib.contextmanager
def accelerator_for(recipe: Recipe, out: Path, device: str | None = None) -> Iterator[Accelerator]:
    """accelerate for one run: the devices and the parallelism of the launcher, the precision of the recipe."""
    chosen = pick_device(device)
    if chosen.index is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"{chosen} is one device, and the launcher gives each process its own: leave the device out."
            )
        torch.accelerator.set_device_index(chosen.index)
    # Without a device, accelerate has to be told: it would take each process of a launcher for one that is alone.
    on_cpu = chosen.type == "cpu"
    if recipe.precision == "fp16" and on_cpu:
        raise InputError("precision=fp16 needs a GPU: set precision to bf16 or fp32.")
    launched = not torch.distributed.is_initialized()
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
            # The loop shares batches out itself; a launcher's accumulation setting would scale the loss a second time.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=list(recipe.trackers) or None,
            project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "trackers")),
        )
    except ValueError as error:
        raise InputError(f"This machine cannot train with these settings: {error}") from None
    world = accelerator.num_processes
    if recipe.batch_size < world * recipe.accumulation:
        raise InputError(
            f"batch_size={recipe.batch_size} cannot be shared by {world} processes x {recipe.accumulation} micro-batches: "
            "raise batch_size or lower accumulation."
        )
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            with contextlib.suppress(AttributeError):  # one that could not be started has nothing to finish
                tracker.finish()
        if launched and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
