"""Runs a few steps of a pre-training to estimate its cost. Writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from lvmae import recipes
from lvmae.model import LVMAEForPreTraining
from lvmae.pretraining.accelerate_state import own_accelerate_state
from lvmae.pretraining.data import TrainingData
from lvmae.pretraining.loop import Stores, few_threads, model_config, open_stores
from lvmae.pretraining.optimisation import adamw
from lvmae.pretraining.step import Step
from lvmae.recipes import Recipe

_SECONDS = 4.0
_STEPS = 20


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps told.

    Attributes:
        videos: to train on. steps: of the whole run. segments_per_step: of the batches that were tried, in the mean.
        parameters: that are learnt. checkpoints: that the run keeps.
        seconds_per_step: after one that warms up. device: where. device_bytes: peak memory of a GPU; None elsewhere.
    """

    videos: int
    steps: int
    segments_per_step: float
    parameters: int
    checkpoints: int
    seconds_per_step: float
    device: str
    device_bytes: int | None


def rehearse(
    store: Stores,
    *,
    recipe: str | os.PathLike[str] | Recipe = "base",
    settings: Mapping[str, Any] | None = None,
) -> Rehearsal:
    """Takes the first steps of `pretrain` with the same arguments, on one process, for about four seconds.

    Raises:
        InputError: the stores or settings do not go together.
    """
    chosen = dataclasses.replace(recipes.named(recipe).with_settings(settings), num_workers=0)
    stores = open_stores(store)
    data = TrainingData(stores, chosen)
    config = model_config(stores[0].manifest, chosen)
    steps = chosen.epochs * data.steps_per_epoch
    segments: list[int] = []
    with own_accelerate_state(), few_threads(config):
        accelerator = Accelerator(mixed_precision="no" if chosen.precision == "fp32" else chosen.precision)
        device = accelerator.device
        model = LVMAEForPreTraining(config).train()
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        optimizer = adamw(model, betas=(chosen.beta1, chosen.beta2), weight_decay=chosen.weight_decay)
        prepared, stepped = accelerator.prepare(model, optimizer)
        step = Step(accelerator, prepared, stepped, chosen, None)
        batches = data.batches(0, 0, 1, device)

        def one() -> None:
            parts = [next(batches).to(device) for _ in range(chosen.accumulation)]
            segments.append(sum(len(part.tokens) for part in parts))
            step(parts, 0.0)

        with contextlib.closing(batches):
            seconds = timed(one, device, most=min(_STEPS, steps - 1))
    return Rehearsal(
        videos=len(data.windows),
        steps=steps,
        segments_per_step=sum(segments) / len(segments),
        parameters=parameters,
        checkpoints=chosen.keep,
        seconds_per_step=seconds,
        device=str(device),
        device_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )


def timed(step: Callable[[], None], device: torch.device, most: int = _STEPS) -> float:
    """Seconds of one step: the mean of those that fit in a few seconds, after one that warms up."""

    def waited() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    began = waited()
    step()
    first = waited() - began
    began, steps = waited(), 0
    while steps < most and (steps == 0 or waited() - began < _SECONDS):
        step()
        steps += 1
    return (waited() - began) / steps if steps else first
