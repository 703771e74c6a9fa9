"""The fits of a table, each computed once and cached: the same request resumes after a crash.

A fit is kept in the cache under a hash of all that decides it: the features' values, the targets, the split, the probe and
its settings. Deleting the cache costs the time to fit again, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lvmae
from lvmae.evaluation.estimators import Chosen, answers, fit_estimator
from lvmae.evaluation.features import BESIDE, RAW, Features
from lvmae.evaluation.fitting import Fitted, fit, probe_device
from lvmae.evaluation.settings import ATTENTIVE_RATES, ProbeSettings
from lvmae.evaluation.splits import Parts
from lvmae.evaluation.task import Task
from lvmae.files.cache import cache_folder
from lvmae.files.writing import replacing
from lvmae.progress import progress

_VERSION = 1  # of what a fit computes: another one does not take what an earlier one kept
_MOST_WORKERS = 8  # an attentive probe of width 1024 holds 200 MB
_ESTIMATED = ("linear", "knn")


@dataclass(frozen=True, eq=False)
class Fit:
    """One row of a table: a probe on the readout of one or more sets of features, side by side."""

    sets: tuple[Features, ...]
    probe: str
    readout: str = "mean"

    @property
    def name(self) -> str:
        """Of the features."""
        return self.sets[0].name if len(self.sets) == 1 else BESIDE

    @property
    def shown(self) -> str:
        """The probe, with what it reads where that is not the mean."""
        return self.probe if self.readout == "mean" else f"{self.probe} {self.readout}"

    def vectors(self) -> NDArray[np.float64]:
        """(V, D): the pooled vectors, those of several sets side by side."""
        return np.concatenate([part.pooled(self.readout) for part in self.sets], axis=1)

    def is_raw_of(self, other: Fit) -> bool:
        """Whether this is the raw row to compare another with: the mean and deviation where it reads these, else the mean."""
        if self.name != RAW or other.name == RAW or self.probe != other.probe:
            return False
        return self.readout == ("mean+std" if "std" in other.readout else "mean")


def fit_all(
    planned: Sequence[Fit],
    task: Task,
    splits: Sequence[Parts],
    settings: ProbeSettings,
    *,
    protocol: str,
    class_weight: str | None,
) -> dict[Fit, list[Fitted]]:
    """Each fit for each seed. Those that torch trains run side by side, one a core, each on one thread: their steps are
    too small to share, and so the figures do not depend on how many cores there are."""
    standard = protocol == "standard"
    digests = {id(part): part.digest() for one in planned for part in one.sets}
    common = [_VERSION, lvmae.__version__, protocol, class_weight, task.kind, task.scored_by.name, len(task.classes)]
    common += [hashlib.sha256(np.ascontiguousarray(task.targets).tobytes()).hexdigest()]
    common += [{k: v for k, v in asdict(settings).items() if k not in ("device", "bootstrap")}]
    found: dict[tuple[int, int], Fitted] = {}
    files: dict[tuple[int, int], Path] = {}
    for number, one in enumerate(planned):
        for seed, parts in enumerate(splits):
            rows = {name: part.tolist() for name, part in parts.items()}
            said = [*common, one.probe, one.readout, [digests[id(part)] for part in one.sets], seed, rows]
            name = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
            files[number, seed] = cache_folder() / "probes" / f"{name}.npz"
            kept = _kept(files[number, seed])
            if kept is not None:
                found[number, seed] = kept
    todo = [place for place in files if place not in found]
    with progress(desc=f"probe {task.name}", unit="fits", total=len(files), initial=len(found)) as bar:

        def done(place: tuple[int, int], fitted: Fitted) -> None:
            found[place] = fitted
            _keep(files[place], fitted)
            bar.update(1)

        estimated = [p for p in todo if standard and planned[p[0]].probe in _ESTIMATED]
        for number, seed in estimated:
            done((number, seed), _estimated(planned[number], task, splits[seed], class_weight))
        trained = [place for place in todo if place not in found]
        if trained:
            _train(planned, trained, task, settings, standard=standard, class_weight=class_weight, done=done)
    return {one: [found[number, seed] for seed in range(len(splits))] for number, one in enumerate(planned)}


def _estimated(one: Fit, task: Task, parts: Parts, class_weight: str | None) -> Fitted:
    """Fits a scikit-learn probe to the pooled vectors, or to those of the layer that is best on val (ties: the earlier layer)."""
    layers: dict[int, NDArray[np.float64]] = one.sets[0].by_layer() if one.readout == "layers" else {0: one.vectors()}
    best: tuple[tuple[float, float], Chosen, int] | None = None
    sign = -1.0 if task.scored_by.lower_is_better else 1.0
    for layer, x in layers.items():
        found = fit_estimator(one.probe, x, task, parts, class_weight=class_weight)
        reached = (sign * found.val, -found.val_loss)
        if best is None or reached > best[0]:
            best = reached, found, layer
    assert best is not None
    _, chosen, layer = best
    outputs = answers(task.kind, chosen.pipeline, layers[layer][parts["test"]], len(task.classes))
    return Fitted(outputs, chosen.setting | ({"layer": layer} if layer else {}))


def _train(
    planned: Sequence[Fit],
    places: Sequence[tuple[int, int]],
    task: Task,
    settings: ProbeSettings,
    *,
    standard: bool,
    class_weight: str | None,
    done: Any,
) -> None:
    threads = torch.get_num_threads()
    on_gpu = probe_device(settings).type != "cpu"
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(1 if on_gpu else min(threads, _MOST_WORKERS)) as pool:
            futures: dict[Future[Fitted], tuple[int, int]] = {}
            for number, seed in places:
                one = planned[number]
                rates = ATTENTIVE_RATES if standard and one.probe == "attentive" else None
                futures[
                    pool.submit(
                        fit,
                        one.probe,
                        one.sets[0],
                        task,
                        seed,
                        settings,
                        rates=rates,
                        class_weight=class_weight,
                        scale_targets=standard,
                    )
                ] = (number, seed)
            try:
                for future in as_completed(futures):
                    done(futures[future], future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


def _kept(path: Path) -> Fitted | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            told = json.loads(str(file["told"]))
            return Fitted(file["outputs"], told["setting"], told["steps"], told["paper_steps"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none, or one that a crash cut off
        return None


def _keep(path: Path, fitted: Fitted) -> None:
    """Writes a fit beside its place and renames it; a cache that cannot be written is no reason to fail."""
    told = {"setting": fitted.setting, "steps": fitted.steps, "paper_steps": fitted.paper_steps}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as beside:
            np.savez(beside, outputs=fitted.outputs, told=np.array(json.dumps(told)))
