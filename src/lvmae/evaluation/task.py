"""A `Task`: videos, their targets, and the splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError
from lvmae.evaluation.matching import match_ids
from lvmae.evaluation.metrics import METRIC_OF, Metric
from lvmae.evaluation.splits import SPLITS, Parts, balanced_split, share_of_train, stratified_split

KINDS = ("classification", "multilabel", "regression")


class TooFewVideosError(InputError):
    """A store has too few of a task's videos to train, validate and test on."""


@dataclass(frozen=True)
class Task:
    """A task for probes: videos, targets and splits.

    Attributes:
        name: shown in tables.
        kind: "classification", "multilabel" or "regression".
        ids: (V) names of videos, as the labels have them.
        targets: int64 (V) class numbers, bool (V, C) class sets, or float64 (V) values.
        classes: (C) names; none for a regression.
        splits: (V) "train", "val" or "test"; None if every seed draws its own split.
        spans: (V) [start, end] in seconds, where only a part of a video is meant.
        missing: names the labels have and the store has not, filled in by `found_in`; `missing_splits` are theirs, "" where
            seeds draw splits.
        label_fraction: the share of the train labels that may be learnt from; see `split`.
        benchmark: whether it is one of the paper's, which are trained on with the paper's settings to the letter.
        groups: (V) what must stay on one side of a drawn split, such as the film that clips are of.
        notes: what a reader of its figures must know, a sentence each.
        published: model -> (what stands in the column `probe`, its published figure).
        metric: what it is scored by; None takes the one of its kind.
        spelling: brings names of the data set to one form, so that stores that name its videos otherwise are read too.
    """

    name: str
    kind: str
    ids: tuple[str, ...]
    targets: NDArray[Any]
    classes: tuple[str, ...] = ()
    splits: NDArray[np.str_] | None = None
    spans: tuple[tuple[float, float], ...] | None = None
    missing: tuple[str, ...] = field(default=())
    label_fraction: float = 1.0
    benchmark: bool = False
    missing_splits: tuple[str, ...] = field(default=())
    groups: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    published: Mapping[str, tuple[str, float]] = field(default_factory=dict, compare=False, repr=False)
    metric: Metric | None = None
    spelling: Callable[[str], str | None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise InputError(
                f"the share of labels to train on must be above 0 and at most 1, not {self.label_fraction}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored_by(self) -> Metric:
        return self.metric or METRIC_OF[self.kind]

    def take(self, rows: NDArray[np.intp]) -> Task:
        """Returns the task restricted to some of its videos."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            targets=self.targets[rows],
            splits=None if self.splits is None else self.splits[rows],
            spans=None if self.spans is None else tuple(self.spans[i] for i in rows),
            groups=None if self.groups is None else tuple(self.groups[i] for i in rows),
        )

    def belongs(self) -> NDArray[np.bool_]:
        """Returns which classes each video has, (V, C) bool; (V, 0) for a regression."""
        if self.kind == "classification":
            return np.asarray(self.targets[:, None] == np.arange(len(self.classes)))
        return np.asarray(self.targets, bool) if self.kind == "multilabel" else np.zeros((len(self), 0), bool)

    def split(self, seed: int) -> Parts:
        """Returns the rows of train, val and test: the fixed split, or a stratified 60/20/20 split drawn by `seed`.

        A drawn split does not depend on the order of the videos, has every class in train, and keeps groups whole. With a
        `label_fraction` below 1, train is that share of itself, drawn by `seed`: rounded in every class, and never less
        than one video a class. Of a larger share more are drawn, and the same ones first. Val and test stay whole.
        """
        if self.splits is not None:
            parts = {name: np.flatnonzero(self.splits == name) for name in SPLITS}
        elif self.groups is None and self.kind != "multilabel":
            one = np.zeros(len(self), np.int64)
            parts = stratified_split(self.ids, self.targets if self.kind == "classification" else one, seed)
        else:
            parts = balanced_split(self.ids, self.belongs(), self.groups, seed)
        if self.label_fraction < 1:
            parts["train"] = share_of_train(
                self.ids,
                parts["train"],
                self.label_fraction,
                np.ones((len(self), 1), bool) if self.kind == "regression" else self.belongs(),
                one_each=self.kind != "multilabel",
                seed=seed,
            )
        return parts


def found_in(
    task: Task, known: Sequence[str], holds: Callable[[int, tuple[float, float]], bool] | None = None
) -> tuple[Task, NDArray[np.intp]]:
    """The part of a task whose videos a store has, what is missing noted, and where in the store each one is.

    Args:
        known: the store's ids.
        holds: whether the store's video at a place has anything of a span, for tasks with spans; one that has not is missing.

    Raises:
        TooFewVideosError: where train, val or test is left empty, or training with fewer than two classes.
        InputError: where a name fits several of the store's videos, or several names one.
    """
    matches = match_ids(task.ids, known, task.name, task.spelling)
    matched = list(matches.places)
    if holds is not None and task.spans is not None:
        matched = [
            place if place is not None and holds(place, span) else None
            for place, span in zip(matched, task.spans, strict=True)
        ]
    inside = [row for row, index in enumerate(matched) if index is not None]
    if not task.benchmark:  # nothing that is drawn or trained depends on the order of the labels
        inside.sort(key=lambda row: task.ids[row])
    rows = np.array(inside, dtype=np.intp)
    gone = [row for row, index in enumerate(matched) if index is None]
    here = replace(
        task.take(rows),
        missing=(*task.missing, *(task.ids[row] for row in gone)),
        missing_splits=(*task.missing_splits, *("" if task.splits is None else str(task.splits[row]) for row in gone)),
        notes=tuple(filter(None, (*task.notes, matches.note()))),
    )
    whole = here
    here, kept = _learnable(here) if not task.benchmark else (here, np.arange(len(here)))
    places = np.array([matched[row] for row in rows[kept]], dtype=np.intp)
    some = f" Its videos are named like '{task.ids[0]}' and the store's like '{known[0]}'." if len(known) else ""
    parts = whole.split(0) if len(whole) else dict.fromkeys(SPLITS, rows)
    one_class = task.kind == "classification" and len(set(whole.targets[parts["train"]].tolist())) < 2
    if not one_class and len(here) < len(whole):
        parts = here.split(0)
    empty = [name for name in SPLITS if not len(parts[name])]
    if empty:
        raise TooFewVideosError(
            f"the store has {len(rows)} of the {len(task)} videos of {task.name}, and none for {' and '.join(empty)}; "
            f"embed more of them, or write the ids that `lvmae inspect` shows.{some}"
        )
    if one_class:
        raise TooFewVideosError(
            f"the store's training videos of {task.name} are all of one class; embed more of them.{some if gone else ''}"
        )
    return here, places


def _learnable(task: Task) -> tuple[Task, NDArray[np.intp]]:
    """One's own labels without the classes that no training video in the store has; and the rows that are left."""
    rows = np.arange(len(task))
    belongs = task.belongs()
    if not belongs.shape[1] or not len(task):
        return task, rows
    train = task.splits == "train" if task.splits is not None else np.ones(len(task), bool)
    learnt = belongs[train].any(axis=0)
    if learnt.all():
        return task, rows
    lost = [name for name, known in zip(task.classes, learnt, strict=True) if not known]
    said = f"{len(lost)} of {len(learnt)} classes have no training video in the store and are left out, such as '{lost[0]}'."
    if task.kind == "multilabel":
        targets: NDArray[Any] = belongs[:, learnt]
    else:
        rows = np.flatnonzero(belongs[:, learnt].any(axis=1))
        task = task.take(rows)
        targets = (np.cumsum(learnt) - 1)[task.targets]
    classes = tuple(name for name, known in zip(task.classes, learnt, strict=True) if known)
    return replace(task, targets=targets, classes=classes, notes=(*task.notes, said)), rows
