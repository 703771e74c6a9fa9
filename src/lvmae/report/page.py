"""The report page: what it draws, as plain data, and `render`, which writes it.

The page is one file. Its text is escaped by Jinja; what its script needs lies in JSON blocks, one for the store and two
a video (its segments and its pictures), which are parsed only when that video is opened: so a page with a film of two
hours opens at once. A content security policy names the hash of the page's one script and allows no address at all, so
that neither a caption nor an accident can make the page load or run anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lvmae.files.writing import write_text

MAX_BYTES = 8 << 20
"""What a page may weigh before pictures are left out of it."""

Cell = str | float | int | None


@dataclass(frozen=True)
class ScoreTable:
    """A table of numbers; the first column names the row. Floats have `digits` decimals, None is a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Picture:
    """A JPEG of a video at `time` seconds."""

    time: float
    jpeg: bytes


@dataclass
class VideoData:
    """One video with L segments; every list below has one entry per segment.

    `reconstruction` and `floor` are cosines with the true embedding (None: never hidden), `masked` marks the segments
    of the scored mask, `novelty` is one minus the cosine with the segment before (None for the first). `captions` are
    the segment's own, as positions in `ReportData.texts`; `from_original` and `from_reconstruction` are the texts
    retrieved, best first, with scores.
    """

    id: str
    duration: float
    starts: Sequence[float]
    ends: Sequence[float]
    masked: Sequence[bool]
    reconstruction: Sequence[float | None]
    floor: Sequence[float | None]
    novelty: Sequence[float | None]
    captions: Sequence[Sequence[int]] = ()
    from_original: Sequence[Sequence[tuple[int, float]]] = ()
    from_reconstruction: Sequence[Sequence[tuple[int, float]]] = ()
    neighbours: Sequence[tuple[str, float]] = ()
    pictures: Sequence[Picture] = ()


@dataclass
class ReportData:
    """All data on the report page.

    `facts` are (name, value) pairs for the head of the page, `scores` the table of the reading, `tables` any others (a
    probe), `loss_png` the training curve. `moments` maps a position in `texts` to its best (video, segment, score), the
    best first: what the search box can find. `notes` say what was left out, and why.
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    scores: ScoreTable
    videos: Sequence[VideoData]
    texts: Sequence[str] = ()
    moments: dict[int, Sequence[tuple[int, int, float]]] = field(default_factory=dict)
    tables: Sequence[ScoreTable] = ()
    loss_png: bytes | None = None
    texts_are: str = "captions"
    notes: Sequence[str] = ()


def render(data: ReportData, out: str | Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Writes the page to `out` and returns its path.

    Pictures are left out, evenly along every video, where the page would weigh more than `max_bytes`; the page says so.
    """
    assets = files("lvmae.report") / "assets"
    style, shared, own = (
        (assets / name).read_text(encoding="utf-8") for name in ("report.css", "page.js", "report.js")
    )
    script = f"{shared}{own}"
    segments = [_json_block(f"video-{i}", _segments(video)) for i, video in enumerate(data.videos)]
    store = _json_block(
        "store",
        {
            "videos": [
                {"id": video.id, "duration": video.duration, "segments": len(video.starts)} for video in data.videos
            ],
            "texts": list(data.texts),
            "textsAre": data.texts_are,
            "moments": {text: [[v, s, round(score, 3)] for v, s, score in hits] for text, hits in data.moments.items()},
            "surprises": _surprises(data.videos),
        },
    )
    room = (
        max_bytes - sum(map(len, segments)) - len(store) - len(style) - len(script) - len(data.loss_png or b"") * 4 // 3
    )
    kept, left_out = _fit_pictures([list(video.pictures) for video in data.videos], room)
    notes = list(data.notes)
    if left_out:
        total = left_out + sum(map(len, kept))
        notes.append(
            f"{left_out} of {total} pictures were left out to keep this page under {max_bytes / (1 << 20):.0f} MB."
        )
    pictures = [
        _json_block(f"pictures-{i}", [[round(p.time, 2), base64.b64encode(p.jpeg).decode("ascii")] for p in those])
        for i, those in enumerate(kept)
    ]

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    template = environment.from_string((assets / "report.html").read_text(encoding="utf-8"))
    page = template.render(
        data=data,
        notes=notes,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),  # noqa: S704 -- our own asset, hashed in the policy
        script=Markup(script),  # noqa: S704 -- our own asset, hashed in the policy
        blocks=[store, *segments, *pictures],
        loss=base64.b64encode(data.loss_png).decode("ascii") if data.loss_png else None,
    )
    write_text(out, page)
    return Path(out)


def _segments(video: VideoData) -> dict[str, Any]:
    """The block of one video; short names, three decimals: there may be thousands of segments."""
    return {
        "starts": [round(float(t), 3) for t in video.starts],
        "ends": [round(float(t), 3) for t in video.ends],
        "masked": "".join("1" if masked else "0" for masked in video.masked),
        "reconstruction": _rounded(video.reconstruction),
        "floor": _rounded(video.floor),
        "novelty": _rounded(video.novelty),
        "captions": [list(texts) for texts in video.captions],
        "original": [[[text, round(score, 3)] for text, score in found] for found in video.from_original],
        "reconstructed": [[[text, round(score, 3)] for text, score in found] for found in video.from_reconstruction],
        "neighbours": [[name, round(score, 3)] for name, score in video.neighbours],
    }


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(float(value), 3) for value in values]


def _surprises(videos: Sequence[VideoData], count: int = 6) -> list[list[float]]:
    """[video, segment, cosine] of the worst reconstructed segments of all videos; of many videos at most two each."""
    each = max(2, count // max(1, len(videos)))
    worst: list[list[float]] = []
    for index, video in enumerate(videos):
        known = [(value, segment) for segment, value in enumerate(video.reconstruction) if value is not None]
        worst += [[index, segment, round(value, 3)] for value, segment in sorted(known)[:each]]
    return sorted(worst, key=lambda hit: hit[2])[:count]


def _fit_pictures(pictures: list[list[Picture]], room: int) -> tuple[list[list[Picture]], int]:
    """Keeps every n-th picture of each video, n as small as fits into `room` bytes of base64; the number left out."""
    total = sum(map(len, pictures))
    for every in range(1, total + 1):
        kept = [those[::every] for those in pictures]
        if sum(len(picture.jpeg) * 4 // 3 + 16 for those in kept for picture in those) <= room:
            return kept, total - sum(map(len, kept))
        if all(len(those) <= 1 for those in kept):
            break
    return [[] for _ in pictures], total


def _json_block(name: str, value: Any) -> Markup:
    """A script element that holds data; `<`, `>` and `&` are escaped, so that no text can end it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')  # noqa: S704 -- escaped above


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _cell(value: Cell, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
