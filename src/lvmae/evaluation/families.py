"""All tasks of a family in one go, as one row of its table, and the published rows to set it beside.

result = probe_family("lvu", "reps", "annotations", raw="store")
print(result.to_text(compare=True))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError
from lvmae.evaluation.matching import match_ids
from lvmae.evaluation.probing import probe
from lvmae.evaluation.settings import ProbeSettings
from lvmae.evaluation.tables import Predictions, ProbeTable, Rendered
from lvmae.evaluation.task import Task, TooFewVideosError
from lvmae.evaluation.tasks import AVERAGE, family_of, load_task
from lvmae.process import own_state
from lvmae.store import EmbeddingStore


@dataclass(frozen=True)
class FamilyResult(Rendered):
    """The results of a family of tasks: a table for each task that could run, and the reason for each that could not.

    Attributes:
        tables: one a task, in the family's order.
        columns: the parts of the family, and `AVERAGE` where the published table has it.
        averaged: the parts whose mean stands there.
        skipped: task -> reason, where the store has too few of its videos.
        skipped_absent: (task, split, video) of the videos that were missing there.
        published: model -> (probe, figures by column), as published.
    """

    tables: tuple[ProbeTable, ...]
    columns: tuple[str, ...]
    averaged: tuple[str, ...]
    skipped: dict[str, str]
    skipped_absent: tuple[tuple[str, str, str], ...] = ()
    published: dict[str, tuple[str, dict[str, float]]] = field(default_factory=dict)

    def cells(self, *, compare: bool = False) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows as text: one row per set of features and probe, then the published figures to compare."""
        tables = {_part(table.task): table for table in self.tables}
        lower = {name: f" ({table.metric})" for name, table in tables.items() if table.lower_is_better}
        header = ["features", "probe", *(name + lower.get(name, "") for name in self.columns)]
        kinds = dict.fromkeys((row.features, row.probe) for table in self.tables for row in table.rows)
        rows = []
        for features, name in kinds:
            means: dict[str, float | None] = {}
            for part, table in tables.items():
                means[part] = next((r.mean for r in table.rows if (r.features, r.probe) == (features, name)), None)
            rows.append([features, name, *map(_figure, self._with_average(means))])
        for chance in dict.fromkeys(name for table in self.tables for name in table.chance):
            known = {part: table.chance.get(chance) for part, table in tables.items()}
            rows.append([f"chance: {chance}", "", *map(_figure, self._with_average(known))])
        if compare:
            rows += [
                [f"{model} (published)", probe_, *(_figure(figures.get(column)) for column in self.columns)]
                for model, (probe_, figures) in self.published.items()
            ]
        return header, rows

    def _with_average(self, means: dict[str, float | None]) -> list[float | None]:
        known = [value for part in self.averaged if (value := means.get(part)) is not None]
        average = float(np.mean(known)) if known and len(known) == len(self.averaged) else None  # of all, or of none
        return [average if column == AVERAGE else means.get(column) for column in self.columns]

    def notes(self) -> list[str]:
        """Returns how many videos each figure is from, and which are missing."""
        stands = ", ".join(
            f"{_part(table.task)} {table.counts['test']} of {table.annotated['test']}" for table in self.tables
        )
        gone = len(self.absent())
        averaged = (
            f"; the average is of all {len(self.averaged)} of {', '.join(self.averaged)}" if self.averaged else ""
        )
        notes = [f"Test videos in the store: {stands}.", f"Means over {self.tables[0].seeds} seeds{averaged}."]
        errors = []
        for table in self.tables:
            widest = max(table.rows, key=lambda row: row.stderr)
            errors.append(f"{_part(table.task)} {widest.stderr:.{2 if table.lower_is_better else 1}f}")
        notes.append(f"Standard errors over test videos, at most: {', '.join(errors)}.")
        if gone:
            notes.append(f"{gone} annotated videos, over all tasks, are not in the store.")
        if (share := self.tables[0].label_fraction) < 1:
            notes.append(f"Trained on {100 * share:g} % of the train labels, drawn by each seed.")
        notes += dict.fromkeys(said for table in self.tables for said in table.said)
        return [*notes, *(f"{task} was not run: {reason}" for task, reason in self.skipped.items())]

    def absent(self) -> list[tuple[str, str, str]]:
        return [*(one for table in self.tables for one in table.absent()), *self.skipped_absent]

    def predicted(self) -> list[Predictions]:
        return [one for table in self.tables for one in table.predicted()]

    def records(self) -> list[dict[str, Any]]:
        return [record for table in self.tables for record in table.records()]

    def to_dict(self) -> dict[str, Any]:
        """Returns every table with all figures and its missing videos, so that the figures can be traced."""
        return {"tables": [table.to_dict() for table in self.tables], "skipped": dict(self.skipped)}


@own_state()
def probe_family(
    name: str,
    features: str | Path | EmbeddingStore,
    annotations: str | Path,
    *,
    raw: str | Path | EmbeddingStore | None = None,
    probes: Sequence[str] | None = None,
    seeds: int = 5,
    label_fraction: float | None = None,
    run: str | Path | None = None,
    settings: ProbeSettings | Mapping[str, Any] | None = None,
    device: str | None = None,
    protocol: str | None = None,
    readouts: Sequence[str] | None = None,
    class_weight: str | None = None,
) -> FamilyResult:
    """Runs all tasks of a family, with the arguments of `probe` and `load_task`.

    Raises:
        InputError: where an annotation file is missing, or the store has too few videos for any of the tasks.
    """
    store = EmbeddingStore.open(features)
    family = family_of(name)
    tasks = [load_task(f"{name}/{part}" if part else name, annotations) for part in family.parts or ("",)]
    tables: list[ProbeTable] = []
    skipped: dict[str, str] = {}
    absent: list[tuple[str, str, str]] = []
    for task in tasks:
        try:
            tables.append(
                probe(
                    store,
                    task,
                    raw=raw,
                    probes=probes,
                    seeds=seeds,
                    label_fraction=label_fraction,
                    run=run,
                    settings=settings,
                    device=device,
                    protocol=protocol,
                    readouts=readouts,
                    class_weight=None if task.kind == "regression" else class_weight,
                )
            )
        except TooFewVideosError as error:
            skipped[task.name] = str(error)
            absent += _absent(task, store)
    if not tables:
        raise InputError(f"none of the tasks of {name} can be run: {next(iter(skipped.values()))}")
    columns = [_part(task.name) for task in tasks]
    if family.averaged:  # after the last of those that it is of
        columns.insert(max(columns.index(part) for part in family.averaged) + 1, AVERAGE)
    published = {
        model: (family.published_probes.get(model, ""), dict(figures)) for model, figures in family.published.items()
    }
    return FamilyResult(tuple(tables), tuple(columns), family.averaged, skipped, tuple(absent), published)


def _absent(task: Task, store: EmbeddingStore) -> list[tuple[str, str, str]]:
    places = match_ids(task.ids, store.ids, task.name, task.spelling).places
    splits = [""] * len(task) if task.splits is None else [str(split) for split in task.splits]
    return [
        (task.name, split, name) for name, split, place in zip(task.ids, splits, places, strict=True) if place is None
    ]


def _part(task: str) -> str:
    return task.rpartition("/")[2]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
