"""The base class of a family of benchmark tasks: its reader, splits, metric and published figures."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from lvmae.errors import InputError
from lvmae.evaluation.task import Task

AVERAGE = "average"


class TaskFamily(ABC):
    """A benchmark: one task, or several that are read from the same annotations.

    A third party makes one available by an entry point of the group `lvmae.tasks`, or by its `module:Class`.

    Attributes:
        name: of the family; its only task has the same name, and several are `name/part`.
        parts: the names of several tasks, in the order of the published table; none where the family is one task.
        averaged: the parts whose mean the table shows.
        published: model -> part (or the family's name) -> its published figure, and `AVERAGE` if there is one.
        published_probes: model -> what stands beside it in the column `probe`.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()
    averaged: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    published_probes: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def read(self, part: str, annotations: Path) -> Task:
        """Reads the task `part` ("" if there is only one) from the annotation files in a folder.

        Raises:
            InputError: for a missing file, or one that is not in the form it is distributed in.
        """

    def tasks(self) -> tuple[str, ...]:
        """Returns the names of the tasks, as `load_task` takes them."""
        return tuple(f"{self.name}/{part}" for part in self.parts) or (self.name,)


def existing(folder: Path, *candidates: str, file: str) -> Path:
    """The first of the folders below `folder` that holds `file`."""
    for candidate in candidates:
        if (folder / candidate / file).is_file():
            return folder / candidate
    raise InputError(f"{folder / candidates[0] / file} does not exist; give the folder that holds the annotation files")


def annotation_rows(path: Path, delimiter: str, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of an annotation file, which is written without quotes."""
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


def refuse_shared(folder: Path, ids: Sequence[str], splits: Sequence[str]) -> None:
    """Refuses a video that is in two splits, or in one of them twice."""
    first: dict[str, str] = {}
    for id_, split in zip(ids, splits, strict=True):
        if id_ in first:
            raise InputError(
                f"video '{id_}' in {folder} is in both {first[id_]} and {split}; a test must not share videos with what it tests"
                if first[id_] != split
                else f"video '{id_}' is twice in the {split} split in {folder}; keep one"
            )
        first[id_] = split
