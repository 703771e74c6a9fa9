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
from lvmae.evaluation.labels import TooFewVideosError
from lvmae.evaluation.probing import probe
from lvmae.evaluation.settings import PROBES, ProbeSettings
from lvmae.evaluation.tables import ProbeTable, aligned, markdown
from lvmae.evaluation.tasks import LVU, LVU_CLASSES, LVU_REGRESSIONS, load_task
from lvmae.store import EmbeddingStore

# The paper's table (attentive probing): the accuracies in LVU's order, their average, the errors of the regressions.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "ViS4mer": (62.61, 54.71, 48.80, 44.75, 67.44, 40.79, 57.14, 53.7, 0.26, 3.63),
    "VideoMamba": (67.29, 65.24, 52.98, 48.23, 70.37, 40.43, 62.50, 58.1, 0.26, 2.90),
    "LanguageBind raw": (64.48, 61.47, 5.95, 29.08, 30.86, 31.91, 48.78, 38.9, 0.21, 2.90),
    "LanguageBind + Transformer": (24.30, 57.88, 16.07, 18.44, 35.80, 32.45, 51.22, 33.7, 0.56, 3.04),
    "LanguageBind + Mamba": (61.68, 70.38, 51.78, 56.74, 74.04, 38.83, 43.90, 56.8, 0.30, 2.98),
    "LV-MAE InternVideo2": (62.62, 68.15, 57.14, 58.15, 77.78, 39.89, 53.66, 59.6, 0.23, 2.68),
    "LV-MAE LanguageBind": (77.57, 71.57, 64.28, 58.15, 72.84, 40.95, 58.53, 63.4, 0.23, 2.52),
}


@dataclass(frozen=True)
class LVUResult:
    """The tables of the tasks that could be run, and why the others could not.

    Attributes:
        tables: one a task, in LVU's order.
        skipped: task -> reason, where the store has too few of its videos.
    """

    tables: tuple[ProbeTable, ...]
    skipped: dict[str, str]

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
                [f"{model} (published)", "attentive", *map(_figure, values)] for model, values in PUBLISHED.items()
            ]
        return header, rows

    def notes(self) -> list[str]:
        """On how many videos each figure stands, and what is missing."""
        stands = ", ".join(f"{table.task.removeprefix('lvu/')} {table.counts['test']}" for table in self.tables)
        gone = sum(len(table.missing) for table in self.tables)
        notes = [
            f"Test videos: {stands}.",
            f"Means over {self.tables[0].seeds} seeds; the average is of all seven accuracies.",
        ]
        if gone:
            notes.append(f"{gone} annotated videos, over all tasks, are not in the store.")
        return [*notes, *(f"{task} was not run: {reason}" for task, reason in self.skipped.items())]

    def to_text(self, *, compare: bool = False) -> str:
        header, rows = self.cells(compare=compare)
        return "\n".join([*aligned(header, rows), "", *self.notes()])

    def to_markdown(self, *, compare: bool = False) -> str:
        header, rows = self.cells(compare=compare)
        return "\n".join([*markdown(header, rows), "", *(f"- {note}" for note in self.notes())])

    def to_dict(self) -> dict[str, Any]:
        """Every table in full, the missing videos of each included: the manifest of what the figures stand on."""
        return {"tables": [table.to_dict() for table in self.tables], "skipped": dict(self.skipped)}


def probe_lvu(
    features: str | Path | EmbeddingStore,
    annotations: str | Path,
    *,
    raw: str | Path | EmbeddingStore | None = None,
    probes: Sequence[str] = PROBES,
    seeds: int = 5,
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
    for task in tasks:
        try:
            tables.append(probe(store, task, raw=raw, probes=probes, seeds=seeds, settings=settings))
        except TooFewVideosError as error:
            skipped[task.name] = str(error)
    if not tables:
        raise InputError(f"none of LVU's tasks can be run: {next(iter(skipped.values()))}")
    return LVUResult(tuple(tables), skipped)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
