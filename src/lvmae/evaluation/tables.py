"""What probing found, as plain data, and tables of it as text, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from lvmae.evaluation.features import RAW
from lvmae.evaluation.published import published_for, published_probe
from lvmae.evaluation.settings import BASELINES

FORMATS = ("text", "markdown", "latex", "json")


class Rendered:
    """A result that has a table's cells and notes, in every form of `FORMATS`.

    `compare` sets the paper's figures beside it, marked as published.
    """

    def cells(self, *, compare: bool = False) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What a reader must know of the figures."""
        raise NotImplementedError

    def absent(self) -> list[tuple[str, str, str]]:
        """Task, split ("" where seeds draw it) and name of each video that the labels have and the store has not."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        raise NotImplementedError

    def to_text(self, *, compare: bool = False) -> str:
        """For a terminal: aligned columns, figures to the right."""
        header, rows = self.cells(compare=compare)
        return "\n".join([*aligned(header, rows), "", *self.notes()])

    def to_markdown(self, *, compare: bool = False) -> str:
        header, rows = self.cells(compare=compare)
        return "\n".join([*markdown(header, rows), "", *(f"- {note}" for note in self.notes())])

    def to_latex(self, *, compare: bool = False) -> str:
        """A tabular with booktabs' rules; the notes are comments above it."""
        header, rows = self.cells(compare=compare)
        return "\n".join([*(f"% {note}" for note in self.notes()), *latex(header, rows)])

    def to_json(self) -> str:
        """Everything, whatever a table shows of it; published figures are no part of it."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def render(self, form: str, *, compare: bool = False) -> str:
        """In one of `FORMATS`."""
        if form == "json":
            return self.to_json()
        return str(getattr(self, f"to_{form}")(compare=compare))


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
class ProbeTable(Rendered):
    """All probes of one task. Accuracy and mAP are in per cent, higher is better; MSE lower.

    Attributes:
        counts: videos in train, val and test; of splits drawn by each seed, the first seed's.
        missing: videos the labels have and the store has not; `missing_splits` are theirs, "" where seeds draw splits.
        annotated: how many videos the labels have in each split, in the store or not; all under "" where seeds draw splits.
        settings: of the training, but for the device.
        label_fraction: the share of train labels that was learnt from.
    """

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
    missing_splits: tuple[str, ...] = ()
    annotated: dict[str, int] = field(default_factory=dict)

    def row(self, features: str, probe: str) -> ProbeRow:
        """One row by its name; `KeyError` where there is none."""
        for row in self.rows:
            if (row.features, row.probe) == (features, probe):
                return row
        raise KeyError((features, probe))

    def cells(self, *, compare: bool = False) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text; behind the probes chance, and then what is published."""
        unit = "" if self.kind == "regression" else " %"
        header = [
            "features",
            "probe",
            self.metric + unit,
            f"± std, {self.seeds} seeds" if self.seeds > 1 else "± std",
            "95 % interval",
        ]
        rows = [
            [
                r.features,
                r.probe,
                self._figure(r.mean),
                f"± {self._figure(r.std)}" if self.seeds > 1 else "",  # of one seed there is none
                " to ".join(map(self._figure, r.interval)),
            ]
            for r in self.rows
        ]
        rows += [[f"chance: {name}", "", self._figure(value), "", ""] for name, value in self.chance.items()]
        if compare:
            of_lvu = self.task.startswith("lvu/")
            rows += [
                [f"{model} (published)", published_probe(model) if of_lvu else "", f"{value:.2f}", "", ""]
                for model, value in published_for(self.task).items()
            ]
        return header, rows

    def notes(self) -> list[str]:
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        kinds = f", {len(self.classes)} classes" if self.classes else ""
        probes = {row.probe: row for row in self.rows}
        steps = [f"{name} {_steps(row)}" for name, row in probes.items()]
        notes = [
            f"{self.task}: {self.kind}{kinds}; videos: {counts}; split {self.split}; the epoch chosen on val.",
            f"Optimiser steps of a training: {', '.join(steps)}.",
        ]
        if "linear-standardized" not in probes and any(r.features == RAW and r.probe == "linear" for r in self.rows):
            notes.append(
                "The paper's linear rate is low for raw embeddings, which are of length 1; a standardized linear probe "
                "(--standardize) is fair to features of any scale."
            )
        if self.label_fraction < 1:
            notes.append(f"Trained on {100 * self.label_fraction:g} % of the train labels, drawn by each seed.")
        if any(name in BASELINES for name in probes):
            notes.append("Transformer and Mamba are trained end to end with settings of ours: the paper gives none.")
        if self.missing:
            some = ", ".join(self.missing[:3])
            total = sum(self.annotated.values())
            notes.append(f"{len(self.missing)} of {total} annotated videos are not in the store, such as {some}.")
            if self.split == "fixed":
                notes.append(f"The figures stand on {self.counts['test']} of {self.annotated['test']} test videos.")
        return notes

    def absent(self) -> list[tuple[str, str, str]]:
        return [(self.task, split, name) for name, split in zip(self.missing, self.missing_splits, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings; all of `missing`."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads back what `to_json` wrote; `ValueError`, `TypeError` or `KeyError` where it did not."""
        values = json.loads(text)
        for key in ("classes", "missing", "missing_splits"):
            values[key] = tuple(values.get(key, ()))
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


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 2) -> list[str]:
    """The lines of a table for a terminal: the first columns, of names, to the left, and figures to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *rows)
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 2) -> list[str]:
    """The lines of the same table in Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, *rows)]
    return [lines[0], "|" + "---|" * names + "---:|" * (len(header) - names), *lines[1:]]


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 2) -> list[str]:
    """The lines of the same table as a LaTeX tabular with the rules of booktabs."""
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (header, *rows)]
    columns = "l" * names + "r" * (len(header) - names)
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]


_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def _escaped(cell: str) -> str:
    return "".join(_LATEX.get(char, char) for char in cell)


def missing_csv(result: Rendered) -> str:
    """The manifest of what figures do not stand on: a CSV of task, split and video, a line an annotated video not found."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("task", "split", "video"))
    writer.writerows(result.absent())
    return text.getvalue()
