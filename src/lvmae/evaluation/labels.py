"""Labels -> a `Task`.

A label file is a table (CSV, TSV, JSONL or Parquet) with the columns `id` (or `video`) and `label`, and if wanted
`split` (train, val or test) or a column of groups. What kind of labels they are is read off them, and can be said instead:

- a cell with `|` makes all of them sets of classes: "multilabel";
- numbers of which at least one is not whole are targets: "regression" (whole numbers are taken for names of classes);
- everything else are names of classes: "classification".

A wrong file is refused with one sentence (`InputError`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError
from lvmae.evaluation.class_names import as_number, is_missing, one_name_a_class
from lvmae.evaluation.matching import match_ids
from lvmae.evaluation.splits import SPLITS
from lvmae.evaluation.task import KINDS, Task
from lvmae.files.table_files import Table, cell_text, column_of, read_table
from lvmae.library.spans import ID_COLUMNS, has_times
from lvmae.store import EmbeddingStore

_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """One row of a label file: text without white space around it, and where it stands in the file."""

    id: str
    label: str
    split: str
    group: str
    where: str


def load_labels(
    path: str | Path, *, kind: str | None = None, known: Sequence[str] | None = None, group: str | None = None
) -> Task:
    """Reads a label file.

    Args:
        path: the file; see this module's docstring for its form.
        kind: one of `KINDS`, instead of reading it off the labels.
        known: the ids of a store, one of whose videos must be labelled. What else is labelled is counted by `found_in`.
        group: the column of what must stay on one side of a drawn split, such as the film that clips are of.

    Raises:
        InputError: for a file that is missing or malformed, repeated videos, missing labels, classes that differ in case
            or by look alone, one class only, a class with a single video, a constant target, a split that is incomplete or
            shares videos or groups with another, or no video of the store.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise InputError(f"'{kind}' is no kind of labels; choose {', '.join(KINDS)}")
    rows = _rows(path, group)
    _refuse_repeats(path, rows)
    absent = [] if known is None else _strangers(path, rows, known)
    try:
        return _task_of(path, rows, kind, with_groups=group is not None)
    except InputError as error:
        if not absent:
            raise
        raise InputError(
            f"{str(error).rstrip('.')}; also, {len(absent)} of its {len(rows)} videos are not in the store, such as '{absent[0]}'"
        ) from None


def _task_of(path: Path, rows: list[Labelled], kind: str | None, *, with_groups: bool) -> Task:
    ids = [row.id for row in rows]
    kind = kind or _kind_of(path, rows)
    splits = splits_of(path, rows)
    targets, classes, notes = _TARGETS[kind](path, rows)
    if splits is not None and kind != "regression":
        _refuse_unlearnt(path, targets, classes, splits)
    groups = tuple(row.group for row in rows) if with_groups else None
    if groups is not None and splits is not None:
        _refuse_shared_groups(path, rows, splits)
    task = Task(path.stem, kind, tuple(ids), targets, classes, splits, groups=groups, notes=tuple(notes))
    if splits is None and any(not len(part) for part in task.split(0).values()):
        raise InputError(f"{path} labels {len(ids)} videos, too few to split into train, val and test; label more")
    return task


def labelled_ids(path: str | Path, store: str | Path | EmbeddingStore) -> list[str]:
    """The ids of a store's videos that a table with a column of ids names, whatever else stands in it."""
    table, known = read_label_table(Path(path)), EmbeddingStore.open(store).ids
    column = column_of(table.columns, ID_COLUMNS)
    if column is None:
        raise InputError(f"{path} has no column id; it names {', '.join(table.columns) or 'nothing'}")
    names = dict.fromkeys(cell_text(row.values.get(column)) for row in table.rows)
    return [known[place] for place in match_ids(filter(None, names), known, path).places if place is not None]


# ---------------------------------------------------------------------------------------------- reading the file


def read_label_table(path: Path) -> Table:
    """The table of a label file; an error says what such a file must be."""
    try:
        return read_table(path)
    except InputError as error:
        raise InputError(
            f"the label file cannot be read: {str(error).rstrip('.')}; give a table with the columns id and label"
        ) from None


def is_on_spans(path: str | Path) -> bool:
    """Whether a label file labels spans of time (it has the columns start and end), not whole videos."""
    return has_times(read_label_table(Path(path)))


def _rows(path: Path, group: str | None) -> list[Labelled]:
    table = read_label_table(path)
    if has_times(table):
        raise InputError(
            f"{path} has the columns start and end, so its labels are on spans of time, not on whole videos"
        )
    id_column, label_column = column_of(table.columns, ID_COLUMNS), column_of(table.columns, ("label",))
    if id_column is None or label_column is None:
        header = ", ".join(column.lower() for column in table.columns) or "nothing"
        raise InputError(
            f"the first line of {path} must name the columns id and label (and split, if wanted); it names {header}"
        )
    split_column = column_of(table.columns, ("split",))
    group_column = None if group is None else column_of(table.columns, (group.strip().lower(),))
    if group is not None and group_column is None:
        raise InputError(f"{path} has no column '{group}' of groups; it names {', '.join(table.columns)}")
    if not table.rows:
        raise InputError(f"{path} labels no video; it has a header and nothing below it")
    rows = [
        Labelled(
            cell_text(row.values.get(id_column)),
            label_text(row.values.get(label_column)),
            "" if split_column is None else cell_text(row.values.get(split_column)),
            "" if group_column is None else cell_text(row.values.get(group_column)),
            row.where,
        )
        for row in table.rows
    ]
    for row in rows:
        check_row(path, row)
        if group is not None and not row.group:
            raise InputError(f"{row.where} of {path} names no {group} for video '{row.id}'; fill it in")
    return rows


def check_row(path: Path, row: Labelled) -> None:
    """Refuses a row without a video or without a label."""
    if not row.id or row.id.casefold() in ("nan", "null", "<na>"):
        raise InputError(f"{row.where} of {path} names no video")
    if any(is_missing(part.strip()) for part in row.label.split("|") if part.strip()) or not row.label:
        shown = f" (it says '{row.label}')" if row.label else ""
        raise InputError(
            f"video '{row.id}' on {row.where} of {path} has no label; fill it in or remove the line{shown}"
        )


def label_text(value: Any) -> str:
    """A label as text; a list, as JSON and Parquet have it, with bars between its items."""
    if isinstance(value, list | tuple | np.ndarray):
        return "|".join(cell_text(item) for item in value) or "|"
    return cell_text(value)


def _refuse_repeats(path: Path, rows: list[Labelled]) -> None:
    first: dict[str, Labelled] = {}
    for row in rows:
        before = first.setdefault(row.id, row)
        if before is row:
            continue
        kind, first_number = before.where.split()
        lines = f"{kind}s {first_number} and {row.where.split()[1]} of {path}"
        if before.split != row.split:
            raise InputError(
                f"video '{row.id}' is in both {before.split or 'no split'} and {row.split or 'no split'} "
                f"({lines}); a test must not share videos with what it tests"
            )
        raise InputError(f"video '{row.id}' has two labels, on {lines}; keep one")


def _strangers(path: Path, rows: list[Labelled], known: Sequence[str]) -> list[str]:
    """The videos that a store has not; a file none of whose videos it has is one of other names, and refused."""
    ids = [row.id for row in rows]
    absent = [id_ for id_, place in zip(ids, match_ids(ids, known, path).places, strict=True) if place is None]
    if len(absent) == len(ids):
        some = f", where ids look like '{known[0]}'" if len(known) else ", which is empty"
        raise InputError(
            f"{len(ids)} of the {len(ids)} videos in {path} are not in the store, such as '{ids[0]}'{some}; "
            "write the ids that `lvmae inspect` shows"
        )
    return absent


def splits_of(path: Path, rows: Sequence[Labelled]) -> NDArray[np.str_] | None:
    """(V) "train", "val" or "test"; None if no row names a split."""
    if not any(row.split for row in rows):
        return None
    for row in rows:
        if row.split.lower() not in _SPLIT_NAMES:
            raise InputError(f"the split of video '{row.id}' in {path} is '{row.split}'; it must be train, val or test")
    splits = np.array([_SPLIT_NAMES[row.split.lower()] for row in rows])
    for name in SPLITS:
        if name not in splits:
            raise InputError(
                f"{path} has no video in {name}; name all three, train, val and test, or leave the column split out"
            )
    return splits


def _refuse_unlearnt(path: Path, targets: NDArray[Any], classes: Sequence[str], splits: NDArray[np.str_]) -> None:
    for number, name in enumerate(classes):
        has = targets[:, number] if targets.ndim > 1 else targets == number
        if not (has & (splits == "train")).any():
            raise InputError(f"the class '{name}' in {path} has no video in train, so that no probe can learn it")


def _refuse_shared_groups(path: Path, rows: Sequence[Labelled], splits: NDArray[np.str_]) -> None:
    first: dict[str, str] = {}
    for row, split in zip(rows, splits.tolist(), strict=True):
        if first.setdefault(row.group, split) != split:
            raise InputError(
                f"the group '{row.group}' in {path} is in both {first[row.group]} and {split}; "
                "a test must not share groups with what it tests"
            )


def _kind_of(path: Path, rows: Sequence[Labelled]) -> str:
    if any("|" in row.label for row in rows):
        return "multilabel"
    numbers = [as_number(row.label) for row in rows]
    broken = [n for n in numbers if n is not None and not n.is_integer()]
    if all(n is not None for n in numbers):
        return "regression" if broken else "classification"
    words = [row for row, n in zip(rows, numbers, strict=True) if n is None]
    if broken and len(words) < len(rows) / 2:
        raise InputError(
            f"the label '{words[0].label}' on {words[0].where} of {path} is no number, as {len(rows) - len(words)} of the "
            f"{len(rows)} labels are; correct it, or say what kind of labels they are"
        )
    return "classification"


# --------------------------------------------------------------------------------------------------------- targets

_Targets = tuple[NDArray[Any], tuple[str, ...], list[str]]


def _class_targets(path: Path, rows: Sequence[Labelled]) -> _Targets:
    labels, notes = one_name_a_class([row.label for row in rows], path)
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
    return np.array([number[label] for label in labels], dtype=np.int64), classes, notes


def _set_targets(path: Path, rows: Sequence[Labelled]) -> _Targets:
    parts = [[part.strip() for part in row.label.split("|") if part.strip()] for row in rows]
    names, notes = one_name_a_class([part for some in parts for part in some], path)
    flat = iter(names)
    sets = [{next(flat) for _ in some} for some in parts]
    counts = Counter(name for some in sets for name in some)
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
            f"the class '{constant[0]}' in {path} is on every video, so there is nothing to predict; remove it"
        )
    classes = tuple(sorted(counts))
    return np.array([[name in some for name in classes] for some in sets], dtype=bool), classes, notes


def _value_targets(path: Path, rows: Sequence[Labelled]) -> _Targets:
    values = [as_number(row.label) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is None or not math.isfinite(value):
            raise InputError(f"the label '{row.label}' in {path} is not a finite number, which a regression needs")
    targets = np.array(values, dtype=np.float64)
    if np.ptp(targets) == 0:
        raise InputError(
            f"all {len(rows)} targets in {path} are {rows[0].label}; a constant cannot be predicted better or worse"
        )
    return targets, (), []


_TARGETS = {"classification": _class_targets, "multilabel": _set_targets, "regression": _value_targets}
