"""Which videos of a store are looked at: by folder, source, duration, label and date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from lvmae.errors import InputError
from lvmae.files.identity import stat_of
from lvmae.files.table_files import cell_text, column_of, read_table
from lvmae.store import EmbeddingStore, located


@dataclass(frozen=True)
class Filter:
    """What a video must be to be looked at; what is None, or empty, does not matter."""

    folder: str | None = None
    """Its id, or its source, lies below this folder."""
    source: str | None = None
    """Its source matches this pattern, with * and ?."""
    min_seconds: float | None = None
    max_seconds: float | None = None
    labels: str | Path | None = None
    """A table with columns id and label, or tags that the search page saved."""
    label: Sequence[str] = ()
    """It has one of these labels."""
    after: str | None = None
    """Its file was changed on this day (ISO 8601) or later."""
    before: str | None = None
    """Its file was changed before this day."""

    def __bool__(self) -> bool:
        return self != Filter()

    def videos(self, store: EmbeddingStore) -> np.ndarray:
        """(n,) places of the videos that pass, ascending.

        Raises:
            InputError: a date or a duration that is none, a label without a table, a table without these columns.
        """
        kept = np.ones(len(store), bool)
        for seconds in (self.min_seconds, self.max_seconds):
            if seconds is not None and not 0 <= seconds < float("inf"):
                raise InputError(f"a duration is a number of seconds from 0 on, not {seconds}")
        if self.min_seconds is not None:
            kept &= store.durations >= self.min_seconds
        if self.max_seconds is not None:
            kept &= store.durations <= self.max_seconds
        if self.label:
            if self.labels is None:
                raise InputError("a label needs the table of labels: give a file with columns id and label")
            table = read_labels(self.labels)
            kept &= np.array([bool(table.get(video, set()) & set(self.label)) for video in store.ids])
        if self.folder is None and self.source is None and self.after is None and self.before is None:
            return np.flatnonzero(kept)
        earliest, latest = _day(self.after, -np.inf), _day(self.before, np.inf)
        dated = self.after is not None or self.before is not None
        for place in np.flatnonzero(kept).tolist():
            record = store[place]
            kept[place] = (
                (self.folder is None or _below(self.folder, record.id, record.source))
                and (self.source is None or fnmatchcase(record.source, self.source))
                and (not dated or earliest <= _changed(store, place) < latest)
            )
        return np.flatnonzero(kept)


def read_labels(path: str | Path) -> dict[str, set[str]]:
    """The labels of each id in a table with columns id and label, or in tags as the search page saves them."""
    table = read_table(path)
    identity = column_of(table.columns, ("id", "video", "video_id"))
    label = column_of(table.columns, ("label", "tag", "class"))
    if identity is None or label is None:
        raise InputError(f"{path} needs the columns id and label; its columns are {', '.join(table.columns)}")
    found: dict[str, set[str]] = {}
    for row in table.rows:
        found.setdefault(cell_text(row.values.get(identity)), set()).add(cell_text(row.values.get(label)))
    return found


def _below(folder: str, video: str, source: str) -> bool:
    wanted = folder.rstrip("/") + "/"
    return video.startswith(wanted) or source.startswith(wanted) or f"/{wanted.lstrip('/')}" in f"/{source}"


def _changed(store: EmbeddingStore, place: int) -> float:
    """Seconds since 1970 of the last change of a video's file, now or when it was embedded; NaN where nobody knows."""
    record = store[place]
    known = record.identity.changed
    if known is None:
        known = stat_of(located(store, record.source)).changed
    return float("nan") if known is None else known


def _day(text: str | None, otherwise: float) -> float:
    if text is None:
        return otherwise
    try:
        day = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is not a date such as 2024-05-31") from None
    return (day if day.tzinfo else day.replace(tzinfo=UTC)).timestamp()
