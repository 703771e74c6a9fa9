"""What probing found, as plain data, text, Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from lvmae.evaluation.settings import BASELINES


@dataclass(frozen=True)
class ProbeRow:
    """One probe on one set of features.

    Attributes:
        values: the test score of each seed; `mean` and `std` (n - 1) are over these.
        interval: 95 %, by resampling test videos.
        epochs: the epoch each seed chose on val, from 1.
        steps: optimiser steps of one training.
        paper_steps: those the plain epochs, the paper's by default, would have made.
        min_steps: the least number of steps asked for.
    """

    features: str
    probe: str
    mean: float
    std: float
    values: tuple[float, ...]
    interval: tuple[float, float]
    epochs: tuple[int, ...]
    steps: int
    paper_steps: int
    min_steps: int = 0


@dataclass(frozen=True)
class ProbeTable:
    """All probes of one task. Accuracy and mAP are in per cent, higher is better; MSE lower."""

    task: str
    kind: str
    metric: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    split: str
    seeds: int
    chance: dict[str, float]
    rows: tuple[ProbeRow, ...]
    missing: tuple[str, ...]
    settings: dict[str, Any]
    label_fraction: float = 1.0

    def row(self, features: str, probe: str) -> ProbeRow:
        """One row by its name; `KeyError` where there is none."""
        for row in self.rows:
            if (row.features, row.probe) == (features, probe):
                return row
        raise KeyError((features, probe))

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text, chance last."""
        unit = "" if self.kind == "regression" else " %"
        header = ["features", "probe", self.metric + unit, f"± std, {self.seeds} seeds", "95 % interval"]
        rows = [
            [
                r.features,
                r.probe,
                self._figure(r.mean),
                f"± {self._figure(r.std)}",
                " to ".join(map(self._figure, r.interval)),
            ]
            for r in self.rows
        ]
        return header, rows + [
            [f"chance: {name}", "", self._figure(value), "", ""] for name, value in self.chance.items()
        ]

    def notes(self) -> list[str]:
        """What a reader must know of the figures."""
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        kinds = f", {len(self.classes)} classes" if self.classes else ""
        probes = {row.probe: row for row in self.rows}
        steps = [f"{name} {_steps(row)}" for name, row in probes.items()]
        notes = [
            f"{self.task}: {self.kind}{kinds}; videos: {counts}; split {self.split}; the epoch chosen on val.",
            f"Optimiser steps of a training: {', '.join(steps)}.",
        ]
        if self.label_fraction < 1:
            notes.append(f"Trained on {100 * self.label_fraction:g} % of the train labels, drawn by each seed.")
        if any(name in BASELINES for name in probes):
            notes.append("Transformer and Mamba are trained end to end with settings of ours: the paper gives none.")
        if self.missing:
            some = ", ".join(self.missing[:3])
            total = sum(self.counts.values()) + len(self.missing)
            notes.append(f"{len(self.missing)} of {total} annotated videos are not in the store, such as {some}.")
        return notes

    def to_text(self) -> str:
        """For a terminal: aligned columns, figures to the right."""
        header, rows = self.cells()
        return "\n".join([*aligned(header, rows), "", *self.notes()])

    def to_markdown(self) -> str:
        header, rows = self.cells()
        return "\n".join([*markdown(header, rows), "", *(f"- {note}" for note in self.notes())])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings; all of `missing`."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads back what `to_json` wrote; `ValueError`, `TypeError` or `KeyError` where it did not."""
        values = json.loads(text)
        for key in ("classes", "missing"):
            values[key] = tuple(values[key])
        rows: list[dict[str, Any]] = values["rows"]
        values["rows"] = tuple(
            ProbeRow(**row | {key: tuple(row[key]) for key in ("values", "interval", "epochs")}) for row in rows
        )
        return cls(**values)

    def _figure(self, value: float) -> str:
        return f"{value:.3f}" if self.kind == "regression" else f"{value:.1f}"


def _steps(row: ProbeRow) -> str:
    if row.steps == row.paper_steps:
        return str(row.steps)
    plain = "its epochs" if row.probe in BASELINES else "the paper's epochs"
    return f"{row.steps} (at least {row.min_steps}; {plain} alone: {row.paper_steps})"


def aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table for a terminal: two columns of names to the left, figures to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *rows)
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of the same table in Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, *rows)]
    return [lines[0], "|---|---|" + "---:|" * (len(header) - 2), *lines[1:]]
