"""A subtitle file, SRT or WebVTT -> its cues, as what people download and write really is.

The grammar is that of two libraries, `srt` and `webvtt-py`: both keep a last line of digits, which pysubs2 takes for the next cue's
number. Before them every line of times is read strictly and written in one form, so that none is dropped without a word, and cues
are parted where a file has no empty line between them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import srt
import webvtt

from lvmae.errors import InputError
from lvmae.files.table_files import read_text

_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")  # <i>, <c.yellow>, <00:00:01.000> and the {\an8} of SRT
_NO_CUE = re.compile(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)")
_ARROW = "-->"


def read_cues(path: Path, parse_time: Callable[[object], float]) -> Iterator[tuple[float, float, str]]:
    """Start and end in seconds, and the text without markup, of each cue; those without text or length are left out.

    Raises:
        InputError: a line of times that says none, or something that is no cue.
    """
    vtt = path.suffix.lower() == ".vtt"
    text = read_text(path)
    lines = [*_parted(path, text.splitlines(), parse_time, vtt=vtt)]
    for start, end, said in (_vtt_cues if vtt else _srt_cues)(path, "\n".join(lines) + "\n", parse_time):
        plain = " ".join(html.unescape(_MARKUP.sub("", said)).split())
        if plain and end > start:
            yield start, end, plain


def _parted(path: Path, lines: list[str], parse_time: Callable[[object], float], *, vtt: bool) -> Iterator[str]:
    """The lines, with times in one form, and an empty line before each cue."""
    kept: list[str] = []
    comment = in_cue = False
    for number, line in enumerate(lines, start=1):
        last = kept[-1] if kept else ""
        if vtt and not last and _NO_CUE.match(line):
            comment = True
        comment = comment and bool(line)
        times = None if comment or _ARROW not in line else _times(line, parse_time)
        if times is None:
            if _ARROW in line and not comment and (not in_cue or not last.strip() or last.strip().isdigit()):
                raise InputError(f"{path}, line {number}: these are no times: {line.strip()!r}")
            in_cue = in_cue and bool(line if vtt else True)
            kept.append(line)
            continue
        if in_cue and kept:  # the cue before has not ended: the last line is this one's number, or still text
            at = len(kept) - 1 if last.strip().isdigit() else len(kept)
            kept.insert(at, "")
        kept.append(_form(*times, vtt=vtt))
        in_cue = True
    return iter(kept)


def _times(line: str, parse_time: Callable[[object], float]) -> tuple[float, float] | None:
    begin, _, rest = line.partition(_ARROW)
    try:
        return parse_time(begin), parse_time(rest.split()[0] if rest.split() else None)
    except ValueError:
        return None


def _form(start: float, end: float, *, vtt: bool) -> str:
    mark = "." if vtt else ","
    said = (
        f"{int(t // 3600):02d}:{int(t % 3600 // 60):02d}:{int(t % 60):02d}{mark}{round(t % 1 * 1000) % 1000:03d}"
        for t in (round(start, 3), round(end, 3))
    )
    return f" {_ARROW} ".join(said)


def _srt_cues(path: Path, text: str, _: Callable[[object], float]) -> Iterator[tuple[float, float, str]]:
    try:
        for cue in srt.parse(text):
            yield cue.start.total_seconds(), cue.end.total_seconds(), cue.content
    except srt.SRTParseError as error:
        line = text.count("\n", 0, error.expected_start) + 1
        raise InputError(
            f"{path}, line {line}: expected a subtitle's times, like 00:00:01,000 {_ARROW} 00:00:04,000"
        ) from None


def _vtt_cues(path: Path, text: str, parse_time: Callable[[object], float]) -> Iterator[tuple[float, float, str]]:
    try:
        cues = webvtt.from_string(text if text.startswith("WEBVTT") else f"WEBVTT\n\n{text}")
    except webvtt.errors.MalformedFileError as error:
        raise InputError(f"{path} is no WebVTT file: {error}") from None
    for cue in cues.captions:
        yield parse_time(cue.start), parse_time(cue.end), cue.raw_text  # its own seconds are whole
