"""Which spans of two films show the same pictures: small frames, compared under the few ways in which copies are framed.

Enters: two videos of a store, and segments of them that may be the same. Leaves: spans in seconds with a score, or None if
a film cannot be read. Price: decoding these segments once, and a product of their frames.

A frame is a grey picture without the black borders that stay for the whole film. Its descriptor is the picture with its local
mean taken off, scaled to length 1, so that brightness, contrast and the codec matter little and the place of every edge does.
A copy has one framing all along (nothing, a tenth cut off either film, or one film in a corner of the other) and one offset
in time; a film of the same things has neither. Framing and offset are found on a frame a second, and refined on the frames
that match.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from lvmae.errors import LVMAEError
from lvmae.files.urls import is_remote
from lvmae.store import EmbeddingStore, located

_SIZE = 96  # pixels that a frame is decoded to
_FRAMES = 15  # a segment
_COARSE = 3  # every third frame is compared first
_ZOOMS = (1.0, 0.95, 0.9, 0.85, 0.8)
_INSETS = (0.7, 0.6, 0.5, 0.4, 0.33, 0.25)  # of the other film's width
_MARGINS = (0.02, 0.06)  # between an inset and the edges
_BLACK = 24  # grey values up to this are black
_FLAT = 4.0  # standard deviation below which a picture shows nothing
_MAYBE = 0.55  # cosine of two frames that may be the same, while the framing is a guess
_MAYBE_INSET = 0.7  # likewise of an inset, whose descriptor is coarser
_ALIKE = 0.75  # cosine of two frames that are the same
_SURE = 0.9  # mean cosine over a span
_FILLED = 0.6  # share of a span's frames that have to be alike
_GAP = 2.5  # seconds without a like frame that a span may hold
_CUT = 0.5  # cosine of two frames that follow each other, below which there is a cut between them
_NEAR = 0.7  # seconds within which two cuts are the same
_LONG = 20.0  # seconds for which no two cameras move alike
_SHORT_SURE = 0.95  # mean cosine over a span of under half of that
_UNCUT = 4.0  # seconds of a span without a cut
_UNCUT_SURE = 0.985  # and its mean cosine
_REFINED_ON = 8  # frames
_KEPT_BYTES = 1 << 30

Box = tuple[int, int, int, int]
_WHOLE: Box = (0, 0, _SIZE, _SIZE)


class SharedSpan(NamedTuple):
    """What two films share, in seconds."""

    a_start: float
    a_end: float
    b_start: float
    b_end: float
    score: float


class Film:
    """Frames of a video, and descriptors of some of them, made when they are asked for."""

    def __init__(self, times: np.ndarray, frames: np.ndarray) -> None:
        self.times = times  # (n,) seconds
        self.frames = frames  # (n, _SIZE, _SIZE) uint8, grey, without borders
        self.few = np.ascontiguousarray(frames[::_COARSE])
        self.bytes = frames.nbytes + len(frames) // _COARSE * (len(_ZOOMS) * 576 + (len(_inset_boxes()) + 1) * 144) * 4

    @cached_property
    def zoomed(self) -> torch.Tensor:
        """(zooms, n / _COARSE, d): the middle of the coarse frames."""
        return torch.stack([_descriptors(self.few, _middle(zoom)) for zoom in _ZOOMS])

    @cached_property
    def small(self) -> torch.Tensor:
        """(n / 2 / _COARSE, 144): every second coarse frame, coarsely."""
        return _descriptors(self.few[::2], _WHOLE, 12)

    @cached_property
    def insets(self) -> torch.Tensor:
        """(boxes, n / 2 / _COARSE, 144): what would be shown in a corner of these."""
        return torch.stack([_descriptors(self.few[::2], box, 12) for box in _inset_boxes()])


class Films:
    """The videos of a store, decoded small when they are asked for; the latest stay in memory."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store
        self._kept: OrderedDict[int, Film | None] = OrderedDict()
        self._bytes = 0

    def film(self, video: int) -> Film | None:
        """A video's frames; None if it cannot be read."""
        if video in self._kept:
            self._kept.move_to_end(video)
            return self._kept[video]
        loaded = self._load(video)
        self._kept[video] = loaded
        self._bytes += loaded.bytes if loaded else 0
        while self._bytes > _KEPT_BYTES and len(self._kept) > 2:
            _, old = self._kept.popitem(last=False)
            self._bytes -= old.bytes if old else 0
        return loaded

    def _load(self, video: int) -> Film | None:
        try:
            from lvmae.video.decoding import decode_segments
        except ImportError:
            return None
        record = self.store[video]
        source = located(self.store, record.source)
        if not source or is_remote(source):
            return None
        grey: list[np.ndarray] = []
        try:
            for part in decode_segments(
                source,
                record.starts,
                record.ends,
                num_frames=_FRAMES,
                image_size=_SIZE,
                interpolation="bilinear",
                framing="stretch",
            ):
                grey.append((part @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8))
        except LVMAEError:
            if not grey:
                return None
        offsets = (np.arange(_FRAMES) + 0.5) / _FRAMES
        count = len(grey)
        times = (record.starts[:count, None] + offsets * (record.ends - record.starts)[:count, None]).ravel()
        return Film(times, _without_borders(np.concatenate(grey)))

    def limits(self, video: int) -> tuple[float, float]:
        """Where a video's first segment starts and its last one ends, in seconds."""
        record = self.store[video]
        return float(record.starts[0]), float(record.ends[-1])


# ---- descriptors -----------------------------------------------------------------------------------------------------------


def _without_borders(frames: np.ndarray) -> np.ndarray:
    """(n, S, S): what lies inside the borders that are black in every frame, stretched to the whole."""
    brightest = frames.max(axis=0)
    rows, columns = (np.flatnonzero(np.quantile(brightest, 0.9, axis=axis) > _BLACK) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return frames
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if bottom - top < _SIZE // 3 or right - left < _SIZE // 3 or (bottom - top, right - left) == frames.shape[1:]:
        return frames
    # A pixel in from each edge: it may hold a part of the border.
    top, left = top + (top > 0), left + (left > 0)
    bottom, right = bottom - (bottom < _SIZE), right - (right < _SIZE)
    inner = torch.from_numpy(frames[:, top:bottom, left:right].astype(np.float32))[:, None]
    whole = functional.interpolate(inner, (_SIZE, _SIZE), mode="bilinear", antialias=True)
    return whole[:, 0].round().to(torch.uint8).numpy()


def _descriptors(frames: np.ndarray, box: Box, side: int = 24) -> torch.Tensor:
    """(n, side^2) of length 1, of a part (left, top, right, bottom) of grey frames (n, S, S); zeros where it shows nothing."""
    left, top, right, bottom = box
    down, across = _resampling(top, bottom, side), _resampling(left, right, side)
    small = down @ torch.from_numpy(frames).float() @ across.T
    mean = _local_mean(side)
    flat = (small - mean @ small @ mean.T).reshape(len(frames), -1)
    flat -= flat.mean(1, keepdim=True)
    lengths = flat.norm(dim=1, keepdim=True)
    return torch.where(lengths > _FLAT * side, flat / lengths.clamp_min(1e-6), torch.zeros(()))


@cache
def _resampling(low: int, high: int, side: int) -> torch.Tensor:
    """(side, _SIZE): each of `side` pixels is the mean of its share of the pixels from `low` to `high`."""
    edges = np.linspace(low, high, side + 1)
    pixels = np.arange(_SIZE)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(covered, 0, None)
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))


@cache
def _local_mean(side: int) -> torch.Tensor:
    """(side, side): each pixel becomes the mean of those within a sixth of the width."""
    near = np.abs(np.arange(side)[:, None] - np.arange(side)) <= side // 6
    return torch.from_numpy((near / near.sum(1, keepdims=True)).astype(np.float32))


def _middle(zoom: float) -> Box:
    cut = round(_SIZE * (1 - zoom) / 2)
    return cut, cut, _SIZE - cut, _SIZE - cut


@cache
def _inset_boxes() -> tuple[Box, ...]:
    """The corners, and the middle, where a small picture is mostly put."""
    boxes: list[Box] = []
    for scale in _INSETS:
        side = round(scale * _SIZE)
        room = _SIZE - side
        places = {(room // 2, room // 2)}
        for margin in _MARGINS:
            near = min(round(margin * _SIZE), room // 2)
            places |= {(x, y) for x in (near, room - near) for y in (near, room - near)}
        boxes += [(x, y, x + side, y + side) for x, y in sorted(places)]
    return tuple(boxes)


# ---- two films -------------------------------------------------------------------------------------------------------------


def shared_spans(
    films: Films, a: int, b: int, of_a: np.ndarray, of_b: np.ndarray, *, min_seconds: float
) -> list[SharedSpan] | None:
    """The spans of videos `a` and `b` that show the same. None if one of them cannot be read.

    Args:
        films: the videos' frames.
        a: a place in the store.
        b: another one.
        of_a: (n,) segments of `a` that may be the same as `of_b`.
        of_b: (n,) segments of `b`.
        min_seconds: the shortest span that counts.
    """
    film_a, film_b = films.film(a), films.film(b)
    if film_a is None or film_b is None:
        return None
    limits = films.limits(a), films.limits(b)
    for box_a, box_b in _framings(film_a, film_b, of_a, of_b):
        refined = _refined(film_a, film_b, box_a, box_b)
        if refined is None:
            continue
        of_box_a, of_box_b = (
            _descriptors(film.frames, box) for film, box in zip((film_a, film_b), refined, strict=True)
        )
        spans = _spans((of_box_a @ of_box_b.T).numpy(), film_a.times, film_b.times, limits, min_seconds)
        cuts = _cuts(of_box_a, film_a.times, limits[0]), _cuts(of_box_b, film_b.times, limits[1])
        spans = [span for span in spans if _is_copy(span, cuts, framed=refined != (_WHOLE, _WHOLE))]
        if spans:
            return spans
    return []


def _framings(film_a: Film, film_b: Film, of_a: np.ndarray, of_b: np.ndarray) -> Iterator[tuple[Box, Box]]:
    """The likeliest parts of the two films that show the same; none where nothing is alike."""
    near_a, near_b = _around(of_a, film_a.zoomed.shape[1]), _around(of_b, film_b.zoomed.shape[1])
    zoomed_a, zoomed_b = film_a.zoomed[:, near_a], film_b.zoomed[:, near_b]  # (zooms, n, d)
    best = [*(zoomed_a @ zoomed_b[0].T).amax(2), *(zoomed_b[1:] @ zoomed_a[0].T).amax(2)]
    evidence = [float(cosines[cosines > _MAYBE].sum()) for cosines in best]
    chosen = int(np.argmax(evidence))
    if evidence[chosen] > 2 * _MAYBE:
        middle = [(_middle(zoom), _WHOLE) for zoom in _ZOOMS] + [(_WHOLE, _middle(zoom)) for zoom in _ZOOMS[1:]]
        yield middle[chosen]
    # A film in a corner of the other: for some seconds in one and the same place.
    for inset_in_a in (False, True):
        whole, around = (film_b, film_a) if inset_in_a else (film_a, film_b)
        cosines = (around.insets @ whole.small.T).amax(2)  # (boxes, n)
        sums = torch.where(cosines > _MAYBE_INSET, cosines, 0).sum(1)
        place = int(sums.argmax())
        if float(sums[place]) > 2 * _MAYBE_INSET:
            yield (_inset_boxes()[place], _WHOLE) if inset_in_a else (_WHOLE, _inset_boxes()[place])


def _around(of: np.ndarray, count: int) -> np.ndarray:
    """The coarse frames of segments and of their neighbours."""
    each = _FRAMES // _COARSE
    segments = np.unique(np.concatenate([of - 1, of, of + 1]))
    frames = (segments[:, None] * each + np.arange(each)).ravel()
    inside: np.ndarray = frames[(frames >= 0) & (frames < count)]
    return inside


def _refined(film_a: Film, film_b: Film, box_a: Box, box_b: Box) -> tuple[Box, Box] | None:
    """The boxes with their edges moved so that the frames of the best span match best; None if there is no span."""
    few_a, few_b = film_a.few, film_b.few
    times_a, times_b = film_a.times[::_COARSE], film_b.times[::_COARSE]
    scores = (_descriptors(few_a, box_a) @ _descriptors(few_b, box_b).T).numpy()
    step = float(np.median(np.diff(times_a))) if len(times_a) > 1 else 1.0
    span = _best_span(scores, times_a, times_b, step, 2.5, alike=_MAYBE, sure=_MAYBE + 0.05)
    if span is None:
        return None
    offset, start, end, score = span
    if score > 0.97:
        return box_a, box_b
    rows = np.flatnonzero((times_a >= start) & (times_a <= end))
    columns = np.abs(times_b[None] - (times_a[rows] + offset)[:, None]).argmin(1)
    best = np.argsort(-scores[rows, columns])[:_REFINED_ON]
    of_a, of_b = few_a[rows[best]], few_b[columns[best]]
    still, moving = (of_b, of_a) if box_b == _WHOLE else (of_a, of_b)
    target = _descriptors(still, _WHOLE)
    box = box_a if box_b == _WHOLE else box_b
    most = float((_descriptors(moving, box) * target).sum(1).median())
    step = 4
    while step:
        moves = [tuple(np.clip(np.array(box) + step * np.array(move), 0, _SIZE).tolist()) for move in _MOVES]
        tried = [
            (float((_descriptors(moving, one) * target).sum(1).median()), one)
            for one in moves
            if min(one[2] - one[0], one[3] - one[1]) >= _SIZE // 5
        ]
        top = max(tried, default=(0.0, box))
        if top[0] > most + 1e-4:
            most, box = top
        else:
            step //= 2
    if most < _SURE - 0.05:
        return None
    return (box, _WHOLE) if box_b == _WHOLE else (_WHOLE, box)


_MOVES = (
    (1, 0, 0, 0), (-1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0), (0, 0, 1, 0), (0, 0, -1, 0), (0, 0, 0, 1), (0, 0, 0, -1),
    (1, 0, 1, 0), (-1, 0, -1, 0), (0, 1, 0, 1), (0, -1, 0, -1), (1, 1, -1, -1), (-1, -1, 1, 1),
)  # fmt: skip
"""One edge of a box, all of it across or down, smaller, larger."""


def _spans(
    scores: np.ndarray,
    times_a: np.ndarray,
    times_b: np.ndarray,
    limits: tuple[tuple[float, float], tuple[float, float]],
    min_seconds: float,
) -> list[SharedSpan]:
    """Spans on diagonals of frames alike, in order of time; no frame of either film is in two."""
    scores = scores.copy()
    step = float(np.median(np.diff(times_a))) if len(times_a) > 1 else 1.0
    found: list[SharedSpan] = []
    while True:
        best = _best_span(scores, times_a, times_b, step, min_seconds)
        if best is None:
            return sorted(found)
        offset, start, end, score = best
        scores[(times_a > start - step) & (times_a < end + step)] = 0
        scores[:, (times_b > start + offset - step) & (times_b < end + offset + step)] = 0
        found.append(_snapped(start - step / 2, end + step / 2, offset, limits, score))


def _best_span(
    scores: np.ndarray,
    times_a: np.ndarray,
    times_b: np.ndarray,
    step: float,
    min_seconds: float,
    *,
    alike: float = _ALIKE,
    sure: float = _SURE,
) -> tuple[float, float, float, float] | None:
    """Offset, start and end in a's seconds, and mean cosine of the span with most frames alike."""
    rows, columns = np.nonzero(scores > alike)
    if len(rows) < 3:
        return None
    values = scores[rows, columns]
    offsets = times_b[columns] - times_a[rows]
    bins = np.round((offsets - offsets.min()) / step * 2).astype(int)
    weight = np.convolve(np.bincount(bins, (values - alike / 2) ** 2), np.ones(3), "same")
    best: tuple[float, float, float, float] | None = None
    most = 0.0
    for place in np.argsort(-weight)[:16]:
        near = np.abs(offsets - (place * step / 2 + offsets.min())) <= 0.75 * step
        if not near.any():
            continue
        exact = float(np.average(offsets[near], weights=(values[near] - alike / 2) ** 8))
        # One offset: of each frame the one that is then shown in the other film.
        near = np.abs(offsets - exact) <= 0.55 * step
        peak = np.zeros(len(times_a), np.float32)
        np.maximum.at(peak, rows[near], values[near])
        matched = np.flatnonzero(peak)
        for run in np.split(matched, np.flatnonzero(np.diff(times_a[matched]) > _GAP) + 1):
            if not len(run):
                continue
            start, end = times_a[run[0]], times_a[run[-1]]
            mean = float(peak[run].mean())
            filled = len(run) / max(1, round((end - start) / step) + 1)
            total = float(((peak[run] - alike / 2) ** 2).sum())
            if end - start + step < min_seconds or filled < _FILLED or mean < sure or total <= most:
                continue
            best, most = (exact, float(start), float(end), mean), total
    return best


def _cuts(descriptors: torch.Tensor, times: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """When pictures change at once, the film's start and end among them."""
    same = (descriptors[1:] * descriptors[:-1]).sum(1).numpy()
    return np.concatenate([limits[:1], ((times[1:] + times[:-1]) / 2)[same < _CUT], limits[1:]])


def _is_copy(span: SharedSpan, cuts: tuple[np.ndarray, np.ndarray], *, framed: bool) -> bool:
    """Whether a span is a copy's rather than that of two cameras whose ways cross for a while.

    A copy runs through the film's own cuts, or is long. If it holds no cut, it begins and ends with one, and is complete.
    """
    offset, seconds = span.b_start - span.a_start, span.a_end - span.a_start
    if seconds >= _LONG:
        return True
    inner = [time for time in cuts[0][1:-1] if span.a_start + _NEAR < time < span.a_end - _NEAR]
    if any(np.abs(cuts[1] - offset - time).min() < _NEAR for time in inner):
        return span.score >= (_SHORT_SURE if seconds < _LONG / 2 else _SURE)
    both = np.concatenate([cuts[0], cuts[1] - offset])
    abrupt = all(np.abs(both - end).min() < _NEAR for end in (span.a_start, span.a_end))
    return abrupt and not framed and seconds >= _UNCUT and span.score >= _UNCUT_SURE


def _snapped(
    start: float, end: float, offset: float, limits: tuple[tuple[float, float], tuple[float, float]], score: float
) -> SharedSpan:
    """A span within both films; an end that is nearly a film's end is that."""
    low = max(limits[0][0], limits[1][0] - offset)
    high = min(limits[0][1], limits[1][1] - offset)
    start, end = max(start, low), min(end, high)
    start = low if start - low < 1.0 else start
    end = high if high - end < 1.0 else end
    return SharedSpan(start, end, start + offset, end + offset, score)
