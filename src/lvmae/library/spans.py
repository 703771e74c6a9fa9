"""Spans of time of videos: a table of id, start, end and a label, or what a probe predicted.

Times are seconds of the source file, as a store's segments have them; `h:m:s` and `m:s` are read too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmae.errors import InputError
from lvmae.files.table_files import Row, Table, cell_text, column_of
from lvmae.library.captions import parse_time

ID_COLUMNS = ("id", "video", "video_id")
_LABELS = ("label", "predicted")


@dataclass(frozen=True)
class Span:
    """`start` to `end` (seconds) of the video `video` show `label`; `score` is how sure that is, 1 of what a person said."""

    video: str
    start: float
    end: float
    label: str
    score: float = 1.0


def has_times(table: Table) -> bool:
    """Whether a table's labels are on spans of time."""
    return all(column_of(table.columns, (name,)) is not None for name in ("start", "end"))


def spans_of(table: Table, path: str | Path) -> list[tuple[Span, Row]]:
    """The spans of a table, each with its row, in the order of the file.

    Raises:
        InputError: a column or a value is missing, or a span ends before it starts.
    """
    columns = {name: column_of(table.columns, names) for name, names in
               {"id": ID_COLUMNS, "start": ("start",), "end": ("end",), "label": _LABELS}.items()}  # fmt: skip
    lacking = [name for name, column in columns.items() if column is None]
    if lacking:
        raise InputError(f"{path} has no column {lacking[0]}; spans of time need the columns id, start, end and label")
    score_column = column_of(table.columns, ("score",))
    found = []
    for row in table.rows:
        value: dict[str, Any] = {name: row.values.get(str(column)) for name, column in columns.items()}
        video, label = cell_text(value["id"]), cell_text(value["label"])
        if not video:
            raise InputError(f"{row.where} of {path} names no video")
        try:
            start, end = parse_time(value["start"]), parse_time(value["end"])
            score = 1.0 if score_column is None else float(row.values.get(score_column) or 1.0)
        except (TypeError, ValueError):
            raise InputError(
                f"{row.where} of {path}: start {value['start']!r} and end {value['end']!r} must be seconds, m:s or h:m:s"
            ) from None
        if end <= start:
            raise InputError(
                f"{row.where} of {path}: the span ends at {end:g} s, which is not after its start at {start:g} s"
            )
        found.append((Span(video, start, end, label, score), row))
    return found


def overlap(one: Span, others: Iterable[Span]) -> list[float]:
    """The intersection over union of a span and each of others of the same video, in time."""
    found = []
    for other in others:
        shared = min(one.end, other.end) - max(one.start, other.start)
        found.append(max(0.0, shared) / (one.end - one.start + other.end - other.start - max(0.0, shared)))
    return found


def mean_average_precision(
    predicted: Sequence[Span], truth: Sequence[Span], thresholds: Sequence[float]
) -> dict[float, float]:
    """Threshold of overlap -> mAP over the labels of `truth`, in per cent, as temporal detection is judged.

    Of each label the predictions are taken from the surest on; one is right that overlaps enough with a span of its video
    and label that none before it was right for. Precision is interpolated: at each recall the best one from there on.
    """
    labels = sorted({span.label for span in truth})
    found = {}
    for threshold in thresholds:
        precisions = []
        for label in labels:
            real = [span for span in truth if span.label == label]
            by_video: dict[str, list[int]] = {}
            for place, span in enumerate(real):
                by_video.setdefault(span.video, []).append(place)
            taken: set[int] = set()
            right = []
            for span in sorted((s for s in predicted if s.label == label), key=lambda s: -s.score):
                free = [place for place in by_video.get(span.video, ()) if place not in taken]
                shared = overlap(span, (real[place] for place in free))
                best = max(range(len(free)), key=shared.__getitem__, default=None)
                hit = best is not None and shared[best] >= threshold - 1e-9
                if best is not None and hit:
                    taken.add(free[best])
                right.append(hit)
            precisions.append(_average_precision(right, len(real)))
        found[threshold] = 100 * sum(precisions) / len(precisions) if precisions else 0.0
    return found


def _average_precision(right: Sequence[bool], total: int) -> float:
    hits, precisions, recalls = 0, [], []
    for number, hit in enumerate(right, start=1):
        hits += hit
        if hit:
            precisions.append(hits / number)
            recalls.append(hits / total)
    best, area = 0.0, 0.0
    for place in range(len(precisions) - 1, -1, -1):
        best = max(best, precisions[place])
        area += best * (recalls[place] - (recalls[place - 1] if place else 0.0))
    return area
