"""The results of probing as plain data, and as tables in text, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from lvmae.evaluation.features import RAW
from lvmae.evaluation.metrics import Answered, probabilities
from lvmae.evaluation.settings import BASELINES
from lvmae.evaluation.task import Task
from lvmae.files.tables import write_parquet_rows

FORMATS = ("text", "markdown", "latex", "json", "csv")
_FIGURES = ("mean", "stderr", "std", "low", "high", "minus_raw", "minus_raw_low", "minus_raw_high", "macro_f1", "r2")


class Rendered:
    """A result that has a table's cells and notes, in every form of `FORMATS`.

    `compare` sets the paper's figures beside it, marked as published.
    """

    def cells(self, *, compare: bool = False) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows as text."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """Returns the notes that a reader of the figures needs."""
        raise NotImplementedError

    def absent(self) -> list[tuple[str, str, str]]:
        """Returns task, split ("" if seeds draw it) and name of each labelled video that the store does not have."""
        raise NotImplementedError

    def predicted(self) -> list[Predictions]:
        """Returns the predictions for every test video, by task."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Returns the table as plain lists, numbers and strings."""
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

    def records(self) -> list[dict[str, Any]]:
        """Returns one flat record per row of the table, with all figures unrounded."""
        raise NotImplementedError

    def to_csv(self) -> str:
        """The records as CSV, a line a row."""
        text = io.StringIO()
        records = self.records()
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().rstrip("\n")

    def to_json(self) -> str:
        """Everything, whatever a table shows of it; published figures are no part of it."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def render(self, form: str, *, compare: bool = False) -> str:
        """In one of `FORMATS`."""
        if form in ("json", "csv"):
            return self.to_json() if form == "json" else self.to_csv()
        return str(getattr(self, f"to_{form}")(compare=compare))


@dataclass(frozen=True)
class ProbeRow:
    """The result of one probe on one set of features.

    Attributes:
        values: the test score of each seed; `mean` and `std` (n - 1) are over these.
        interval: 95 %, by resampling test videos.
        epochs: the epoch each seed chose on val, from 1; none of probes that are not trained in epochs.
        steps: optimiser steps of one training; 0 of those that are not trained in steps.
        paper_steps: those the plain epochs, the paper's by default, would have made.
        min_steps: the least number of steps asked for.
        stderr: the standard error of the mean over test videos, by resampling them.
        chosen: what val chose for each seed: strength (C, alpha), number of neighbours (k), rate and epoch.
        minus_raw: the difference to the raw row of the same probe, its standard error and 95 % interval (value, stderr,
            low, high), paired over test videos; None if there is none.
        details: macro-F1 and the confusion matrix, or the share of variance explained; see `verdicts.details`.
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
    stderr: float = 0.0
    chosen: tuple[dict[str, float], ...] = ()
    minus_raw: dict[str, float] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def differs_from_raw(self) -> bool:
        """Returns whether the confidence interval of the difference to the raw row excludes zero."""
        return self.minus_raw is not None and not self.minus_raw["low"] <= 0 <= self.minus_raw["high"]


@dataclass(frozen=True)
class Predictions:
    """What every run said of every test video: by (features, probe), a run a seed."""

    task: Task
    answered: dict[tuple[str, str], list[Answered]]

    def records(self) -> list[dict[str, Any]]:
        """A row for each test video of each run: its label, the answer, and each class's score (a probability)."""
        task, found = self.task, []
        for (features, probe), runs in self.answered.items():
            for seed, run in enumerate(runs):
                scores = probabilities(task.kind, run.outputs)
                for row, figures in zip(run.rows.tolist(), scores, strict=True):
                    one: dict[str, Any] = {"task": task.name, "features": features, "probe": probe, "seed": seed}
                    one |= {"id": task.ids[row], "label": self._label(task.targets[row])}
                    if task.kind == "regression":
                        found.append({**one, "predicted": float(figures[0])})
                        continue
                    said = figures > 0.5 if task.kind == "multilabel" else int(figures.argmax())
                    one |= {"predicted": self._label(said)}
                    found.append(
                        one | {f"score:{name}": float(v) for name, v in zip(task.classes, figures, strict=True)}
                    )
        return found

    def _label(self, target: Any) -> Any:
        if self.task.kind == "regression":
            return float(target)
        if self.task.kind == "multilabel":
            return "|".join(name for name, has in zip(self.task.classes, target, strict=True) if has)
        return self.task.classes[int(target)]


@dataclass(frozen=True)
class ProbeTable(Rendered):
    """The results of all probes of one task. Accuracy and mAP are in per cent (higher is better); for MSE lower is better.

    Attributes:
        counts: videos in train, val and test; of splits drawn by each seed, the first seed's.
        missing: videos the labels have and the store has not; `missing_splits` are theirs, "" where seeds draw splits.
        annotated: how many videos the labels have in each split, in the store or not; all under "" where seeds draw splits.
        settings: of the training, but for the device.
        label_fraction: the share of train labels that was learnt from.
        protocol: "standard" or "paper".
        class_weight: "balanced" where every class weighed alike in training.
        chance_stderr: standard errors over test videos of those figures of `chance` that have one.
        said: what a reader must know of the labels, a sentence each: classes that were merged, names that were found
            under another spelling, videos that were left out.
        source: the store the features are of: its path, space, fingerprint, and its run's.
        lower_is_better: of an error.
        published: model -> (probe, figure), as published.
        predictions: of every test video; not part of what is written.
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
    protocol: str = "paper"
    class_weight: str | None = None
    chance_stderr: dict[str, float] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    source: dict[str, str] = field(default_factory=dict)
    lower_is_better: bool = False
    published: dict[str, tuple[str, float]] = field(default_factory=dict)
    predictions: Predictions | None = field(default=None, compare=False, repr=False)

    def row(self, features: str, probe: str) -> ProbeRow:
        """Returns a row by its name. Raises KeyError if there is none."""
        for row in self.rows:
            if (row.features, row.probe) == (features, probe):
                return row
        raise KeyError((features, probe))

    def cells(self, *, compare: bool = False) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows as text: the probes, chance, then published figures."""
        unit = "" if self.kind == "regression" else " %"
        header = ["features", "probe", self.metric + unit, "± SE"]
        header += [f"std, {self.seeds} seeds"] * (self.seeds > 1) + ["95 % interval"]
        compared = any(r.minus_raw for r in self.rows)
        header += ["minus raw, 95 %"] * compared
        rows = [
            [
                r.features,
                r.probe,
                self._figure(r.mean),
                self._error(r.stderr),
                *[self._figure(r.std)] * (self.seeds > 1),
                " to ".join(map(self._figure, r.interval)),
                *[self._difference(r)] * compared,
            ]
            for r in self.rows
        ]
        empty = [""] * (len(header) - 4)
        for name, value in self.chance.items():
            error = self.chance_stderr.get(name)
            rows.append(
                [
                    f"chance: {name}",
                    "",
                    self._figure(value),
                    self._error(error),
                    *empty,
                ]
            )
        if compare:
            rows += [
                [f"{model} (published)", probe, f"{value:.2f}", "", *empty]
                for model, (probe, value) in self.published.items()
            ]
        return header, rows

    def notes(self) -> list[str]:
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        kinds = f", {len(self.classes)} classes" if self.classes else ""
        probes = {row.probe: row for row in self.rows}
        steps = [f"{name} {_steps(row)}" for name, row in probes.items() if row.steps]
        chosen = "everything chosen" if self.protocol == "standard" else "the epoch chosen"
        notes = [f"{self.task}: {self.kind}{kinds}; videos: {counts}; split {self.split}; {chosen} on val."]
        notes += self.said
        if self.protocol == "standard":
            weighed = ", classes weighed alike" if self.class_weight else ""
            notes.append(
                f"Linear: standardised features, regularised, the strength by val{weighed}. SE and intervals: over test videos."
            )
        for row in self.rows:
            if any("layer" in one for one in row.chosen):
                layers = ", ".join(f"{one['layer']:g}" for one in row.chosen)
                notes.append(f"Layer of {row.features} that val chose, by seed: {layers}.")
        if steps:
            notes.append(f"Optimiser steps of a training: {', '.join(steps)}.")
        if any(row.minus_raw for row in self.rows):
            notes.append(
                "Minus raw: paired over test videos; * marks a difference whose 95 % interval leaves zero out."
            )
        if self.protocol == "paper" and "linear-standardized" not in probes and self._has_raw_linear():
            notes.append(
                "The paper's linear rate is low for raw embeddings, which are of length 1; a standardized linear probe "
                "(the probe `linear-standardized`) is fair to features of any scale."
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

    def records(self) -> list[dict[str, Any]]:
        found = []
        for row in self.rows:
            beyond = row.minus_raw or {}
            figures = [
                row.mean,
                row.stderr,
                row.std,
                *row.interval,
                *(beyond.get(key) for key in ("value", "low", "high")),
            ]
            figures += [row.details.get("macro_f1"), row.details.get("r2")]
            one: dict[str, Any] = {
                "task": self.task,
                "features": row.features,
                "probe": row.probe,
                "metric": self.metric,
            }
            found.append(one | {"seeds": self.seeds} | dict(zip(_FIGURES, figures, strict=True)))
        for name, value in self.chance.items():
            one = {"task": self.task, "features": "chance", "probe": name, "metric": self.metric}
            found.append(
                one
                | {"seeds": self.seeds}
                | dict.fromkeys(_FIGURES)
                | {"mean": value, "stderr": self.chance_stderr.get(name)}
            )
        return found

    def predicted(self) -> list[Predictions]:
        return [] if self.predictions is None else [self.predictions]

    def _has_raw_linear(self) -> bool:
        return any((row.features, row.probe) == (RAW, "linear") for row in self.rows)

    def absent(self) -> list[tuple[str, str, str]]:
        return [(self.task, split, name) for name, split in zip(self.missing, self.missing_splits, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Returns the table as plain lists, numbers and strings, with all of `missing`."""
        values = asdict(replace(self, predictions=None))
        values.pop("predictions")
        return plain(values)  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads a table that `to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        values = json.loads(text)
        for key in ("classes", "missing", "missing_splits", "said"):
            values[key] = tuple(values.get(key, ()))
        values["published"] = {name: tuple(one) for name, one in values.get("published", {}).items()}
        rows: list[dict[str, Any]] = values["rows"]
        values["rows"] = tuple(
            ProbeRow(**row | {key: tuple(row.get(key, ())) for key in ("values", "interval", "epochs", "chosen")})
            for row in rows
        )
        return cls(**values)

    def _difference(self, row: ProbeRow) -> str:
        if row.minus_raw is None:
            return ""
        value, low, high = (f"{row.minus_raw[key]:+.{self._digits}f}" for key in ("value", "low", "high"))
        return f"{value}{'*' if row.differs_from_raw else ' '} ({low} to {high})"

    @property
    def _digits(self) -> int:
        if self.kind != "regression":
            return 1
        size = max([abs(row.mean) for row in self.rows] + [abs(value) for value in self.chance.values()])
        return 3 if size == 0 else min(12, max(3, 3 - math.floor(math.log10(size))))

    def _error(self, value: float | None) -> str:
        shown = self._figure(value)
        return f"± {shown}" if shown else ""

    def _figure(self, value: float | None) -> str:
        return (
            "" if value is None or math.isnan(value) else f"{value:.{self._digits}f}"
        )  # null in JSON, where not asked for


def plain(value: Any) -> Any:
    """As JSON has it: lists for tuples, plain numbers for numpy's, null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def write_predictions(result: Rendered, path: str | Path) -> int:
    """Writes what was said of every test video as Parquet or, by any other suffix, as CSV; how many rows that is.

    Columns: task, features, probe, seed, id, label, predicted, and a score for each class (a probability).
    """
    records = [record for one in result.predicted() for record in one.records()]
    columns = dict.fromkeys(column for record in records for column in record)
    if Path(path).suffix.lower() == ".parquet":
        numbers = {column: float if column.startswith("score:") else str for column in columns} | {"seed": int}
        if all(isinstance(record["label"], float) for record in records):
            numbers |= {"label": float, "predicted": float}
        texts = [{key: str(v) if numbers[key] is str else v for key, v in record.items()} for record in records]
        write_parquet_rows(path, texts, numbers)
    else:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
    return len(records)
