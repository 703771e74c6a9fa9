"""A store as a library: moments by text or by example, and videos by example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lvmae.errors import InputError
from lvmae.library.nearest import Nearest
from lvmae.process import own_state
from lvmae.store import EMBEDDINGS, EmbeddingStore, l2_normalize

if TYPE_CHECKING:
    from lvmae.encoders import SegmentEncoder

_REACH = 8  # segments to each side that are looked at first
_SAMPLE = 4096  # segments that the library's mean is taken over


@dataclass(frozen=True)
class Moment:
    """Neighbouring segments of one video that match: `first` to `last`, of which `segment` matches best, with cosine `score`."""

    video: str
    start: float  # seconds
    end: float
    score: float
    index: int  # the video's place in the store
    segment: int
    first: int
    last: int


@dataclass(frozen=True)
class SimilarVideo:
    """A video and the cosine of its centred feature with that of the video asked for."""

    video: str
    score: float
    duration: float  # seconds


class Library:
    """A store of embeddings to find moments in.

    A moment is a segment that matches well and the segments around it that belong to the same match: those that score at least
    half as high as it does, counted from the library's mean score for what is asked (the width of the peak at half its
    height, a measure that needs no scale of its own: encoders differ in how high any cosine is). Moments do not overlap, and what
    scores no higher than the library's mean is none.
    """

    def __init__(self, store: str | Path | EmbeddingStore, *, exact: bool = False) -> None:
        """`exact`: read every segment for each query, also in a library so large that an index would be used."""
        self.store = EmbeddingStore.open(store)
        if self.store.kind != EMBEDDINGS:
            made_from = (self.store.manifest.run or {}).get("store", "the store they were made from")
            raise InputError(
                f"{self.store.path} holds representations, which have no text side; search {made_from} by text, "
                "or name a `video`"
            )
        self._segments = _Segments(self.store)
        self._nearest = Nearest(self._segments, exact=exact)

    @cached_property
    def encoder(self) -> SegmentEncoder:
        """The encoder that made the store. Raises InputError where there is none, or none that reads text."""
        from lvmae.encoders import encoder_of

        encoder = encoder_of(self.store.manifest)
        if not encoder.has_text:
            raise InputError(
                f"the encoder {encoder.name} has no text side, so {self.store.path} cannot be searched by text"
            )
        return encoder

    def search(self, text: str, top: int = 10) -> list[Moment]:
        """The `top` moments that match a text best. Raises InputError for an empty text or a store without a text side."""
        text = " ".join(text.split())
        if not text:
            raise InputError("there is nothing to search for: give a text, such as 'a dog on a beach'")
        return self.moments(self.encoder.encode_text([text])[0], top)

    def moments(self, vector: np.ndarray, top: int = 10) -> list[Moment]:
        """The `top` moments nearest to a vector (D,) of the store's space, best first; fewer where fewer are above the mean."""
        if top < 1:
            raise InputError(f"at least one moment must be asked for, not {top}")
        query = l2_normalize(vector)
        usual = float(self._mean @ query)
        wanted = max(64, 8 * top)
        while True:
            places, scores = self._nearest.search(query[None], wanted)
            found = self._merge(places[0], scores[0], query, usual, top)
            if len(found) == top or scores[0, -1] <= usual or wanted >= len(self._segments):
                return found
            wanted *= 8  # so many were neighbours of one another

    def _merge(self, places: np.ndarray, scores: np.ndarray, query: np.ndarray, usual: float, top: int) -> list[Moment]:
        """Moments around the segments at `places` with `scores`, which come best first."""
        free: dict[int, np.ndarray] = {}  # video -> its segments that are in no moment yet
        moments: list[Moment] = []
        for video, segment, score in zip(*self._segments.locate(places), scores.tolist(), strict=True):
            if moments and score <= usual:
                break
            mine = free.setdefault(video, np.ones(int(self.store.lengths[video]), bool))
            if not mine[segment]:
                continue
            first, last = self._extent(video, segment, query, (score + usual) / 2, mine)
            mine[first : last + 1] = False
            record = self.store[video]
            start, end = float(record.starts[first]), float(record.ends[last])
            moments.append(Moment(record.id, start, end, score, video, segment, first, last))
            if len(moments) == top:
                break
        return moments

    def _extent(self, video: int, segment: int, query: np.ndarray, least: float, free: np.ndarray) -> tuple[int, int]:
        """First and last of the free segments around one that score at least `least`. Looks only as far as it has to."""
        reach = _REACH
        while True:
            begin, end = max(0, segment - reach), min(len(free), segment + reach + 1)
            belongs = free[begin:end] & (l2_normalize(self.store.embeddings(video, begin, end)) @ query >= least)
            belongs[segment - begin] = True
            first, last = _run_around(belongs, segment - begin)
            if (first or not begin) and (last < end - begin - 1 or end == len(free)):
                return begin + first, begin + last
            reach *= 8

    @cached_property
    def _mean(self) -> np.ndarray:
        """(D,): the mean of the library's unit vectors, so that its product with a query is the mean cosine."""
        places = np.linspace(0, len(self._segments) - 1, min(_SAMPLE, len(self._segments))).round().astype(np.int64)
        mean: np.ndarray = l2_normalize(self._segments.take(places)).mean(axis=0)
        return mean


def _run_around(belongs: np.ndarray, place: int) -> tuple[int, int]:
    """First and last place of the run of True that holds `place`."""
    gaps = np.flatnonzero(~belongs)
    after = int(np.searchsorted(gaps, place))
    first = int(gaps[after - 1]) + 1 if after else 0
    last = int(gaps[after]) - 1 if after < len(gaps) else len(belongs) - 1
    return first, last


@own_state()
def search(
    store: str | Path | EmbeddingStore, query: str | np.ndarray, k: int = 10, *, exact: bool = False
) -> list[Moment]:
    """The `k` moments of a library that match a text, or a vector, best; fewer where fewer are above the library's mean.

    For several searches of one store a `Library` keeps what it has loaded.

    Args:
        store: embeddings, or their path; for a text, of an encoder that reads texts.
        query: a text, or a vector (D,) of the store's space.
        k: how many.
        exact: read every segment also where an index would be used.

    Raises:
        InputError: an empty text, a vector of another width, or a store that cannot be searched so.
    """
    library = Library(store, exact=exact)
    if isinstance(query, str):
        return library.search(query, k)
    vector = np.asarray(query, np.float32)
    if vector.shape != (library.store.dim,) or not np.isfinite(vector).all():
        raise InputError(
            f"the vector to search for has the shape {vector.shape}, and {library.store.path} holds vectors of "
            f"{library.store.dim} finite numbers: give one of these"
        )
    return library.moments(vector, k)


@own_state()
def similar_videos(
    store: str | Path | EmbeddingStore, video: str, top: int = 10, *, features: str = "mean", exact: bool = False
) -> list[SimilarVideo]:
    """The `top` videos most like one, by cosine of their features around the library's mean feature.

    What all videos of a library share is taken off first: around the mean, unrelated videos come out near 0.

    Args:
        store: representations, or a store of embeddings.
        video: an id of the store.
        top: how many; fewer come back where the store holds fewer.
        features: "mean" of a video's segments, or "cls", which only representations have.
        exact: read every feature also where an index would be used.

    Raises:
        InputError: the video is not in the store, or is alone in it; unknown features; no [CLS].
    """
    store = EmbeddingStore.open(store)
    if features not in ("mean", "cls"):
        raise InputError(f"features are 'mean' or 'cls', not {features!r}")
    if top < 1:
        raise InputError(f"at least one video must be asked for, not {top}")
    place = place_of(store, video)
    if len(store) == 1:
        raise InputError(f"{store.path} holds no other video than {video!r}")
    vectors = _Features(store, features)
    places, scores = Nearest(vectors, exact=exact).search(vectors.take(np.array([place])), top + 1)
    hits = [(int(at), float(score)) for at, score in zip(places[0], scores[0], strict=True) if at != place]
    return [SimilarVideo(store.ids[at], score, float(store.durations[at])) for at, score in hits[:top]]


def place_of(store: EmbeddingStore, video: str) -> int:
    """The place of a video by its id. Raises InputError with what ids look like if it is absent."""
    try:
        return store.index(video)
    except KeyError:
        near = [name for name in store.ids if video.lower() in name.lower()][:3] or store.ids[:3]
        raise InputError(
            f"there is no video {video!r} in {store.path}; its ids look like {', '.join(map(repr, near))}"
        ) from None


class _Segments:
    """All segments of a store, in the order of its videos."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.dim = store.dim
        self._store = store
        self._firsts = np.concatenate([[0], np.cumsum(store.lengths)])  # (V + 1,)

    @property
    def key(self) -> str:
        return f"segments {self._store.fingerprint}"

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def locate(self, places: np.ndarray) -> tuple[list[int], list[int]]:
        """The videos of the segments at `places`, and their places in them."""
        videos = np.searchsorted(self._firsts, places, side="right") - 1
        return videos.tolist(), (places - self._firsts[videos]).tolist()

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        held = 0
        for video in range(len(self._store)):
            waiting.append(self._store.embeddings(video))
            held += len(waiting[-1])
            if held >= size or video == len(self._store) - 1:
                yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                waiting, held = [], 0

    def take(self, places: np.ndarray) -> np.ndarray:
        videos, segments = self.locate(places)
        rows = [self._store.embeddings(v, s, s + 1) for v, s in zip(videos, segments, strict=True)]
        return np.concatenate(rows)


class _Features:
    """One feature a video, around their mean."""

    def __init__(self, store: EmbeddingStore, features: str) -> None:
        values = store.cls_features if features == "cls" else store.mean_features
        self._values: np.ndarray = values - values.mean(axis=0)  # (V, D)
        self.dim = store.dim
        self.key = f"{features} {store.fingerprint}"

    def __len__(self) -> int:
        return len(self._values)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(self._values), size):
            yield self._values[first : first + size]

    def take(self, places: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._values[places]
        return rows
