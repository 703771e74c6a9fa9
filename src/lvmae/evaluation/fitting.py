"""Trains one probe on a task's labels: it learns on train, val chooses the epoch, test is scored once.

Every probe goes through the same loop; what differs is its `Plan` (epochs, rate, least steps). What comes out depends
on the seed alone: not on threads, not on what else is trained beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lvmae.devices import pick_device
from lvmae.evaluation.features import Features
from lvmae.evaluation.probes import AttentiveProbe, LinearProbe
from lvmae.evaluation.settings import BASELINES, Plan, ProbeSettings
from lvmae.evaluation.task import Task

_EVALUATION_BATCH = 64
_WARM_UP = 0.1  # share of the steps, where the rate is warmed up
_INIT_STREAM, _ORDER_STREAM = 2, 3


@dataclass(frozen=True)
class Fitted:
    """A trained probe's answer.

    Attributes:
        outputs: (n_test, K) logits or values, at what was best on val.
        setting: what val chose: the epoch (from 1) and rate, the strength, the number of neighbours.
        steps, paper_steps: optimiser steps made, and those of the plain epochs; 0 if there are none.
    """

    outputs: NDArray[np.float64]
    setting: dict[str, float]
    steps: int = 0
    paper_steps: int = 0

    @property
    def epoch(self) -> int:
        """The chosen one, from 1; 0 of a probe that is not trained in epochs."""
        return int(self.setting.get("epoch", 0))


def fit(
    probe: str,
    features: Features,
    task: Task,
    seed: int,
    settings: ProbeSettings,
    *,
    rates: Sequence[float] | None = None,
    class_weight: str | None = None,
    scale_targets: bool = False,
) -> Fitted:
    """Trains a probe on the task's train split; `seed` draws the initial weights and the order of the videos.

    Keeps the epoch with the best validation score (ties: lower validation loss). The test split is scored once, with
    that epoch's weights.

    Args:
        rates: learning rates that val chooses among; None takes the settings' own.
        class_weight: "balanced" weights every class alike.
        scale_targets: whether a regression's targets are of deviation 1 over train while the probe is trained, so that
            their unit does not matter.
    """
    plan = settings.plan(probe)
    best: tuple[tuple[float, float], Fitted] | None = None
    for rate in rates or (plan.lr,):
        reached, found = _fit_at(
            probe,
            features,
            task,
            seed,
            settings,
            plan=replace(plan, lr=rate),
            class_weight=class_weight,
            scale_targets=scale_targets,
        )
        if best is None or reached > best[0]:
            best = reached, found
    assert best is not None
    if rates:
        return best[1]
    return replace(best[1], setting={"epoch": best[1].setting["epoch"]})


def _fit_at(
    probe: str,
    features: Features,
    task: Task,
    seed: int,
    settings: ProbeSettings,
    *,
    plan: Plan,
    class_weight: str | None,
    scale_targets: bool,
) -> tuple[tuple[float, float], Fitted]:
    """One training: what it reached on val (the larger, the better), and its answer."""
    device = probe_device(settings)
    rows = task.split(seed)
    train, val = rows["train"], rows["val"]
    model, forward = _model(probe, features, len(task.classes) or 1, train=train, seed=seed, settings=settings)

    @torch.inference_mode()
    def predict(chosen: NDArray[np.intp]) -> Tensor:
        model.eval()
        found = torch.cat(
            [forward(chosen[i : i + _EVALUATION_BATCH]) for i in range(0, len(chosen), _EVALUATION_BATCH)]
        )
        model.train()
        return found

    epoch_steps = math.ceil(len(train) / settings.batch_size)
    passes = plan.passes(epoch_steps)
    steps = plan.epochs * passes * epoch_steps
    targets, loss_of, offset, scale = _objective(task, train, device, class_weight, scale_targets)
    optimizer = _optimizer(model, plan)
    course = _course(plan, steps, passes * epoch_steps)
    made = 0
    order = np.random.default_rng([seed, _ORDER_STREAM])
    best: tuple[float, float] | None = None
    best_epoch, best_state = 0, {}
    for epoch in range(1, plan.epochs + 1):
        for _ in range(passes):
            shuffled = order.permutation(train)
            for start in range(0, len(train), settings.batch_size):
                chosen = shuffled[start : start + settings.batch_size]
                loss = loss_of(forward(chosen), targets[torch.from_numpy(chosen)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                for group in optimizer.param_groups:
                    group["lr"] = plan.lr * course(made)
                optimizer.step()
                made += 1
        held_out = predict(val)
        value = task.scored_by.score(_outputs(held_out, offset, scale), task.targets[val])
        value = -math.inf if math.isnan(value) else -value if task.scored_by.lower_is_better else value
        reached = (value, -float(loss_of(held_out, targets[torch.from_numpy(val)])))
        if best is None or reached > best:
            best, best_epoch = reached, epoch
            best_state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    assert best is not None
    model.load_state_dict(best_state)
    outputs = _outputs(predict(rows["test"]), offset, scale)
    return best, Fitted(outputs, {"epoch": best_epoch, "lr": plan.lr}, steps, plan.epochs * epoch_steps)


def probe_device(settings: ProbeSettings) -> torch.device:
    """Where probes are trained."""
    return pick_device(settings.device)


def _model(
    probe: str, features: Features, outputs: int, *, train: NDArray[np.intp], seed: int, settings: ProbeSettings
) -> tuple[nn.Module, Callable[[NDArray[np.intp]], Tensor]]:
    """A fresh probe on its device, and what it says of the videos in some rows."""
    device = probe_device(settings)
    drawn = int(np.random.default_rng([seed, _INIT_STREAM]).integers(2**62))
    generator = torch.Generator().manual_seed(drawn)
    model: nn.Module
    if probe in BASELINES:
        from lvmae.evaluation.baselines import end_to_end  # transformers is slow to import

        width, layers = settings.baseline_width, settings.baseline_layers
        model = end_to_end(probe, features.dim, outputs, width=width, layers=layers, seed=drawn)
    elif probe == "attentive":
        model = AttentiveProbe(features.dim, outputs, generator, learn_cls=features.cls is None)
    else:
        model = LinearProbe(features.dim, outputs, generator).to(device)
        mean = features.mean.to(device)
        if probe == "linear-standardized":
            mean = _standardized(mean, torch.from_numpy(train))
        return model, lambda chosen: model(mean[torch.from_numpy(chosen)])
    model.to(device)
    return model, lambda chosen: model(*features.batch(chosen, device))


def _standardized(mean: Tensor, train: Tensor) -> Tensor:
    """(V, D), each dimension of zero mean and unit deviation over train; a dimension that never changes stays zero."""
    known = mean[train]
    spread = known.std(dim=0, correction=0)
    return (mean - known.mean(dim=0)) / torch.where(spread > 1e-6 * known.abs().amax(), spread, torch.inf)


def _optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Adam, or AdamW where there is weight decay: on matrices, and not on a Mamba's rates of decay."""
    named = list(model.named_parameters())
    decayed = [value for name, value in named if value.ndim > 1 and not name.endswith("A_log")]
    others = [value for name, value in named if value.ndim < 2 or name.endswith("A_log")]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.lr, fused=True)


def _course(plan: Plan, steps: int, epoch_steps: int) -> Callable[[int], float]:
    """What the rate is multiplied by at a step."""
    if plan.decay is not None:
        decay = plan.decay
        return lambda step: decay ** (step // epoch_steps)
    warm = max(1, round(_WARM_UP * steps))
    return lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / (steps - warm + 1)))


def _objective(
    task: Task, train: NDArray[np.intp], device: torch.device, class_weight: str | None, scale_targets: bool
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor], float, float]:
    """All targets as the loss takes them, the loss, and what was subtracted and divided by: a regression is zero-mean on train."""
    if task.kind == "classification":
        weight = None
        if class_weight == "balanced":
            counts = np.bincount(task.targets[train], minlength=len(task.classes))
            weight = torch.from_numpy(len(train) / (len(task.classes) * np.maximum(counts, 1))).float().to(device)
        return torch.from_numpy(task.targets).to(device), partial(F.cross_entropy, weight=weight), 0.0, 1.0
    if task.kind == "multilabel":
        positive = None
        if class_weight == "balanced":
            share = task.targets[train].mean(axis=0)
            positive = torch.from_numpy((1 - share) / np.maximum(share, 1e-9)).float().to(device)
        bce = partial(F.binary_cross_entropy_with_logits, pos_weight=positive)
        return torch.from_numpy(task.targets).float().to(device), bce, 0.0, 1.0
    offset = float(task.targets[train].mean())
    scale = (float(task.targets[train].std()) or 1.0) if scale_targets else 1.0
    return torch.from_numpy((task.targets - offset) / scale).float()[:, None].to(device), F.mse_loss, offset, scale


def _outputs(found: Tensor, offset: float, scale: float) -> NDArray[np.float64]:
    return found.cpu().double().numpy() * scale + offset
