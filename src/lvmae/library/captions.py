"""Caption files -> captions with times -> captions of each segment.

Read here: tables (CSV, TSV, JSONL, Parquet) with the columns video, start, end and text, and subtitles (SRT, WebVTT),
one file for one video or a folder of them, named by video id. Times are seconds, or h:m:s, or m:s.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lvmae.errors import InputError
from lvmae.files.table_files import TABLE_SUFFIXES, Row, cell_text, read_table
from lvmae.library.subtitles import read_cues
from lvmae.store import VideoRecord

COLUMNS = ("video", "start", "end", "text")
_SUBTITLES = (".srt", ".vtt")
_LANGUAGE = re.compile(r"\.[a-zA-Z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*(?:\.(?:forced|sdh|cc|hi|default|orig|auto))*$")
_ENGLISH = re.compile(r"\.en[^.]*(?:\.[a-z]+)*$", re.IGNORECASE)  # the language of the text encoders
_CLOCK = re.compile(r"(?:(?P<h>\d+):)?(?P<m>\d{1,2}):(?P<s>\d{1,2}(?:[.,]\d+)?)")
_FORMULA = re.compile(r"[=+\-@\t\r]")
_HARMLESS = re.compile(r"[+-][\w.-]*")  # a number, or an id that begins with a dash

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caption:
    """A text that describes `start` to `end` (seconds) of the video with the id `video`."""

    video: str
    start: float
    end: float
    text: str


def parse_time(value: object) -> float:
    """Seconds from a number, '12.5', '1:02.5' or '0:01:02,500'; ValueError for anything else, or below 0."""
    if isinstance(value, bool) or value is None:
        raise ValueError("no time")
    text = str(value).strip()
    clock = _CLOCK.fullmatch(text)
    if clock:
        minutes, seconds = int(clock["m"]), float(clock["s"].replace(",", "."))
        if seconds >= 60 or (clock["h"] is not None and minutes >= 60):
            raise ValueError(f"no time: {text}")
        return int(clock["h"] or 0) * 3600 + minutes * 60 + seconds
    seconds = float(text)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"no time: {text}")
    return seconds


def load_captions(path: str | Path) -> list[Caption]:
    """Reads the captions of a table, a subtitle file or a folder of subtitle files, in the order of the file.

    The video of a subtitle file is its name without the suffix (in a folder: with the folders on the way to it).

    Raises:
        InputError: nothing there, another kind of file, a missing column, a row that cannot be read, no caption.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUBTITLES)
        if not files:
            raise InputError(
                f"{path} holds no subtitles: a folder of captions is one .srt or .vtt file a video, named by its id"
            )
        captions = [
            c for file in files for c in _read_subtitles(file, file.relative_to(path).with_suffix("").as_posix())
        ]
    elif not path.is_file():
        raise InputError(
            f"there are no captions at {path}; give a CSV, JSONL, Parquet, SRT or VTT file, or a folder of subtitles"
        )
    elif path.suffix.lower() in _SUBTITLES:
        captions = list(_read_subtitles(path, path.stem))
    elif path.suffix.lower() in TABLE_SUFFIXES:
        captions = [_caption(path, row) for row in read_table(path).rows]
    else:
        raise InputError(
            f"{path} is no caption file: the suffixes read here are {', '.join(TABLE_SUFFIXES + _SUBTITLES)}"
        )
    if not captions:
        raise InputError(f"{path} holds no captions: it needs rows of {', '.join(COLUMNS)}, or subtitle cues")
    return captions


def captions_by_video(captions: Iterable[Caption], ids: Sequence[str]) -> dict[str, list[Caption]]:
    """Groups captions by video; videos without captions are absent, and captions of other videos are left out and reported.

    A subtitle file may have its language before the suffix: `movie.en.srt` belongs to `movie`, unless there is a video `movie.en`.
    Of several languages one is used, and the others are reported.

    Raises:
        InputError: no caption belongs to a video of `ids`.
    """
    known = set(ids)
    groups: dict[str, list[Caption]] = {}
    for caption in captions:
        groups.setdefault(caption.video, []).append(caption)
    found = {name: of for name, of in groups.items() if name in known}
    unknown = []
    for name, of in sorted(groups.items(), key=lambda item: (not _ENGLISH.search(item[0]), item[0])):
        if name in known:
            continue
        video = _without_language(name)
        if video not in known:
            unknown.append(name)
        elif video in found:
            log.warning("the captions %s are left out: %s has others", name, video)
        else:
            found[video] = [replace(caption, video=video) for caption in of]
    unknown.sort()
    said = f"{len(unknown)} of {len(groups)} videos that are not in the store ({_some(unknown)})"
    if unknown and not found:
        example = f", where ids look like {ids[0]!r}" if ids else ""
        raise InputError(
            f"the captions name {said}: the column 'video', or the name of a subtitle file, must be an id of the store{example}"
        )
    if unknown:
        log.warning("captions of %s are left out", said)
    return found


def _without_language(name: str) -> str:
    """The name before the language of a subtitle file: of `movie.en`, `movie.en-US`, `movie.zh-Hans.forced`."""
    return _LANGUAGE.sub("", name)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def align(captions: Sequence[Caption], record: VideoRecord) -> list[list[str]]:
    """The captions of each segment of one video, by largest overlap first (ties: the order of the file).

    A caption belongs to a segment where they share at least half of the shorter of the two: so a caption of a long
    scene goes to every segment of it, and a subtitle to the one segment, or the two, it is spoken in. A caption that
    shares that much with no segment goes to the one it shares most with, and one outside of all segments to none. A
    segment's texts are distinct.

    Args:
        captions: captions of `record`'s video.
        record: a video with L segments.

    Returns:
        L lists of texts; empty if a segment has no caption.
    """
    texts: list[list[str]] = [[] for _ in range(len(record.starts))]
    if not captions or not texts:
        return texts
    starts = np.array([caption.start for caption in captions])[:, None]
    ends = np.array([caption.end for caption in captions])[:, None]
    shared = np.minimum(ends, record.ends) - np.maximum(starts, record.starts)  # (captions, L) seconds
    half = 0.5 * np.minimum(ends - starts, record.ends - record.starts) - 1e-6
    belongs = (shared > 0) & (shared >= half)
    best = shared.argmax(axis=1)
    for row in map(int, np.flatnonzero(~belongs.any(axis=1) & (shared.max(axis=1) > 0))):
        belongs[row, best[row]] = True
    for segment in range(len(texts)):
        rows = np.flatnonzero(belongs[:, segment])
        rows = rows[np.argsort(-shared[rows, segment], kind="stable")]
        texts[segment] = list(dict.fromkeys(captions[int(row)].text for row in rows))
    return texts


def as_cell(text: str) -> str:
    """The text as a cell of a table that a spreadsheet takes for text: what it would calculate has an apostrophe before it."""
    return f"'{text}" if _FORMULA.match(text) and not _HARMLESS.fullmatch(text) else text


def from_cell(text: str) -> str:
    """What `as_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) and not _HARMLESS.fullmatch(text[1:]) else text


def _caption(path: Path, row: Row) -> Caption:
    """One row of a table, checked."""
    values = row.values
    missing = [name for name in COLUMNS if name not in values]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}: a caption table needs the columns {', '.join(COLUMNS)}")
    video, text = from_cell(cell_text(values["video"])), from_cell(" ".join(cell_text(values["text"]).split()))
    if not video or not text:
        raise InputError(f"{path}, {row.where}: the column {'text' if video else 'video'!r} is empty")
    try:
        start, end = parse_time(values["start"]), parse_time(values["end"])
    except ValueError:
        raise InputError(
            f"{path}, {row.where}: start {values['start']!r} and end {values['end']!r} must be seconds, m:s or h:m:s"
        ) from None
    if end <= start:
        raise InputError(
            f"{path}, {row.where}: the caption ends at {end:g} s, which is not after its start at {start:g} s"
        )
    return Caption(video, start, end, text)


def _read_subtitles(path: Path, video: str) -> Iterator[Caption]:
    """The cues of a subtitle file."""
    return (Caption(video, start, end, text) for start, end, text in read_cues(path, parse_time))
