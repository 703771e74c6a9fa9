"""LVU's nine tasks in one go, as the row of the paper's table, and the published rows to set it beside.

result = probe_lvu("reps", "annotations", raw="store")
print(result.to_text(compare=True))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError
from lvmae.evaluation.labels import Task, TooFewVideosError, match_ids
from lvmae.evaluation.probing import probe
from lvmae.evaluation.published import PUBLISHED, published_probe
from lvmae.evaluation.settings import PROBES, ProbeSettings
from lvmae.evaluation.tables import ProbeTable, Rendered
from lvmae.evaluation.tasks import LVU, LVU_CLASSES, LVU_REGRESSIONS, load_task
from lvmae.process import own_state
from lvmae.store import EmbeddingStore


@dataclass(frozen=True)
class LVUResult(Rendered):
    """The tables of the tasks that could be run, and why the others could not.

    Attributes:
        tables: one a task, in LVU's order.
        skipped: task -> reason, where the store has too few of its videos.
        skipped_absent: (task, split, video) of the videos that were missing there.
    """

    tables: tuple[ProbeTable, ...]
    skipped: dict[str, str]
    skipped_absent: tuple[tuple[str, str, str], ...] = ()

    def cells(self, *, compare: bool = False) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text: one row for each set of features and probe, then, to compare, the published ones."""
        header = ["features", "probe", *LVU_CLASSES, "average", *(f"{name} (MSE)" for name in LVU_REGRESSIONS)]
        tables = {table.task.removeprefix("lvu/"): table for table in self.tables}
        kinds = dict.fromkeys((row.features, row.probe) for table in self.tables for row in table.rows)
        rows = []
        for features, name in kinds:
            means = {task: table.row(features, name).mean for task, table in tables.items()}
            accuracies = [means.get(task) for task in LVU_CLASSES]
            known = [value for value in accuracies if value is not None]
            average = float(np.mean(known)) if len(known) == len(LVU_CLASSES) else None  # of all seven, or of none
            errors = [means.get(task) for task in LVU_REGRESSIONS]
            rows.append([features, name, *(_figure(value) for value in (*accuracies, average, *errors))])
        if compare:
            rows += [
                [f"{model} (published)", published_probe(model), *map(_figure, values)]
                for model, values in PUBLISHED.items()
            ]
        return header, rows

    def notes(self) -> list[str]:
        """On how many videos each figure stands, and what is missing."""
        stands = ", ".join(
            f"{table.task.removeprefix('lvu/')} {table.counts['test']} of {table.annotated['test']}"
            for table in self.tables
        )
        gone = len(self.absent())
        notes = [
            f"Test videos in the store: {stands}.",
            f"Means over {self.tables[0].seeds} seeds; the average is of all seven accuracies.",
        ]
        if gone:
            notes.append(f"{gone} annotated videos, over all tasks, are not in the store.")
        if (share := self.tables[0].label_fraction) < 1:
            notes.append(f"Trained on {100 * share:g} % of the train labels, drawn by each seed.")
        return [*notes, *(f"{task} was not run: {reason}" for task, reason in self.skipped.items())]

    def absent(self) -> list[tuple[str, str, str]]:
        return [*(one for table in self.tables for one in table.absent()), *self.skipped_absent]

    def to_dict(self) -> dict[str, Any]:
        """Every table in full, the missing videos of each included: the manifest of what the figures stand on."""
        return {"tables": [table.to_dict() for table in self.tables], "skipped": dict(self.skipped)}


@own_state()
def probe_lvu(
    features: str | Path | EmbeddingStore,
    annotations: str | Path,
    *,
    raw: str | Path | EmbeddingStore | None = None,
    probes: Sequence[str] = PROBES,
    seeds: int = 5,
    label_fraction: float | None = None,
    run: str | Path | None = None,
    settings: ProbeSettings | None = None,
) -> LVUResult:
    """Runs the nine tasks of LVU; arguments as `probe` and `load_task` have them.

    Raises:
        InputError: where an annotation file is missing, or the store has too few videos for any of the tasks.
    """
    store = EmbeddingStore.open(features)
    tasks = [load_task(f"lvu/{name}", annotations) for name in LVU]
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
                )
            )
        except TooFewVideosError as error:
            skipped[task.name] = str(error)
            absent += _absent(task, store)
    if not tables:
        raise InputError(f"none of LVU's tasks can be run: {next(iter(skipped.values()))}")
    return LVUResult(tuple(tables), skipped, tuple(absent))


def _absent(task: Task, store: EmbeddingStore) -> list[tuple[str, str, str]]:
    assert task.splits is not None
    places = match_ids(task.ids, store.ids, task.name)
    return [
        (task.name, str(split), name)
        for name, split, place in zip(task.ids, task.splits, places, strict=True)
        if place is None
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
