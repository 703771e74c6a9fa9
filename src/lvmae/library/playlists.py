"""Moments as files that other programs open: CSV, JSON, M3U for players, EDL (CMX 3600) for editors."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lvmae.errors import InputError
from lvmae.library.search import Moment
from lvmae.store import EmbeddingStore, located

_FRAME_RATE = 25  # of an EDL's time codes


def to_csv(store: EmbeddingStore, moments: Sequence[Moment]) -> str:
    """A line each: video, source, start and end in seconds, score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "source", "start", "end", "score"])
    for moment in moments:
        source = _plain(located(store, store[moment.index].source))
        row = [_plain(moment.video), source, round(moment.start, 3), round(moment.end, 3), round(moment.score, 4)]
        writer.writerow(row)
    return text.getvalue()


def to_json(store: EmbeddingStore, moments: Sequence[Moment]) -> str:
    """A list of objects."""
    found = [{**asdict(moment), "source": located(store, store[moment.index].source)} for moment in moments]
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_m3u(store: EmbeddingStore, moments: Sequence[Moment]) -> str:
    """A playlist: VLC and mpv start and stop where a moment does."""
    lines = ["#EXTM3U"]
    for moment in moments:
        lines += [
            f"#EXTINF:{max(1, round(moment.end - moment.start))},{_line(moment.video)}",
            f"#EXTVLCOPT:start-time={moment.start:.3f}",
            f"#EXTVLCOPT:stop-time={moment.end:.3f}",
            _line(located(store, store[moment.index].source)),
        ]
    return "\n".join(lines) + "\n"


def to_edl(store: EmbeddingStore, moments: Sequence[Moment]) -> str:
    """An edit decision list of cuts, one after the other, in time codes of 25 frames a second."""
    lines = [f"TITLE: {_line(Path(store.path).name)}", "FCM: NON-DROP FRAME", ""]
    at = 0
    for number, moment in enumerate(moments[:999], start=1):
        begin, end = round(moment.start * _FRAME_RATE), round(moment.end * _FRAME_RATE)
        times = (begin, end, at, at + end - begin)
        lines += [
            f"{number:03d}  AX       V     C        {' '.join(map(_time_code, times))}",
            f"* FROM CLIP NAME: {_line(Path(store[moment.index].source).name or moment.video)}",
            f"* SOURCE FILE: {_line(located(store, store[moment.index].source))}",
            f"* COMMENT: {_line(moment.video)}, SCORE {moment.score:.3f}",
        ]
        at += end - begin
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[EmbeddingStore, Sequence[Moment]], str]] = {
    ".csv": to_csv,
    ".json": to_json,
    ".m3u": to_m3u,
    ".m3u8": to_m3u,
    ".edl": to_edl,
}


def check_format(path: str | Path) -> str:
    """The suffix of a file that moments can be written to. Raises InputError for another one."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path} must end in {', '.join(FORMATS)}: the suffix sets the format")
    return suffix


def _time_code(frames: int) -> str:
    seconds = frames // _FRAME_RATE
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frames % _FRAME_RATE:02d}"


def _line(text: str) -> str:
    """A text in one line: nothing in a name may begin an entry of its own."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
