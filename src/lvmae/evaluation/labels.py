"""Labels -> a `Task`: which videos, what is to be told about each, and who trains, validates and tests.

A label file is a CSV (or, by its suffix, a TSV) with a header: `id` (or `video`), `label`, and if wanted `split`
(train, val or test). What kind of labels they are is read off them, and can be said instead:

- a cell with `|` makes all of them sets of classes: "multilabel";
- numbers of which at least one is not whole are targets: "regression" (whole numbers are taken for names of classes);
- everything else are names of classes: "classification".

A wrong file is refused with one sentence (`InputError`).
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError

KINDS = ("classification", "multilabel", "regression")
SPLITS = ("train", "val", "test")
_ID_COLUMNS = ("id", "video", "video_id")
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_TEST_SHARE = _VAL_SHARE = 0.2
_SPLIT_STREAM, _SHARE_STREAM = 1, 4  # tell these uses of a seed from the others, so that no two streams are the same


class TooFewVideosError(InputError):
    """A store has too few of a task's videos to train, validate and test on."""


@dataclass(frozen=True)
class Task:
    """What a probe is to learn.

    Attributes:
        name: shown in tables.
        kind: "classification", "multilabel" or "regression".
        ids: (V) names of videos, as the labels have them.
        targets: int64 (V) class numbers, bool (V, C) class sets, or float64 (V) values.
        classes: (C) names; none for a regression.
        splits: (V) "train", "val" or "test"; None where every seed draws its own split.
        spans: (V) [start, end] in seconds, where only a part of a video is meant.
        missing: names the labels have and the store has not, filled in by `found_in`.
        label_fraction: the share of the train labels that may be learnt from; see `split`.
        benchmark: whether it is one of the paper's, which are trained on with the paper's settings to the letter.
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

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise InputError(
                f"the share of labels to train on must be above 0 and at most 1, not {self.label_fraction}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.intp]) -> Task:
        """The task on some of its videos."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            targets=self.targets[rows],
            splits=None if self.splits is None else self.splits[rows],
            spans=None if self.spans is None else tuple(self.spans[i] for i in rows),
        )

    def split(self, seed: int) -> dict[str, NDArray[np.intp]]:
        """Rows of train, val and test: the fixed ones, or 60/20/20 drawn by `seed`, each class in its share.

        With a `label_fraction` below 1, train is that share of itself, drawn by `seed`: rounded in every class, and never
        less than one video a class. Of a larger share more are drawn, and the same ones first. Val and test stay whole.
        """
        if self.splits is not None:
            parts = {name: np.flatnonzero(self.splits == name) for name in SPLITS}
        else:
            strata = self.targets if self.kind == "classification" else np.zeros(len(self), np.int64)
            parts = _drawn_split(strata, seed)
        if self.label_fraction < 1:
            parts["train"] = _share(self, parts["train"], seed)
        return parts


def load_labels(path: str | Path, *, kind: str | None = None, known: Sequence[str] | None = None) -> Task:
    """Reads a label file.

    Args:
        path: the file; see this module's docstring for its form.
        kind: one of `KINDS`, instead of reading it off the labels.
        known: the ids of a store; labels of any other video are refused.

    Raises:
        InputError: for a file that is missing or malformed, unknown or repeated videos, empty or NaN labels, one class
            only, a class with a single video, a constant target, or a split that is incomplete or shares videos with
            another.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise InputError(f"'{kind}' is no kind of labels; choose {', '.join(KINDS)}")
    rows = _rows(path)
    _refuse_repeats(path, rows)
    ids = [row["id"] for row in rows]
    if known is not None:
        places = match_ids(ids, known, path)
        matched = [(row, place) for row, place in zip(rows, places, strict=True) if place is not None]
        found = {row["id"] for row, _ in matched}
        unknown = [name for name in ids if name not in found]
        if unknown:
            some = ", ".join(f"'{name}'" for name in unknown[:3])
            raise InputError(
                f"{len(unknown)} of the {len(ids)} videos in {path} are not in the store, such as {some}; "
                "write the ids that `lvmae inspect` shows, or remove these rows"
            )
        _refuse_repeats(path, [{**row, "id": known[place]} for row, place in matched])
    labels = [row["label"] for row in rows]
    kind = kind or _kind_of(labels)
    splits = _splits(path, rows)
    targets, classes = _TARGETS[kind](path, labels)
    if splits is not None and kind == "classification":
        for number, name in enumerate(classes):
            if not ((targets == number) & (splits == "train")).any():
                raise InputError(f"the class '{name}' in {path} has no video in train, so that no probe can learn it")
    task = Task(path.stem, kind, tuple(ids), targets, classes, splits)
    if splits is None and any(not len(part) for part in task.split(0).values()):
        raise InputError(f"{path} labels {len(ids)} videos, too few to split into train, val and test; label more")
    return task


def match_ids(names: Iterable[str], known: Sequence[str], source: str | Path) -> list[int | None]:
    """Where each name is among a store's ids: as it stands, or else by the last part of its path, suffix or not.

    Raises:
        InputError: where a name fits several ids.
    """
    exact = {id_: index for index, id_ in enumerate(known)}
    loose: dict[str, set[int]] = {}
    for index, id_ in enumerate(known):
        for alias in _aliases(id_):
            loose.setdefault(alias, set()).add(index)
    found: list[int | None] = []
    for name in names:
        place = exact.get(name)
        if place is None:
            fitting = next((loose[alias] for alias in _aliases(name) if alias in loose), set())
            if len(fitting) > 1:
                some = " and ".join(f"'{known[i]}'" for i in sorted(fitting)[:2])
                raise InputError(
                    f"'{name}' in {source} fits several videos of the store, such as {some}; write the whole id"
                )
            place = next(iter(fitting), None)
        found.append(place)
    return found


def found_in(
    task: Task, known: Sequence[str], holds: Callable[[int, tuple[float, float]], bool] | None = None
) -> tuple[Task, NDArray[np.intp]]:
    """The part of a task whose videos a store has, what is missing noted, and where in the store each one is.

    Args:
        known: the store's ids.
        holds: whether the store's video at a place has anything of a span, for tasks with spans; one that has not is missing.

    Raises:
        TooFewVideosError: where train, val or test is left empty, or training with fewer than two classes.
    """
    matched = match_ids(task.ids, known, task.name)
    if holds is not None and task.spans is not None:
        matched = [
            place if place is not None and holds(place, span) else None
            for place, span in zip(matched, task.spans, strict=True)
        ]
    rows = np.array([row for row, index in enumerate(matched) if index is not None], dtype=np.intp)
    places = np.array([index for index in matched if index is not None], dtype=np.intp)
    here = replace(
        task.take(rows), missing=tuple(n for n, index in zip(task.ids, matched, strict=True) if index is None)
    )
    parts = here.split(0)
    empty = [name for name in SPLITS if not len(parts[name])]
    if empty:
        raise TooFewVideosError(
            f"the store has {len(here)} of the {len(task)} videos of {task.name}, and none for {' and '.join(empty)}; "
            "embed more of them"
        )
    if task.kind == "classification" and len(set(here.targets[parts["train"]].tolist())) < 2:
        raise TooFewVideosError(f"the store's training videos of {task.name} are all of one class; embed more of them")
    return here, places


def _aliases(name: str) -> list[str]:
    last = PurePosixPath(name.replace("\\", "/"))
    return [last.name, last.stem]


# ---------------------------------------------------------------------------------------------- reading the file


def _rows(path: Path) -> list[dict[str, str]]:
    """One dictionary a video: id, label, split ("" where there is none), line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the label file {path} cannot be read ({error}); give a CSV file with the columns id and label"
        ) from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
    id_column = next((columns[c] for c in _ID_COLUMNS if c in columns), None)
    if id_column is None or "label" not in columns:
        header = ", ".join(columns) or "nothing"
        raise InputError(
            f"the first line of {path} must name the columns id and label (and split, if wanted); it names {header}"
        )
    rows = [
        {
            "id": (row[id_column] or "").strip(),
            "label": (row[columns["label"]] or "").strip(),
            "split": (row[columns["split"]] or "").strip() if "split" in columns else "",
            "line": str(reader.line_num),
        }
        for row in reader
    ]
    if not rows:
        raise InputError(f"{path} labels no video; it has a header and nothing below it")
    for row in rows:
        if not row["id"]:
            raise InputError(f"line {row['line']} of {path} names no video")
        if not row["label"] or row["label"].lower() == "nan":
            raise InputError(
                f"video '{row['id']}' on line {row['line']} of {path} has no label; fill it in or remove the line"
            )
    return rows


def _refuse_repeats(path: Path, rows: list[dict[str, str]]) -> None:
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        before = first.setdefault(row["id"], row)
        if before is row:
            continue
        if before["split"] != row["split"]:
            raise InputError(
                f"video '{row['id']}' is in both {before['split'] or 'no split'} and {row['split'] or 'no split'} "
                f"(lines {before['line']} and {row['line']} of {path}); a test must not share videos with what it tests"
            )
        raise InputError(
            f"video '{row['id']}' has two labels, on lines {before['line']} and {row['line']} of {path}; keep one"
        )


def _splits(path: Path, rows: list[dict[str, str]]) -> NDArray[np.str_] | None:
    if not any(row["split"] for row in rows):
        return None
    for row in rows:
        if row["split"].lower() not in _SPLIT_NAMES:
            raise InputError(
                f"the split of video '{row['id']}' in {path} is '{row['split']}'; it must be train, val or test"
            )
    splits = np.array([_SPLIT_NAMES[row["split"].lower()] for row in rows])
    for name in SPLITS:
        if name not in splits:
            raise InputError(
                f"{path} has no video in {name}; name all three, train, val and test, or leave the column split out"
            )
    return splits


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _kind_of(labels: list[str]) -> str:
    if any("|" in label for label in labels):
        return "multilabel"
    numbers = [_number(label) for label in labels]
    if all(n is not None for n in numbers) and any(n is not None and not n.is_integer() for n in numbers):
        return "regression"
    return "classification"


def _class_targets(path: Path, labels: list[str]) -> tuple[NDArray[Any], tuple[str, ...]]:
    counts = Counter(labels)
    if len(counts) == 1:
        raise InputError(
            f"all {len(labels)} videos in {path} have the label '{labels[0]}'; a probe needs at least two classes"
        )
    single = sorted(name for name, count in counts.items() if count == 1)
    if single:
        others = f" (and {len(single) - 1} more classes)" if len(single) > 1 else ""
        raise InputError(
            f"the class '{single[0]}' in {path} has a single video{others}, which cannot be both learnt and tested; "
            "label more of them or remove it"
        )
    classes = tuple(sorted(counts))
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[label] for label in labels], dtype=np.int64), classes


def _set_targets(path: Path, labels: list[str]) -> tuple[NDArray[Any], tuple[str, ...]]:
    sets = [{part.strip() for part in label.split("|")} - {""} for label in labels]
    counts = Counter(name for names in sets for name in names)
    if len(counts) < 2:
        raise InputError(f"the labels in {path} name {len(counts)} class in all; a probe needs at least two classes")
    single = sorted(name for name, count in counts.items() if count == 1)
    if single:
        raise InputError(
            f"the class '{single[0]}' in {path} has a single video, which cannot be both learnt and tested; "
            "label more of them or remove it"
        )
    constant = sorted(name for name, count in counts.items() if count == len(sets))
    if constant:
        raise InputError(
            f"the class '{constant[0]}' in {path} is on every video, so that there is nothing to tell; remove it"
        )
    classes = tuple(sorted(counts))
    return np.array([[name in names for name in classes] for names in sets], dtype=bool), classes


def _value_targets(path: Path, labels: list[str]) -> tuple[NDArray[Any], tuple[str, ...]]:
    values = [_number(label) for label in labels]
    for label, value in zip(labels, values, strict=True):
        if value is None or not math.isfinite(value):
            raise InputError(f"the label '{label}' in {path} is not a finite number, which a regression needs")
    targets = np.array(values, dtype=np.float64)
    if np.ptp(targets) == 0:
        raise InputError(
            f"all {len(labels)} targets in {path} are {labels[0]}; a constant cannot be predicted better or worse"
        )
    return targets, ()


_TARGETS = {"classification": _class_targets, "multilabel": _set_targets, "regression": _value_targets}


def _drawn_split(strata: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.intp]]:
    """60/20/20 of every stratum, rounded; test gets one wherever there are two, and val wherever there are three."""
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    parts: dict[str, list[NDArray[np.intp]]] = {name: [] for name in SPLITS}
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        n_test = max(round(_TEST_SHARE * len(rows)), min(1, len(rows) - 1))
        n_val = max(round(_VAL_SHARE * len(rows)), min(1, len(rows) - 1 - n_test))
        parts["test"].append(rows[:n_test])
        parts["val"].append(rows[n_test : n_test + n_val])
        parts["train"].append(rows[n_test + n_val :])
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def _share(task: Task, train: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """`label_fraction` of the rows of train, each class in its share and with one video at least."""
    rng = np.random.default_rng([seed, _SHARE_STREAM])
    shuffled = rng.permutation(train)
    if task.kind == "classification":
        strata = [shuffled[task.targets[shuffled] == number] for number in np.unique(task.targets[train])]
    else:
        strata = [shuffled]
    chosen = [rows[: max(1, round(task.label_fraction * len(rows)))] for rows in strata]
    if task.kind == "multilabel":  # a class that the share left out gets its first video
        for number in np.flatnonzero(task.targets[train].any(axis=0) & ~task.targets[chosen[0]].any(axis=0)):
            chosen.append(shuffled[task.targets[shuffled, number]][:1])
    return np.unique(np.concatenate(chosen))
