"""Frozen features + labels -> a table of probes: mean and spread over seeds, an interval over test videos, and chance.

    table = probe("reps", "labels.csv", raw="store")
    print(table.to_text())

Cost: no model runs here; the features were computed once. A linear probe takes about a second and an attentive one of
width 384 and 1,000 steps some seconds a seed on two cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from lvmae.errors import InputError
from lvmae.evaluation.features import RAW, Features, has_span, load_features
from lvmae.evaluation.fitting import Fitted, fit, probe_device
from lvmae.evaluation.labels import SPLITS, Task, found_in, load_labels
from lvmae.evaluation.metrics import METRICS, interval, score
from lvmae.evaluation.settings import ALL_PROBES, BASELINES, PROBES, ProbeSettings
from lvmae.evaluation.tables import ProbeRow, ProbeTable
from lvmae.process import own_state
from lvmae.progress import progress
from lvmae.runs import run_fingerprint
from lvmae.store import EMBEDDINGS, EmbeddingStore

_MOST_WORKERS = 8  # an attentive probe of width 1024 holds 200 MB


@own_state()
def probe(
    features: str | Path | EmbeddingStore,
    labels: str | Path | Task,
    *,
    raw: str | Path | EmbeddingStore | None = None,
    probes: Sequence[str] = PROBES,
    seeds: int = 5,
    kind: str | None = None,
    label_fraction: float | None = None,
    run: str | Path | None = None,
    settings: ProbeSettings | None = None,
) -> ProbeTable:
    """Trains probes on frozen features and tests them.

    Args:
        features: a store, or its path: representations, or raw embeddings.
        labels: a label file (`load_labels`), all of whose videos must be in the store, or a `Task` (`load_task`),
            whose missing videos are counted and listed.
        raw: the store of raw embeddings, for the same probes on them, on the same videos and splits.
        probes: of "linear" (on the mean of the tokens; for a regression it is the paper's regressor), "attentive",
            "linear-standardized" (beyond the paper: each dimension of the mean made of zero mean and unit deviation over
            train), and the end-to-end baselines "transformer" and "mamba", which learn from raw embeddings alone.
        seeds: runs a figure. Each draws its initial weights, its order of videos and, where labels name no split, its
            own 60/20/20.
        kind: of labels, instead of reading it off them.
        label_fraction: the share of the train labels to learn from, drawn by each seed, in every class and with one video
            of each at least; None takes the task's own, which is 1.
        run: the run the representations must be of.
        settings: how probes are trained; by default `ProbeSettings.default_for` the task.

    Raises:
        InputError: for labels or stores that do not fit.
    """
    unknown = [name for name in probes if name not in ALL_PROBES]
    if unknown or not probes:
        raise InputError(f"there is no probe '{', '.join(unknown)}'; choose of {', '.join(ALL_PROBES)}")
    if seeds < 1:
        raise InputError(f"a probe needs at least 1 seed, not {seeds}")
    store = EmbeddingStore.open(features)
    if run is not None:
        _check_run(store, run)
    stores = [store] if raw is None else [_raw_store(raw, store), store]
    if raw is None and store.kind != EMBEDDINGS and any(name in BASELINES for name in probes):
        raise InputError(
            f"{' and '.join(name for name in probes if name in BASELINES)} learn end to end from raw embeddings, and "
            f"{store.path} holds {store.kind}; name the store they were made from too (--raw)"
        )
    if not isinstance(labels, Task):
        labels = load_labels(labels, kind=kind, known=store.ids)
    if label_fraction is not None:
        labels = replace(labels, label_fraction=label_fraction)
    settings = settings or ProbeSettings.default_for(benchmark=labels.benchmark, label_fraction=labels.label_fraction)
    split_of = (
        dict.fromkeys(labels.ids, "") if labels.splits is None else dict(zip(labels.ids, labels.splits, strict=True))
    )
    task, places = found_in(labels, store.ids, lambda place, span: has_span(store[place], *span))
    sets = [load_features(s, places if s is store else _same_videos(s, store, places), task.spans) for s in stores]

    splits = [task.split(seed) for seed in range(seeds)]
    runs = [
        (part, name, seed)
        for part in sets
        for name in probes
        if name not in BASELINES or part.name == RAW
        for seed in range(seeds)
    ]
    fitted = _fit_all(runs, task, settings)
    rows: list[ProbeRow] = []
    for first in range(0, len(runs), seeds):
        part, name, _ = runs[first]
        found = fitted[first : first + seeds]
        answered = [(f.outputs, split["test"]) for f, split in zip(found, splits, strict=True)]
        values = [score(task.kind, outputs, task.targets[tested]) for outputs, tested in answered]
        rows.append(
            ProbeRow(
                features=part.name,
                probe=name,
                mean=float(np.mean(values)),
                std=float(np.std(values, ddof=1)) if seeds > 1 else 0.0,
                values=tuple(values),
                interval=interval(task.kind, answered, task.targets, settings.bootstrap),
                epochs=tuple(f.epoch for f in found),
                steps=found[0].steps,
                paper_steps=found[0].paper_steps,
                min_steps=settings.plan(name).min_steps,
            )
        )
    return ProbeTable(
        task=task.name,
        kind=task.kind,
        metric=METRICS[task.kind],
        classes=task.classes,
        counts={name: len(splits[0][name]) for name in SPLITS},
        split="fixed" if task.splits is not None else "drawn by each seed",
        seeds=seeds,
        chance=_chance(task, seeds),
        rows=tuple(rows),
        missing=task.missing,
        label_fraction=task.label_fraction,
        missing_splits=tuple(str(split_of[name]) for name in task.missing),
        annotated={str(name): number for name, number in Counter(split_of.values()).items()},
        settings={k: v for k, v in asdict(settings).items() if k != "device"},
    )


def _fit_all(runs: list[tuple[Features, str, int]], task: Task, settings: ProbeSettings) -> list[Fitted]:
    """Fits side by side, one a core, each on one thread: a probe's steps are too small to share, and so the figures do not
    depend on how many cores there are."""
    threads = torch.get_num_threads()
    on_gpu = probe_device(settings).type != "cpu"
    torch.set_num_threads(1)
    try:
        with (
            ThreadPoolExecutor(1 if on_gpu else min(threads, _MOST_WORKERS)) as pool,
            progress(desc=f"probe {task.name}", unit="fits", total=len(runs)) as bar,
        ):
            futures = [pool.submit(fit, name, part, task, seed, settings) for part, name, seed in runs]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)


def _chance(task: Task, seeds: int) -> dict[str, float]:
    """What needs no features: the most frequent class of test and 1 / classes; the base rate; the mean of train."""
    found = []
    for seed in range(seeds):
        rows = task.split(seed)
        test = task.targets[rows["test"]]
        if task.kind == "classification":
            found.append(
                {
                    "most frequent class": 100 * float(np.bincount(test).max()) / len(test),
                    "1 / classes": 100 / len(task.classes),
                }
            )
        elif task.kind == "multilabel":
            found.append({"base rate": 100 * float(test.mean())})
        else:
            found.append({"mean of train": float(((test - task.targets[rows["train"]].mean()) ** 2).mean())})
    return {name: float(np.mean([values[name] for values in found])) for name in found[0]}


def _raw_store(raw: str | Path | EmbeddingStore, store: EmbeddingStore) -> EmbeddingStore:
    found = EmbeddingStore.open(raw)
    if found.kind != EMBEDDINGS:
        raise InputError(f"{found.path} holds {found.kind}; the raw baseline needs the embeddings they were made from")
    if store.kind == EMBEDDINGS:
        raise InputError(
            f"{store.path} holds raw embeddings itself; probe it alone, or give representations beside --raw"
        )
    return found


def _same_videos(raw: EmbeddingStore, store: EmbeddingStore, places: np.ndarray) -> np.ndarray:
    ids = [store.ids[place] for place in places]
    where = {id_: index for index, id_ in enumerate(raw.ids)}
    absent = [id_ for id_ in ids if id_ not in where]
    if absent:
        raise InputError(
            f"{len(absent)} of the {len(ids)} labelled videos are not in {raw.path}, such as '{absent[0]}'; "
            "give the store the representations were made from"
        )
    return np.array([where[id_] for id_ in ids], dtype=np.intp)


def _check_run(store: EmbeddingStore, run: str | Path) -> None:
    made_by = (store.manifest.run or {}).get("fingerprint")
    if made_by is None:
        raise InputError(f"{store.path} holds raw embeddings, not representations of the run {run}")
    if made_by != run_fingerprint(run):
        said = (store.manifest.run or {}).get("path")
        raise InputError(
            f"{store.path} was made by another run ({said}) than {run}; represent the store with this run first"
        )
