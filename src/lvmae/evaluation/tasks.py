"""The paper's benchmarks, read from their public annotation files: LVU, Breakfast, COIN (method: section 6).

`load_task("lvu/director", folder)`. The folder holds `lvu_1.0/TASK/{train,val,test}.csv`, `breakfast/{train,test}.csv`
or `COIN.json`, as distributed; it may also be the inner folder itself.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np

from lvmae.errors import InputError
from lvmae.evaluation.labels import SPLITS, Task

LVU_CLASSES = ("director", "genre", "writer", "year", "scene", "way_speaking", "relationship")
LVU_REGRESSIONS = ("like_ratio", "view_count")
LVU = (*LVU_CLASSES, *LVU_REGRESSIONS)
TASKS = (*(f"lvu/{name}" for name in LVU), "breakfast", "coin")
_HELD_OUT_EVERY = 5


def load_task(name: str, annotations: str | Path) -> Task:
    """One of `TASKS` from the annotation files under `annotations`.

    Raises:
        InputError: for an unknown task, a missing file, or one that is not in the form it is distributed in.
    """
    folder = Path(annotations)
    if name == "breakfast":
        return _breakfast(_existing(folder, "breakfast", "train.csv"))
    if name == "coin":
        return _coin(_existing(folder, ".", "COIN.json") / "COIN.json")
    kind, _, part = name.partition("/")
    if kind != "lvu" or part not in LVU:
        raise InputError(f"there is no task '{name}'; the tasks are {', '.join(TASKS)}")
    return _lvu(part, _existing(folder, f"lvu_1.0/{part}", "train.csv", inner=part))


def _existing(folder: Path, below: str, file: str, inner: str = ".") -> Path:
    for candidate in (folder / below, folder / inner):
        if (candidate / file).is_file():
            return candidate
    raise InputError(f"{folder / below / file} does not exist; give the folder that holds the annotation files")


def _table(path: Path, delimiter: str, needed: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the annotation file {path} cannot be read ({error})") from error
    absent = [column for column in needed if column not in (reader.fieldnames or ())]
    if absent or any(row[column] is None for row in rows for column in needed):
        raise InputError(f"{path} is not in the form it is distributed in: it needs the columns {', '.join(needed)}")
    return rows


def _lvu(part: str, folder: Path) -> Task:
    """Classes by their number in the files; 10 x likes / (likes + dislikes); the natural logarithm of views."""
    columns = {"like_ratio": ("like_count", "dislike_count"), "view_count": ("view_count",)}.get(
        part, ("class_id", "class_name")
    )
    ids: list[str] = []
    splits: list[str] = []
    values: list[list[str]] = []
    for split in SPLITS:
        for row in _table(folder / f"{split}.csv", " ", ("youtube_id", *columns)):
            ids.append(row["youtube_id"])
            splits.append(split)
            values.append([row[column] for column in columns])
    _refuse_shared(folder, ids, splits)
    where, name = np.array(splits), f"lvu/{part}"
    try:
        if part in LVU_CLASSES:
            names = {int(number): label for number, label in values}
            numbers = sorted(names)
            targets = np.array([numbers.index(int(number)) for number, _ in values], dtype=np.int64)
            return Task(
                name,
                "classification",
                tuple(ids),
                targets,
                tuple(names[number] for number in numbers),
                where,
                benchmark=True,
            )
        counts = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{folder} is not in the form it is distributed in: {error}") from error
    total = counts.sum(axis=1)
    if (total <= 0).any():
        raise InputError(
            f"video '{ids[int(np.argmax(total <= 0))]}' in {folder} has a count of 0, which gives no target"
        )
    return Task(
        name,
        "regression",
        tuple(ids),
        10 * counts[:, 0] / total if part == "like_ratio" else np.log(total),
        (),
        where,
        benchmark=True,
    )


def _refuse_shared(folder: Path, ids: list[str], splits: list[str]) -> None:
    first: dict[str, str] = {}
    for id_, split in zip(ids, splits, strict=True):
        if id_ in first:
            raise InputError(
                f"video '{id_}' in {folder} is in both {first[id_]} and {split}; a test must not share videos with what it tests"
                if first[id_] != split
                else f"video '{id_}' is twice in the {split} split in {folder}; keep one"
            )
        first[id_] = split


def _breakfast(folder: Path) -> Task:
    """The ten activities. There is no val split: every fifth person of train is held out as val."""
    needed = ("file_name", "action", "class_id")
    train = _table(folder / "train.csv", ",", needed)
    test = _table(folder / "test.csv", ",", needed)
    people = sorted({_person(row["file_name"]) for row in train})
    held_out = set(people[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY])
    splits = ["val" if _person(row["file_name"]) in held_out else "train" for row in train] + ["test"] * len(test)
    rows = train + test
    _refuse_shared(folder, [row["file_name"] for row in rows], splits)
    classes = tuple(sorted({row["action"] for row in rows}))
    targets = np.array([classes.index(row["action"]) for row in rows], dtype=np.int64)
    return Task(
        "breakfast",
        "classification",
        tuple(row["file_name"] for row in rows),
        targets,
        classes,
        np.array(splits),
        benchmark=True,
    )


def _person(file_name: str) -> str:
    match = re.match(r"P\d+", file_name)
    if match is None:
        raise InputError(f"the Breakfast file name '{file_name}' does not begin with a person, such as P03")
    return match.group()


def _coin(path: Path) -> Task:
    """The 180 tasks; a video is its annotated [start, end]. Every fifth training video of a class becomes val."""
    try:
        database = json.loads(path.read_text(encoding="utf-8"))["database"]
        videos = [
            (str(id_), str(v["class"]), str(v["subset"]), (float(v["start"]), float(v["end"])))
            for id_, v in database.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not in the form COIN.json is distributed in ({error!r})") from error
    if not videos:
        raise InputError(f"{path} has no videos")
    classes = tuple(sorted({label for _, label, _, _ in videos}))
    trained: dict[str, int] = {}
    splits = []
    for id_, label, subset, _ in videos:
        if subset not in {"training", "testing"}:
            raise InputError(f"video '{id_}' in {path} has the subset '{subset}', neither training nor testing")
        if subset == "testing":
            splits.append("test")
            continue
        trained[label] = trained.get(label, 0) + 1
        splits.append("val" if trained[label] % _HELD_OUT_EVERY == 0 else "train")
    targets = np.array([classes.index(label) for _, label, _, _ in videos], dtype=np.int64)
    ids, spans = tuple(v[0] for v in videos), tuple(v[3] for v in videos)
    return Task("coin", "classification", ids, targets, classes, np.array(splits), spans, benchmark=True)
