"""Near-duplicates: pairs of videos, and the spans of them, that show the same.

Enters: a store, and its videos where they can be read. Leaves: `Duplicate`s, with start and end on both sides. Price: a
product of all segments with all others, over a projection to `_PROJECTED` dimensions (100,000 segments: under a minute on two
cores); then about a second for each ten minutes of video that comes into question, because pictures are compared.

1. Candidates: pairs of segments of two videos whose vectors, centred on the library's mean, are alike.
2. Where both videos can be read, their pictures decide (`lvmae.library.copies`): an encoder that says what is to be seen
   gives the same photograph on another camera path the same vector, and only pixels tell a copy from a look-alike.
3. Elsewhere runs on a diagonal decide: segments that follow each other and are alike in the same order. A copy that starts
   within a segment is met by interpolating neighbours, which also tells by what part of a segment it is late."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lvmae.errors import InputError
from lvmae.library.copies import Films, SharedSpan, shared_spans
from lvmae.progress import progress
from lvmae.store import EmbeddingStore, VideoRecord, l2_normalize

_ALIKE = 0.6  # cosine of centred segments from which two are candidates
_PROJECTED = 96  # dimensions in which the segments of a large store are first compared
_EXACT_UP_TO = 20_000  # segments that are compared in all dimensions
_MARGIN = 0.1  # a projected cosine may be so much lower than the whole one
_BLOCK = 1024  # segments compared at once with twice as many: their cosines stay in a core's cache
_MOST = 10_000_000  # candidates kept of all; of segments with many look-alikes the nearest
_MOST_LOOKED_AT = 300_000  # candidates whose pictures are compared, those in the best runs first
_RUN = 3  # segments that have to follow each other where vectors alone decide
_RUN_ALIKE = 0.85  # and their mean cosine
_END_ALIKE = 0.75  # cosine of its first and last segment
_PHASES = np.arange(0, 0.55, 0.1)  # parts of a segment that a copy may be late by
_GAP = 2  # segments within a run that may be unlike


@dataclass(frozen=True)
class Duplicate:
    """Two spans, in seconds, that show the same. `score` is the mean cosine; `checked` says of what: "pictures" or "vectors"."""

    a: str
    b: str
    a_start: float
    a_end: float
    b_start: float
    b_end: float
    score: float
    checked: str


def find_duplicates(
    store: str | Path | EmbeddingStore, *, pictures: bool = True, min_seconds: float = 3.0
) -> list[Duplicate]:
    """Pairs of spans of two videos that show the same, the longest first.

    Args:
        store: embeddings or representations.
        pictures: compare the pictures of candidates, where both videos can be read; otherwise vectors alone decide, and a video of
            the same things can pass for a copy.
        min_seconds: the shortest span that counts.

    Raises:
        InputError: a length that is none.
    """
    if not 0 < min_seconds < float("inf"):
        raise InputError(f"a span's least length must be a number of seconds above 0, not {min_seconds}")
    store = EmbeddingStore.open(store)
    segments = _Segments(store)
    first, second, cosines = _candidates(segments)
    if not len(first):
        return []
    films = Films(store) if pictures else None
    found: list[Duplicate] = []
    unseen: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    looked_at = _best(segments, first, second, cosines) if films else np.zeros(len(first), bool)
    pairs = list(_by_pair(segments, first, second))
    for a, b, rows in progress(pairs, desc="duplicates", unit="pairs") if films else pairs:
        spans: Sequence[SharedSpan] | None = None
        if films is not None and looked_at[rows].any():
            seen = rows[looked_at[rows]]
            spans = shared_spans(
                films, a, b, segments.place[first[seen]], segments.place[second[seen]], min_seconds=min_seconds
            )
        if spans is None:
            unseen.append((a, b, first[rows], second[rows]))
        else:
            found += [_duplicate(store.ids[a], store.ids[b], span, "pictures") for span in spans]
    for a, b, i, j in unseen:
        found += _runs(segments, store[a], store[b], i, j, min_seconds=min_seconds)
    return sorted(found, key=lambda one: (one.a_start - one.a_end, one.a, one.b))


def _duplicate(a: str, b: str, span: SharedSpan, checked: str) -> Duplicate:
    a_start, a_end, b_start, b_end = (round(time, 2) for time in span[:4])
    return Duplicate(a, b, a_start, a_end, b_start, b_end, round(span.score, 3), checked)


def duplicate_ids(found: Sequence[Duplicate]) -> list[str]:
    """The ids that have to go so that no two videos show the same: of each pair the second, unless the first goes already."""
    gone: set[str] = set()
    for one in sorted(found, key=lambda one: (one.a, one.b)):
        if one.a not in gone and one.b not in gone:
            gone.add(one.b)
    return sorted(gone)


def to_csv(found: Sequence[Duplicate]) -> str:
    """A header and a line each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Duplicate)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(one) for one in found)
    return text.getvalue()


def to_json(found: Sequence[Duplicate]) -> str:
    """A list of objects."""
    return json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False)


class _Segments:
    """All segments of a store: unit vectors around their mean, and whose they are."""

    def __init__(self, store: EmbeddingStore) -> None:
        count = int(store.lengths.sum())
        unit = np.empty((count, store.dim), np.float32)
        self.firsts = np.concatenate([[0], np.cumsum(store.lengths)])
        for video in range(len(store)):
            unit[self.firsts[video] : self.firsts[video + 1]] = l2_normalize(store.embeddings(video))
        unit -= unit.mean(axis=0)
        self.unit = l2_normalize(unit)  # (N, D)
        self.video = np.repeat(np.arange(len(store)), store.lengths)  # (N,)
        self.place = np.arange(count) - self.firsts[self.video]  # (N,)

    def projected(self) -> np.ndarray:
        """(N, d): unit vectors in the directions in which the library varies most, in which a product costs less."""
        if len(self.unit) <= _EXACT_UP_TO or self.unit.shape[1] <= _PROJECTED:
            return self.unit
        sample = self.unit[np.linspace(0, len(self.unit) - 1, 8192).astype(int)]
        _, directions = np.linalg.eigh(sample.T @ sample)
        return l2_normalize(self.unit @ directions[:, -_PROJECTED:].astype(np.float32))


def _candidates(segments: _Segments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments (n,) and (n,) of two videos, the first before the second, whose cosine (n,) is high."""
    small = torch.from_numpy(segments.projected())
    whole = torch.from_numpy(segments.unit)
    count = len(small)
    least = _ALIKE if small.shape[1] == whole.shape[1] else _ALIKE - _MARGIN
    most = max(64, _MOST // max(1, count))  # a segment
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    blocks = range(0, count, _BLOCK)
    for start in progress(blocks, desc="segments", unit="blocks") if len(blocks) > 8 else blocks:
        stop = min(start + _BLOCK, count)
        begin = int(segments.firsts[segments.video[start] + 1])  # nothing is compared with its own video
        for left in range(begin, count, 2 * _BLOCK):
            scores = small[start:stop] @ small[left : left + 2 * _BLOCK].T
            some = torch.nonzero(scores.amax(1) > least)[:, 0]  # few: looking for them costs less than each comparison
            if not len(some):
                continue
            kept = scores[some]
            at = torch.nonzero(kept > least)
            if len(at) > most * len(scores):
                nearest = kept.topk(min(most, kept.shape[1]), dim=1)
                at = torch.nonzero(nearest.values > least)
                at[:, 1] = nearest.indices[at[:, 0], at[:, 1]]
            rows, columns = some[at[:, 0]], at[:, 1]
            i, j = rows.numpy() + start, columns.numpy() + left
            other = segments.video[j] > segments.video[i]
            i, j = i[other], j[other]
            for part in range(0, len(i), 1 << 16):
                those = slice(part, part + (1 << 16))
                cosines = torch.einsum("nd,nd->n", whole[i[those]], whole[j[those]]).numpy()
                right = cosines > _ALIKE
                found.append((i[those][right], j[those][right], cosines[right]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def _by_pair(segments: _Segments, first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each pair of videos with the rows of its candidates."""
    a, b = segments.video[first], segments.video[second]
    order = np.lexsort((first, b, a))
    borders = np.flatnonzero((np.diff(a[order]) != 0) | (np.diff(b[order]) != 0)) + 1
    for rows in np.split(order, borders):
        yield int(a[rows[0]]), int(b[rows[0]]), rows


def _best(segments: _Segments, first: np.ndarray, second: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """(n,) bool: the candidates whose pictures are compared: all, or where they are too many those with like neighbours."""
    if len(first) <= _MOST_LOOKED_AT:
        return np.ones(len(first), bool)
    support = cosines.copy()
    for step in (-1, 1):
        i, j = first + step, second + step
        inside = (np.minimum(i, j) >= 0) & (np.maximum(i, j) < len(segments.unit))
        i, j = np.clip(i, 0, None), np.clip(j, 0, None)
        inside &= segments.video[i * inside] == segments.video[first]
        inside &= segments.video[j * inside] == segments.video[second]
        for part in range(0, len(first), 1 << 16):
            those = slice(part, part + (1 << 16))
            near = np.einsum(
                "nd,nd->n", segments.unit[i[those] * inside[those]], segments.unit[j[those] * inside[those]]
            )
            support[those] += near * inside[those]
    chosen = np.zeros(len(first), bool)
    chosen[np.argpartition(-support, _MOST_LOOKED_AT)[:_MOST_LOOKED_AT]] = True
    return chosen


# ---- vectors alone ---------------------------------------------------------------------------------------------------------


def _runs(
    segments: _Segments, a: VideoRecord, b: VideoRecord, i: np.ndarray, j: np.ndarray, *, min_seconds: float
) -> list[Duplicate]:
    """The runs on diagonals of candidates (i, j), segments of the whole store; no segment is in two."""
    first_a, first_b = int(i[0] - segments.place[i[0]]), int(j[0] - segments.place[j[0]])
    unit_a = segments.unit[first_a : first_a + len(a.starts)]
    unit_b = segments.unit[first_b : first_b + len(b.starts)]
    i, j = i - first_a, j - first_b
    runs: list[_Run] = []
    for diagonal in np.unique(j - i):
        places = np.sort(i[j - i == diagonal])
        for part in np.split(places, np.flatnonzero(np.diff(places) > _GAP + 1) + 1):
            low, high = int(part[0]), int(part[-1]) + 1
            if len(part) >= _RUN and len(part) >= 0.6 * (high - low):
                runs.append(_in_phase(unit_a, unit_b, low, high, int(diagonal)))
    found: list[Duplicate] = []
    free_a, free_b = np.ones(len(a.starts), bool), np.ones(len(b.starts), bool)
    for run in sorted(runs, key=lambda run: -run.score * (run.high - run.low)):
        of_a, of_b = slice(run.low, run.high), slice(run.low + run.diagonal, run.high + run.diagonal)
        if run.score < _RUN_ALIKE or not free_a[of_a].all() or not free_b[of_b].all():
            continue
        start, end = float(a.starts[run.low]), float(a.ends[run.high - 1])
        offset = float(b.starts[run.low + run.diagonal]) - start + run.late * float(a.ends[run.low] - a.starts[run.low])
        begin, stop = max(start, float(b.starts[0]) - offset), min(end, float(b.ends[-1]) - offset)
        if stop - begin < min_seconds:
            continue
        free_a[of_a], free_b[of_b] = False, False
        span = SharedSpan(begin, stop, begin + offset, stop + offset, min(1.0, run.score))
        found.append(_duplicate(a.id, b.id, span, "vectors"))
    return found


class _Run(NamedTuple):
    """Segments `low` to `high` of one video that are those of another, `diagonal` places and `late` of a segment later."""

    low: int
    high: int
    diagonal: int
    late: float
    score: float


def _in_phase(unit_a: np.ndarray, unit_b: np.ndarray, low: int, high: int, diagonal: int) -> _Run:
    """The run at the part of a segment at which it fits best: what lies between two segments is taken as their mean."""
    of_a, of_b = unit_a[low:high], unit_b[low + diagonal : high + diagonal]
    late, cosines = 0.0, (of_a * of_b).sum(1)
    for step in (-1, 1):
        # Late by a part p: b's segment shows the last p of the segment before, and the rest of its own.
        near = unit_a[np.clip(np.arange(low, high) - step, 0, len(unit_a) - 1)]
        for part in _PHASES[1:]:
            tried = (l2_normalize((1 - part) * of_a + part * near) * of_b).sum(1)
            if tried.mean() > cosines.mean() + 1e-3:
                late, cosines = step * float(part), tried
    while len(cosines) > _RUN and min(cosines[0], cosines[-1]) < _END_ALIKE:  # only a part of it is the same
        first = int(cosines[0] <= cosines[-1])
        low, high, cosines = low + first, high - 1 + first, cosines[first : len(cosines) - 1 + first]
    return _Run(low, high, diagonal, late, float(cosines.mean()))
