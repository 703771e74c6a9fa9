"""Frozen features + labels -> a table of probes and baselines without features, with errors over test videos.

    table = probe("reps", "labels.csv", raw="store")
    print(table.to_text())

Two protocols. "standard", for one's own labels: regularised linear models on standardised features, nearest neighbours, and
the attentive probe, all chosen on val. "paper", for the paper's benchmarks: its Adam, rates and epochs to the letter.

Cost: no model runs here; the features were computed once. A linear probe takes about a second, an attentive one of width
384 and 1,000 steps some seconds a seed and rate on two cores. What is fitted is kept in the cache, so the same request
resumes after a crash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError
from lvmae.evaluation.features import RAW, READOUTS, Features, has_span, load_features
from lvmae.evaluation.fits import Fit, fit_all
from lvmae.evaluation.labels import load_labels
from lvmae.evaluation.metrics import Answered, bootstrap
from lvmae.evaluation.settings import ALL_PROBES, BASELINES, PROBES_OF, PROTOCOLS, ProbeSettings
from lvmae.evaluation.splits import SPLITS
from lvmae.evaluation.tables import Predictions, ProbeRow, ProbeTable
from lvmae.evaluation.task import Task, found_in
from lvmae.evaluation.verdicts import by_counting, constant_answers, details
from lvmae.process import own_state
from lvmae.runs import run_fingerprint
from lvmae.store import EMBEDDINGS, EmbeddingStore

_REPRESENTED = "+lvmae-"  # between a space and the run that made representations of it


@own_state()
def probe(
    features: str | Path | EmbeddingStore,
    labels: str | Path | Task,
    *,
    raw: str | Path | EmbeddingStore | None = None,
    probes: Sequence[str] | None = None,
    seeds: int = 5,
    kind: str | None = None,
    label_fraction: float | None = None,
    run: str | Path | None = None,
    settings: ProbeSettings | Mapping[str, Any] | None = None,
    device: str | None = None,
    protocol: str | None = None,
    readouts: Sequence[str] | None = None,
    class_weight: str | None = None,
    group: str | None = None,
) -> ProbeTable:
    """Trains probes on frozen features and tests them.

    Args:
        features: a store, or its path: representations, or raw embeddings.
        labels: a label file (`load_labels`), or a `Task` (`load_task`). Videos that the store lacks are counted and listed.
        raw: the store of raw embeddings, for the same probes on them, on the same videos and splits.
        probes: of "linear" (on a pooled vector), "knn" (by the standard protocol), "attentive", "linear-standardized" (the
            paper's training on features of deviation 1), and the end-to-end baselines "transformer" and "mamba", which learn
            from raw embeddings alone. None takes the protocol's: linear, knn and attentive, or linear and attentive.
        seeds: runs a figure. Each draws its initial weights, its order of videos and, where labels name no split, its
            own 60/20/20.
        kind: of labels, instead of reading it off them.
        label_fraction: the share of the train labels to learn from, drawn by each seed, in every class and with one video
            of each at least; None takes the task's own, which is 1. Nothing else of the protocol changes.
        run: the run the representations must be of.
        settings: how the trained probes are trained: `ProbeSettings`, or values that replace the protocol's, by their names.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; None is "auto".
        protocol: "standard" or "paper"; None takes the paper's for its benchmarks and else the standard.
        readouts: what the linear probe of the standard protocol reads, of `READOUTS`. None takes all that there are where
            `probes` is None too, and else the mean.
        class_weight: "balanced" weights every class alike while training, by the standard protocol.
        group: with a label file, its column of what must stay on one side of a drawn split.

    Raises:
        InputError: for labels or stores that do not fit.
    """
    store = EmbeddingStore.open(features)
    if isinstance(labels, Task) and (kind is not None or group is not None):
        raise InputError("kind and group are for a label file; a task has its own")
    if not isinstance(labels, Task):
        labels = load_labels(labels, kind=kind, known=store.ids, group=group)
    if label_fraction is not None:
        labels = replace(labels, label_fraction=label_fraction)
    protocol = protocol or ("paper" if labels.benchmark else "standard")
    asked = _Asked.of(
        protocol,
        probes=probes,
        seeds=seeds,
        readouts=readouts,
        class_weight=class_weight,
        task=labels,
        settings=ProbeSettings.of(settings, protocol, device),
    )
    if run is not None:
        _check_run(store, run)
    stores = [store] if raw is None else [raw_store(raw, store), store]
    if raw is None and store.kind != EMBEDDINGS and any(name in BASELINES for name in asked.probes):
        raise InputError(
            f"{' and '.join(name for name in asked.probes if name in BASELINES)} learn end to end from raw embeddings, and "
            f"{store.path} holds {store.kind}; name the store they were made from too, as `raw`"
        )
    task, places = found_in(labels, store.ids, lambda place, span: has_span(store[place], *span))
    sets = [load_features(s, places if s is store else _same_videos(s, store, places), task.spans) for s in stores]
    task, sets = _finite(task, sets)

    splits = [task.split(seed) for seed in range(seeds)]
    planned = asked.fits(sets)
    fitted = fit_all(planned, task, splits, asked.settings, protocol=protocol, class_weight=class_weight)
    answered = {
        one: [Answered(found.outputs, split["test"]) for found, split in zip(fits, splits, strict=True)]
        for one, fits in fitted.items()
    }
    rows = []
    for one, fits in fitted.items():
        figure = bootstrap(task.scored_by, answered[one], task.targets, asked.settings.bootstrap)
        values = [task.scored_by.score(run_.outputs, task.targets[run_.rows]) for run_ in answered[one]]
        rivals = [other for other in planned if other.is_raw_of(one)] if asked.settings.bootstrap else []
        rival = next(iter(rivals), None)
        beyond = rival and bootstrap(
            task.scored_by, answered[one], task.targets, asked.settings.bootstrap, minus=answered[rival]
        )
        rows.append(
            ProbeRow(
                features=one.name,
                probe=one.shown,
                mean=float(np.mean(values)),
                std=float(np.std(values, ddof=1)) if seeds > 1 else 0.0,
                values=tuple(values),
                interval=(figure.low, figure.high),
                epochs=tuple(found.epoch for found in fits if found.epoch),
                steps=fits[0].steps,
                paper_steps=fits[0].paper_steps,
                min_steps=asked.settings.plan(one.probe).min_steps if fits[0].steps else 0,
                stderr=figure.stderr,
                chosen=tuple(found.setting for found in fits),
                minus_raw=asdict(beyond) if beyond else None,
                details=details(task, answered[one]),
            )
        )
    chance = {
        name: bootstrap(task.scored_by, runs, task.targets, asked.settings.bootstrap)
        for name, runs in constant_answers(task, splits).items()
    }
    return ProbeTable(
        task=task.name,
        kind=task.kind,
        metric=task.scored_by.name,
        classes=task.classes,
        counts={name: len(splits[0][name]) for name in SPLITS},
        split="fixed" if task.splits is not None else "drawn by each seed",
        seeds=seeds,
        chance={name: figure.value for name, figure in chance.items()} | by_counting(task, splits),
        rows=tuple(rows),
        missing=task.missing,
        label_fraction=task.label_fraction,
        missing_splits=task.missing_splits,
        annotated=_annotated(task),
        settings={k: v for k, v in asdict(asked.settings).items() if k != "device"},
        protocol=protocol,
        class_weight=class_weight,
        chance_stderr={name: figure.stderr for name, figure in chance.items()},
        said=task.notes,
        source={
            "store": store.path,
            "space_id": store.space_id,
            "fingerprint": store.fingerprint,
            "run": str((store.manifest.run or {}).get("fingerprint", "")),
        },
        lower_is_better=task.scored_by.lower_is_better,
        published=dict(task.published),
        predictions=Predictions(task, answered={(one.name, one.shown): runs for one, runs in answered.items()}),
    )


@dataclass(frozen=True)
class _Asked:
    """What is to be fitted, checked."""

    protocol: str
    probes: tuple[str, ...]
    seeds: int
    readouts: tuple[str, ...]
    settings: ProbeSettings
    side_by_side: bool

    @classmethod
    def of(
        cls,
        protocol: str,
        *,
        probes: Sequence[str] | None,
        seeds: int,
        readouts: Sequence[str] | None,
        class_weight: str | None,
        task: Task,
        settings: ProbeSettings | None,
    ) -> _Asked:
        if protocol not in PROTOCOLS:
            raise InputError(f"there is no protocol '{protocol}'; choose {' or '.join(PROTOCOLS)}")
        everything = probes is None
        probes = tuple(PROBES_OF[protocol] if probes is None else probes)
        unknown = [name for name in probes if name not in ALL_PROBES]
        if unknown or not probes:
            raise InputError(f"there is no probe '{', '.join(unknown)}'; choose of {', '.join(ALL_PROBES)}")
        if seeds < 1:
            raise InputError(f"a probe needs at least 1 seed, not {seeds}")
        wrong = [name for name in readouts or () if name not in READOUTS]
        if wrong:
            raise InputError(f"there is no readout '{wrong[0]}'; choose of {', '.join(READOUTS)}")
        if protocol == "paper":
            beyond = ["the probe 'knn'"] * ("knn" in probes) + ["readouts"] * (readouts is not None)
            beyond += ["class weights"] * (class_weight is not None)
            if beyond:
                raise InputError(f"the paper's protocol has no {' and '.join(beyond)}; choose the standard one")
        if class_weight not in (None, "balanced"):
            raise InputError(f"class weights are 'balanced' or none, not '{class_weight}'")
        if class_weight and task.kind == "regression":
            raise InputError("a regression has no classes to weight; leave the class weights out")
        asked = readouts is not None
        if readouts is None:
            readouts = READOUTS if everything else ("mean",)
        chosen = settings or ProbeSettings.default_for(protocol)
        return cls(protocol, tuple(dict.fromkeys(probes)), seeds, tuple(readouts), chosen, everything or asked)

    def fits(self, sets: Sequence[Features]) -> list[Fit]:
        """The rows of the table, in their order."""
        found: list[Fit] = []
        for part in sets:
            for name in self.probes:
                if name in BASELINES and part.name != RAW:
                    continue
                here = self._readouts(part) if name == "linear" and self.protocol == "standard" else ("mean",)
                found += [Fit((part,), name, readout) for readout in here]
        if self.protocol == "standard" and len(sets) == 2 and "linear" in self.probes and self.side_by_side:
            found.append(Fit((sets[1], sets[0]), "linear", "mean"))
        return found

    def _readouts(self, part: Features) -> tuple[str, ...]:
        possible = part.readouts()
        here = tuple(r for r in self.readouts if r in possible)
        if not here and part.name != RAW:
            raise InputError(
                f"{part.name} has no {' or '.join(self.readouts)} to read; choose of {', '.join(possible)}"
            )
        return here or ("mean",)


def _annotated(task: Task) -> dict[str, int]:
    """How many videos the labels have in each split, in the store or not."""
    here = [""] * len(task) if task.splits is None else [str(split) for split in task.splits]
    return dict(Counter([*here, *task.missing_splits]))


def _finite(task: Task, sets: list[Features]) -> tuple[Task, list[Features]]:
    """Without the videos that have NaN or Inf, which are that video's failure and nobody else's."""
    known = np.logical_and.reduce([part.finite() for part in sets])
    if known.all():
        return task, sets
    bad = [name for name, good in zip(task.ids, known, strict=True) if not good]
    some = ", ".join(f"'{name}'" for name in bad[:3])
    said = f"{len(bad)} videos have values that are not finite (NaN or Inf) and are left out: {some}."
    rows = np.flatnonzero(known)
    gone = tuple("" if task.splits is None else str(task.splits[row]) for row in np.flatnonzero(~known))
    task = replace(
        task.take(rows),
        missing=(*task.missing, *bad),
        missing_splits=(*task.missing_splits, *gone),
        notes=(*task.notes, said),
    )
    if len(rows) == 0 or any(not len(part) for part in task.split(0).values()):
        raise InputError(f"{said} What is left is too little to train, validate and test on; embed these videos again")
    return task, [part.take(rows) for part in sets]


def raw_store(raw: str | Path | EmbeddingStore, store: EmbeddingStore) -> EmbeddingStore:
    """The store of embeddings that representations were made from; another one is refused."""
    found = EmbeddingStore.open(raw)
    if found.kind != EMBEDDINGS:
        raise InputError(f"{found.path} holds {found.kind}; the raw baseline needs the embeddings they were made from")
    if store.kind == EMBEDDINGS:
        raise InputError(
            f"{store.path} holds raw embeddings itself; probe it alone, or give representations beside `raw`"
        )
    made_from = store.space_id.rpartition(_REPRESENTED)[0] or store.space_id
    if (found.space_id, found.dim) != (made_from, store.dim):
        raise InputError(
            f"{store.path} was made from embeddings of the space {made_from}, {store.dim} wide, and {found.path} is of "
            f"{found.space_id}, {found.dim} wide; give the store the representations were made from"
        )
    if found.manifest.segments != store.manifest.segments:
        raise InputError(
            f"{found.path} has segments of another rule ({found.manifest.segments}) than {store.path} "
            f"({store.manifest.segments}); give the store the representations were made from"
        )
    return found


def _same_videos(raw: EmbeddingStore, store: EmbeddingStore, places: NDArray[np.intp]) -> NDArray[np.intp]:
    ids = [store.ids[place] for place in places]
    where = {id_: index for index, id_ in enumerate(raw.ids)}
    absent = [id_ for id_ in ids if id_ not in where]
    if absent:
        raise InputError(
            f"{len(absent)} of the {len(ids)} labelled videos are not in {raw.path}, such as '{absent[0]}'; "
            "give the store the representations were made from"
        )
    found = np.array([where[id_] for id_ in ids], dtype=np.intp)
    other = np.flatnonzero(raw.lengths[found] != store.lengths[places])
    if len(other):
        raise InputError(
            f"video '{ids[other[0]]}' has {raw.lengths[found[other[0]]]} segments in {raw.path} and "
            f"{store.lengths[places[other[0]]]} in {store.path}: it was embedded again since; represent the store again"
        )
    return found


def _check_run(store: EmbeddingStore, run: str | Path) -> None:
    made_by = (store.manifest.run or {}).get("fingerprint")
    if made_by is None:
        raise InputError(f"{store.path} holds raw embeddings, not representations of the run {run}")
    if made_by != run_fingerprint(run):
        said = (store.manifest.run or {}).get("path")
        raise InputError(
            f"{store.path} was made by another run ({said}) than {run}; represent the store with this run first"
        )
