"""Chapters of one video: where its content changes, and what each part shows.

Enters: a video of a store. Leaves: a `Timeline`, as text, JSON, WebVTT chapters or a picture. Price: O(n^2 D) for n segments, so
about a second for a film of two hours; titles cost the encoder's text side once. Beyond 4,096 segments borders are found on a grid
of so many places, and each is then moved to the segment where it is best.

The borders are the optimal segmentation, by dynamic programming, under the cost of kernel change-point detection with the cosine
kernel (Harchaoui & Cappé 2007; Arlot, Celisse & Harchaoui, JMLR 2019): a chapter of segments with unit vectors u_1..u_n costs
sum ||u_t - mean||^2 = n - ||sum u_t||^2 / n, nothing if all are alike. With the number of chapters given, their costs are minimal.
Otherwise each further chapter costs 2 s^2 log L more (the criterion of Schwarz, for changes of a mean: Yao 1988), where s^2 is the
scatter inside a chapter, taken from the video itself as half the lower quartile of the squared steps between neighbours: so up to
three quarters of the steps may lead across borders. Novelty, one minus the cosine with the segment before, is what the picture
shows beside them.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvmae.errors import InputError, WorkError
from lvmae.files.cache import cached
from lvmae.files.pictures import png_of
from lvmae.files.writing import write_bytes
from lvmae.library import place_of
from lvmae.library.spans import Span
from lvmae.process import say
from lvmae.store import EMBEDDINGS, EmbeddingStore, l2_normalize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lvmae.encoders import SegmentEncoder

_LEAST_SECONDS = 10.0  # a chapter's least length where none is asked for, and of a long video
_MOST_CHAPTERS = 40  # at least this part of it
_WORDS = 3  # a chapter
_GRID = 4096  # places of borders that are tried together: all of a film of five hours
_TOGETHER = 128  # ends whose products are taken at once
_PASSES = 8  # in which the borders of a longer video are moved from the grid to their segments


@dataclass(frozen=True)
class Chapter:
    """A part of a video, `start` to `end` in seconds; `words` are the vocabulary's nearest, best first, if there is one."""

    start: float
    end: float
    title: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """The chapters of a video, without gaps, and the novelty of its segments."""

    video: str
    duration: float
    chapters: tuple[Chapter, ...]
    starts: tuple[float, ...]
    """A segment's start in seconds."""
    novelty: tuple[float | None, ...]
    """One minus the cosine with the segment before; None for the first."""
    spans: tuple[Span, ...] = ()
    """What stretches of it show, as a person or a probe says."""

    def with_spans(self, spans: Sequence[Span]) -> Timeline:
        """Returns the timeline with those spans that belong to its video, ordered by start."""
        own = (span for span in spans if span.video == self.video)
        return replace(self, spans=tuple(sorted(own, key=lambda span: (span.start, span.end, span.label))))

    def to_text(self) -> str:
        """Returns one line per chapter, start and title, as video platforms read them; then one line per span."""
        lines = [f"{clock(chapter.start)} {chapter.title}" for chapter in self.chapters]
        lines += [""] * bool(self.spans)
        lines += [f"{clock(span.start)}-{clock(span.end)} {span.label} ({span.score:.2f})" for span in self.spans]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def to_vtt(self) -> str:
        """Returns WebVTT chapters, for the `<track kind="chapters">` of a video element."""
        cues = [
            f"{number}\n{_stamp(chapter.start)} --> {_stamp(chapter.end)}\n{html.escape(chapter.title, quote=False)}\n"
            for number, chapter in enumerate(self.chapters, start=1)
        ]
        return "\n".join(["WEBVTT\n", *cues])

    def to_png(self) -> bytes:
        """Returns a picture of the novelty along the video with borders and titles, 1600 pixels wide."""
        return png_of(lambda: _figure(self), dpi=100)

    def save(self, path: str | Path) -> Path:
        """Writes the timeline in the format of the suffix: .vtt, .json, .txt or .png. Raises InputError for another."""
        path = Path(path)
        content = _FORMATS[check_format(path)](self)
        write_bytes(path, content if isinstance(content, bytes) else (content.rstrip("\n") + "\n").encode())
        return path


_FORMATS: dict[str, Any] = {
    ".vtt": Timeline.to_vtt,
    ".json": Timeline.to_json,
    ".txt": Timeline.to_text,
    ".png": Timeline.to_png,
}


def check_format(path: str | Path) -> str:
    """The suffix of a file that a timeline can be written to. Raises InputError for another one."""
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"{path} must end in {', '.join(_FORMATS)}: the suffix sets the format")
    return suffix


def timeline(
    store: str | Path | EmbeddingStore,
    video: str,
    *,
    chapters: int | None = None,
    min_seconds: float | None = None,
    titles: bool = True,
) -> Timeline:
    """Cuts a video into chapters.

    Args:
        store: embeddings, or representations (which have no titles).
        video: an id of the store.
        chapters: exactly so many; None lets the video decide.
        min_seconds: the least length of a chapter; by default 10 seconds, or a fortieth of a long video. Not beside `chapters`.
        titles: look for titles in the encoder's vocabulary, where it has one; otherwise they are "Chapter 1" and so on.

    Raises:
        InputError: no such video; both or impossible numbers.
    """
    store = EmbeddingStore.open(store)
    if chapters is not None and min_seconds is not None:
        raise InputError("give the number of chapters or their least length, not both")
    if min_seconds is not None and not 0 <= min_seconds < float("inf"):
        raise InputError(f"a chapter's least length must be a number of seconds, not {min_seconds}")
    record = store[place_of(store, video)]
    unit = l2_normalize(record.embeddings)
    if chapters is not None and not 1 <= chapters <= len(unit):
        raise InputError(
            f"{video!r} has {len(unit)} segments, so it can have 1 to {len(unit)} chapters, not {chapters}"
        )
    end = min(record.ends[-1], record.starts[0] + record.duration)  # of a clip, seconds of its file
    edges = np.append(record.starts, end)  # (L + 1,) a chapter's possible borders
    if chapters is not None:
        borders = segment_exactly(unit, chapters)
    else:
        least = max(_LEAST_SECONDS, record.duration / _MOST_CHAPTERS) if min_seconds is None else min_seconds
        borders = segment_freely(unit, edges, least)
    parts = [(first, last) for first, last in zip(borders, [*borders[1:], len(unit)], strict=True)]
    words = _words(store, np.stack([unit[first:last].mean(axis=0) for first, last in parts]), titles)
    steps = 1.0 - np.einsum("nd,nd->n", unit[1:], unit[:-1])
    return Timeline(
        video=video,
        duration=float(record.duration),
        chapters=tuple(
            Chapter(
                start=float(edges[first]),
                end=float(edges[last]),
                title=said[0].capitalize() if said else f"Chapter {number}",
                words=said,
            )
            for number, ((first, last), said) in enumerate(zip(parts, words, strict=True), start=1)
        ),
        starts=tuple(record.starts.tolist()),
        novelty=(None, *(round(float(step), 4) for step in steps)),
    )


def segment_exactly(unit: np.ndarray, chapters: int) -> list[int]:
    """First segments of exactly `chapters` chapters of least total cost, of unit vectors (L, D)."""
    places = _places(len(unit), chapters)
    last = len(places) - 1
    best = np.full(
        (chapters + 1, last + 1), np.inf
    )  # best[c, j]: cost of what lies before the j-th place in c chapters
    best[0, 0] = 0.0
    before = np.zeros((chapters + 1, last + 1), np.int64)
    sums = _sums(unit)
    for end, costs in _costs(sums, places):  # (end,): a chapter from each place i < end to `end`
        totals = best[:-1, :end] + costs  # (chapters, end)
        before[1:, end] = totals.argmin(axis=1)
        best[1:, end] = totals.min(axis=1)
    borders = [last]
    for count in range(chapters, 0, -1):
        borders.append(int(before[count, borders[-1]]))
    return _refined([int(places[border]) for border in borders[:0:-1]], sums, places)


def segment_freely(unit: np.ndarray, edges: np.ndarray, min_seconds: float) -> list[int]:
    """First segments of the chapters, as many as pay for themselves and last `min_seconds`, of unit vectors (L, D).

    `edges` (L + 1,) are the segments' starts and the video's end. A video shorter than `min_seconds` is one chapter.
    """
    length = len(unit)
    steps = ((unit[1:] - unit[:-1]).astype(np.float64) ** 2).sum(axis=1)
    scatter = float(np.quantile(steps, 0.25)) / 2 if length > 1 else 0.0
    price = max(2.0 * scatter * np.log(length), 1e-6 * length)  # rounding alone must not pay for a chapter
    places = _places(length)
    best = np.full(len(places), np.inf)
    best[0] = 0.0
    before = np.zeros(len(places), np.int64)
    sums = _sums(unit)
    for end, costs in _costs(sums, places):
        allowed = edges[places[end]] - edges[places[:end]] >= min_seconds * (1 - 1e-9)
        totals = np.where(allowed, best[:end] + costs + price, np.inf)
        before[end] = totals.argmin()  # the first place where nothing is allowed: one chapter
        best[end] = totals[before[end]]
    borders = [len(places) - 1]
    while borders[-1]:
        borders.append(int(before[borders[-1]]))
    return _refined(
        [int(places[border]) for border in borders[:0:-1]], sums, places, edges, least=min_seconds, price=price
    )


def _places(length: int, least: int = 1) -> np.ndarray:
    """Where borders may lie at first: everywhere, or in a very long video on a grid; the last is the end."""
    return np.unique(np.linspace(0, length, min(length, max(_GRID, least)) + 1).round().astype(np.int64))


def _sums(unit: np.ndarray) -> np.ndarray:
    """(L + 1, D): the sum of all vectors before each place."""
    return np.concatenate([np.zeros((1, unit.shape[1])), np.cumsum(unit, axis=0, dtype=np.float64)])


def _costs(sums: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For each place but the first, the costs of a chapter from each earlier one to it: n - ||sum||^2 / n."""
    at = sums[places]
    squares = np.einsum("nd,nd->n", at, at)
    for first in range(1, len(places), _TOGETHER):
        ends = range(first, min(first + _TOGETHER, len(places)))
        products = at[first : ends[-1] + 1] @ at[: ends[-1] + 1].T
        for end in ends:
            lengths = places[end] - places[:end]
            norms = squares[:end] - 2 * products[end - first, :end] + squares[end]
            yield end, lengths - norms / lengths


def _refined(
    borders: list[int],
    sums: np.ndarray,
    places: np.ndarray,
    edges: np.ndarray | None = None,
    *,
    least: float = 0.0,
    price: float = 0.0,
) -> list[int]:
    """Borders from a grid, each moved to where it is best between its neighbours, until none moves and each pays its price."""
    length = int(places[-1])
    reach = int(np.diff(places).max())
    if reach == 1:
        return borders
    for _ in range(_PASSES):
        was = list(borders)
        for number in range(1, len(borders)):
            low, high = borders[number - 1], borders[number + 1] if number + 1 < len(borders) else length
            tried = np.arange(max(low + 1, borders[number] - reach), min(high, borders[number] + reach + 1))
            if edges is not None:
                shortest = np.minimum(edges[tried] - edges[low], edges[high] - edges[tried])
                tried = tried[shortest >= least * (1 - 1e-9)]
            if not len(tried):
                continue
            left, right = sums[tried] - sums[low], sums[high] - sums[tried]
            kept = (left**2).sum(1) / (tried - low) + (right**2).sum(1) / (high - tried)
            borders[number] = int(tried[kept.argmax()])
        ends = [*borders[1:], length]
        for number in range(len(borders) - 1, 0, -1):  # a chapter that only the grid made
            low, middle, high = borders[number - 1], borders[number], ends[number]
            apart = ((sums[middle] - sums[low]) ** 2).sum() / (middle - low)
            apart += ((sums[high] - sums[middle]) ** 2).sum() / (high - middle)
            if apart - ((sums[high] - sums[low]) ** 2).sum() / (high - low) < price:
                del borders[number], ends[number - 1]
        if borders == was:
            break
    return borders


def _words(store: EmbeddingStore, means: np.ndarray, wanted: bool) -> list[tuple[str, ...]]:
    """The vocabulary's words nearest to each mean (C, D); empty if there is no vocabulary."""
    untitled: list[tuple[str, ...]] = [()] * len(means)
    if not wanted or store.kind != EMBEDDINGS:
        return untitled
    try:
        from lvmae.encoders import encoder_of

        encoder = encoder_of(store.manifest)
    except (ImportError, InputError, WorkError) as error:
        say(f"note: the chapters have no titles: {str(error).rstrip('.')}.")
        return untitled
    vocabulary = [str(word) for word in getattr(encoder, "vocabulary", None) or ()]
    if not vocabulary or not encoder.has_text:
        return untitled
    scores = means @ _vectors(encoder, vocabulary).T  # (C, words)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :_WORDS]
    return [tuple(vocabulary[word] for word in row) for row in best]


def _vectors(encoder: SegmentEncoder, vocabulary: list[str]) -> np.ndarray:
    """Unit vectors (words, D) of a vocabulary, computed once and kept in the cache: they take longer than all the rest."""
    key = hashlib.sha256(json.dumps([encoder.space_id, vocabulary]).encode()).hexdigest()[:16]
    path = cached(
        "vocabularies", f"{key}.npy", lambda path: np.save(path, l2_normalize(encoder.encode_text(vocabulary)))
    )
    vectors: np.ndarray = np.load(path, allow_pickle=False)
    return vectors


def clock(seconds: float) -> str:
    """A time as h:mm:ss, rounded down."""
    whole = int(seconds + 1e-6)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _stamp(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    whole = thousandths // 1000
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{thousandths % 1000:03d}"


def _figure(found: Timeline) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    labels = list(dict.fromkeys(span.label for span in found.spans))
    below = 0.35 * len(labels) + 0.3 * bool(labels)  # inches
    figure = Figure(figsize=(16, 4.2 + below), dpi=100, layout="constrained")
    if labels:
        axes, rows = figure.subplots(2, 1, sharex=True, height_ratios=[4.2, below])
        _draw_spans(rows, found, labels)
    else:
        axes = figure.add_subplot()
    colours = ("#23566f", "#b8430f")
    for number, chapter in enumerate(found.chapters):
        axes.axvspan(chapter.start, chapter.end, color=colours[number % 2], alpha=0.09, linewidth=0)
        if number:
            axes.axvline(chapter.start, color="#1c1b18", linewidth=0.8)
    times, values = np.array(found.starts[1:]), np.array(found.novelty[1:], dtype=float)
    axes.fill_between(times, values, step="mid", color=colours[0], alpha=0.35, linewidth=0)
    axes.step(times, values, where="mid", color=colours[0], linewidth=1.1)
    top = float(max(values.max(initial=0.0), 0.05)) * 1.08
    low = min(0.0, float(values.min(initial=0.0)))
    axes.set(xlim=(found.chapters[0].start, found.chapters[-1].end), ylim=(low, top * 1.7), ylabel="novelty")
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= top])
    for chapter in found.chapters:
        # Upright, because a chapter may be too narrow for a title that lies.
        axes.text(
            chapter.start + found.duration * 0.004,
            top * 1.02,
            chapter.title,
            rotation=90,
            va="bottom",
            fontsize=9,
            clip_on=True,
        )
    axes.set_title(found.video, loc="left", fontsize=11)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_spans(axes: Any, found: Timeline, labels: list[str]) -> None:
    """A row a label, the surer a span the darker."""
    for row, label in enumerate(labels):
        for span in (span for span in found.spans if span.label == label):
            alpha = 0.25 + 0.65 * min(1.0, max(0.0, span.score))
            axes.barh(
                row, span.end - span.start, left=span.start, height=0.7, color="#b8430f", alpha=alpha, linewidth=0
            )
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
