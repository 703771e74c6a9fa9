"""A store as a library: moments by text or by example, and videos by example."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lvmae.errors import InputError
from lvmae.library.nearest import Nearest, cosines_of
from lvmae.process import own_state
from lvmae.store import EMBEDDINGS, EmbeddingStore, VideoRecord, l2_normalize

if TYPE_CHECKING:
    from lvmae.encoders import SegmentEncoder

_REACH = 8  # segments to each side that are looked at first
_LOOKED_AT = 512  # segments that are ranked at first
_EXACTLY = 256  # of these, those whose cosines are taken one by one
_HELD_VALUES = 1 << 27  # of the unit vectors that are held in memory: half a gigabyte
_SCATTER = 1e-2  # of the length of features, below which videos are all the same
_SAMPLE = 4096  # segments that the library's mean is taken over


@dataclass(frozen=True)
class Moment:
    """A match: segments `first` to `last` of one video; the best of them is `segment`, with cosine `score`."""

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
    """A similar video and the cosine between its centred feature and that of the query video."""

    video: str
    score: float
    duration: float  # seconds


class Library:
    """Searches a store of embeddings for moments.

    A moment is a segment that matches well and the segments around it that belong to the same match: those that score at least
    half as high as it does, counted from the library's mean score for what is asked (the width of the peak at half its
    height, a measure that needs no scale of its own: encoders differ in how high any cosine is). Moments do not overlap, and what
    scores no higher than the library's mean is none. Of equal scores the one of the lower id, and then the earlier, comes first.
    """

    def __init__(
        self, store: str | Path | EmbeddingStore, *, exact: bool = False, videos: np.ndarray | None = None
    ) -> None:
        """A library, or a part of one.

        Args:
            store: embeddings.
            exact: read every segment for each query, also in a library so large that an index would be used.
            videos: places in the store: look in these alone, and exactly, as if the store held no others.
        """
        self.store = EmbeddingStore.open(store)
        if self.store.kind != EMBEDDINGS:
            made_from = (self.store.manifest.run or {}).get("store", "the store they were made from")
            raise InputError(
                f"{self.store.path} holds representations, which have no text side; search {made_from} by text, "
                "or name a `video`"
            )
        self._segments = Segments(self.store, videos)
        self._nearest = Nearest(self._segments, exact=exact or videos is not None)

    def only(self, videos: np.ndarray) -> Library:
        """Returns a library of only the videos at these indices of the store (n,)."""
        part = Library(self.store, videos=videos)
        if "encoder" in self.__dict__:
            part.__dict__["encoder"] = self.encoder
        if self.held is not None:
            firsts = self._segments.firsts
            rows = [self.held[firsts[video] : firsts[video + 1]] for video in videos]
            part.__dict__["held"] = np.concatenate(rows) if rows else self.held[:0]
        return part

    @cached_property
    def encoder(self) -> SegmentEncoder:
        """The encoder that made the store. Raises InputError if there is none, or none that reads text."""
        from lvmae.encoders import encoder_of

        encoder = encoder_of(self.store.manifest)
        if not encoder.has_text:
            raise InputError(
                f"the encoder {encoder.name} has no text side, so {self.store.path} cannot be searched by text"
            )
        return encoder

    @cached_property
    def held(self) -> np.ndarray | None:
        """(N, D) float32: all unit vectors in memory, so that many queries are one product; None if they are too many."""
        if len(self._segments) * self.store.dim > _HELD_VALUES:
            return None
        unit = np.empty((len(self._segments), self.store.dim), np.float32)
        first = 0
        for block in self._segments.blocks(8192):
            unit[first : first + len(block)] = l2_normalize(block)
            first += len(block)
        return unit

    # ---- what is asked -------------------------------------------------------------------------------------------------

    def vector_of(self, text: str, minus: str = "") -> np.ndarray:
        """Returns the vector (D,) of a text, minus that of another. Raises InputError if both are empty."""
        vector: np.ndarray = self.vectors_of([(text, minus)])[0]
        return vector

    def vectors_of(self, asked: Sequence[tuple[str, str]]) -> np.ndarray:
        """Returns the vectors (n, D) of many (text, minus) pairs, with one call of the text encoder."""
        plain = [(" ".join(text.split()), " ".join(minus.split())) for text, minus in asked]
        if not all(text for text, _ in plain):
            raise InputError("there is nothing to search for: give a text, such as 'a dog on a beach'")
        texts = list(dict.fromkeys(text for pair in plain for text in pair if text))
        vectors: dict[str, np.ndarray] = dict(zip(texts, l2_normalize(self.encoder.encode_text(texts)), strict=True))
        return np.stack([vectors[text] - vectors[minus] if minus else vectors[text] for text, minus in plain])

    def vector_of_picture(self, path: str | Path) -> np.ndarray:
        """Returns the vector (D,) of a picture file. Raises InputError if the file or the encoder cannot be loaded."""
        from lvmae.encoders import encoder_of
        from lvmae.video.decoding import still_picture

        encoder = self.__dict__.get("encoder") or encoder_of(self.store.manifest)
        picture = still_picture(path, encoder.image_size)
        return np.asarray(encoder.encode_video(np.repeat(picture[None], encoder.num_frames, 0)[None])[0])

    def vector_of_moment(self, video: str, at: float) -> np.ndarray:
        """Returns the vector (D,) of the segment at a time in seconds. Raises InputError for a time outside the video."""
        place = place_of(self.store, video)
        return np.asarray(self.store.embeddings(place)[segment_at(self.store[place], at)], np.float32)

    # ---- what is found -------------------------------------------------------------------------------------------------

    def search(self, text: str, top: int = 10) -> list[Moment]:
        """Returns the `top` best matches of a text. Raises InputError for an empty text or a store without a text encoder."""
        return self.moments(self.vector_of(text), top)

    def moments(self, vector: np.ndarray, top: int = 10, *, one_a_video: bool = False) -> list[Moment]:
        """Returns the `top` moments nearest to a vector (D,), best first; only moments above the mean similarity.

        Args:
            vector: of any length.
            top: how many.
            one_a_video: of each video the best moment alone.
        """
        return self.moments_of_many(np.asarray(vector)[None], top, one_a_video=one_a_video)[0]

    def moments_of_many(self, vectors: np.ndarray, top: int = 10, *, one_a_video: bool = False) -> list[list[Moment]]:
        """Returns the moments of each of many vectors (n, D); in memory, one matrix product finds them all."""
        if top < 1:
            raise InputError(f"at least one moment must be asked for, not {top}")
        if not len(self._segments):
            return [[] for _ in vectors]
        queries = l2_normalize(vectors)
        if "held" in self.__dict__ and self.held is not None:
            scores = queries @ self.held.T  # (n, N)
            return [self._found(query, top, one_a_video, row) for query, row in zip(queries, scores, strict=True)]
        return [self._found(query, top, one_a_video, None) for query in queries]

    def _found(self, query: np.ndarray, top: int, one_a_video: bool, row: np.ndarray | None) -> list[Moment]:
        usual = float(self._mean @ query)
        wanted = _LOOKED_AT
        while True:
            places, scores = self._best(query, wanted, row)
            found = self._merge(places, scores, query, usual, top, one_a_video=one_a_video, row=row)
            if len(found) == top or scores[-1] <= usual or wanted >= len(self._segments):
                return found
            wanted *= 8  # so many were neighbours of one another

    def _best(self, query: np.ndarray, wanted: int, row: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Places and cosines of the `wanted` nearest segments, best first, the same however many are asked for."""
        if row is None:
            places, scores = self._nearest.search(query[None], wanted)
            return places[0], scores[0]
        assert self.held is not None
        near = np.arange(len(row))
        if wanted + _LOOKED_AT < len(row):
            near = np.sort(np.argpartition(row, -(wanted + _LOOKED_AT))[-(wanted + _LOOKED_AT) :])
        scores = np.clip(row[near], -1.0, 1.0)
        order = np.argsort(-scores, kind="stable")[:wanted]
        # Products in a block round by their place in it: those at the top are taken one by one.
        scores[order[:_EXACTLY]] = cosines_of(self.held[near[order[:_EXACTLY]]], query)
        order = order[np.lexsort((near[order], -scores[order]))]
        return near[order], scores[order]

    def _merge(
        self,
        places: np.ndarray,
        scores: np.ndarray,
        query: np.ndarray,
        usual: float,
        top: int,
        *,
        one_a_video: bool,
        row: np.ndarray | None,
    ) -> list[Moment]:
        """Moments around the segments at `places` with `scores`, which come best first."""
        free: dict[int, np.ndarray] = {}  # video -> its segments that are in no moment yet
        moments: list[Moment] = []
        for place, video, segment, score in zip(
            places.tolist(), *self._segments.locate(places), scores.tolist(), strict=True
        ):
            if moments and score <= usual:
                break
            if one_a_video and video in free:
                continue
            mine = free.get(video)
            if mine is None:
                mine = free[video] = np.ones(int(self.store.lengths[video]), bool)
            if not mine[segment]:
                continue
            first = place - segment
            own = None if row is None else row[first : first + len(mine)]
            first, last = self._extent(video, segment, query, (score + usual) / 2, free=mine, scores=own)
            mine[first : last + 1] = False
            record = self.store[video]
            start, end = float(record.starts[first]), float(record.ends[last])
            moments.append(Moment(record.id, start, end, score, video, segment, first, last))
            if len(moments) == top:
                break
        return moments

    def _extent(
        self, video: int, segment: int, query: np.ndarray, least: float, *, free: np.ndarray, scores: np.ndarray | None
    ) -> tuple[int, int]:
        """First and last of the free segments around one that score at least `least`. Looks only as far as it has to."""
        reach = _REACH
        while True:
            begin, end = max(0, segment - reach), min(len(free), segment + reach + 1)
            near = (
                l2_normalize(self.store.embeddings(video, begin, end)) @ query if scores is None else scores[begin:end]
            )
            belongs = free[begin:end] & (near >= least)
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


def segment_at(record: VideoRecord, at: float) -> int:
    """The segment that is shown at a time in seconds. Raises InputError for a time outside of the video."""
    inside = np.flatnonzero((record.starts <= at) & (at < record.ends))
    if not len(inside):
        raise InputError(
            f"{record.id} lasts from {record.starts[0]:g} to {record.ends[-1]:g} s; there is nothing at {at:g} s"
        )
    middles = (record.starts[inside] + record.ends[inside]) / 2
    return int(inside[np.abs(middles - at).argmin()])


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
    """Returns the `k` best matches of a text or a vector in a library; only moments above the mean similarity.

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
    """Returns the `top` videos most similar to one, by cosine of features centred on the library's mean.

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
    values = store.cls_features if features == "cls" else store.mean_features  # (V, D)
    vectors = Features(values, f"{features} {store.fingerprint}")
    wanted = max(top + 1, _LOOKED_AT)  # always as many, so that the first ones do not depend on how many are asked for
    places, scores = Nearest(vectors, exact=exact).search(vectors.take(np.array([place])), wanted)
    hits = [(int(at), float(score)) for at, score in zip(places[0], scores[0], strict=True) if at != place]
    return [SimilarVideo(store.ids[at], score, float(store.durations[at])) for at, score in hits[:top]]


def place_of(store: EmbeddingStore, video: str) -> int:
    """Returns the index of a video by its id. Raises InputError, with examples of ids, if it is absent."""
    try:
        return store.index(video)
    except KeyError:
        near = [name for name in store.ids if video.lower() in name.lower()][:3] or store.ids[:3]
        raise InputError(
            f"there is no video {video!r} in {store.path}; its ids look like {', '.join(map(repr, near))}"
        ) from None


class Segments:
    """All segments of a store, or of some of its videos, in the order of the videos."""

    def __init__(self, store: EmbeddingStore, videos: np.ndarray | None = None) -> None:
        self.dim = store.dim
        self._store = store
        self.videos = np.arange(len(store)) if videos is None else np.asarray(videos, np.int64)
        self.firsts = np.concatenate([[0], np.cumsum(store.lengths[self.videos])]).astype(np.int64)  # (V + 1,)
        self._all = videos is None

    @property
    def key(self) -> str:
        part = "" if self._all else f" {hashlib.sha256(self.videos.tobytes()).hexdigest()[:16]}"
        return f"segments {self._store.fingerprint}{part}"

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def locate(self, places: np.ndarray) -> tuple[list[int], list[int]]:
        """The videos of the segments at `places`, and their places in them."""
        videos = np.searchsorted(self.firsts, places, side="right") - 1
        return self.videos[videos].tolist(), (places - self.firsts[videos]).tolist()

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        waiting: list[np.ndarray] = []
        held = 0
        for number, video in enumerate(self.videos.tolist(), start=1):
            waiting.append(self._store.embeddings(video))
            held += len(waiting[-1])
            if held >= size or number == len(self.videos):
                yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                waiting, held = [], 0

    def take(self, places: np.ndarray) -> np.ndarray:
        videos, segments = self.locate(places)
        rows = [self._store.embeddings(v, s, s + 1) for v, s in zip(videos, segments, strict=True)]
        return np.concatenate(rows)


class Features:
    """One feature a video, around their mean; as they are where they lie too close around it for that to say anything."""

    def __init__(self, values: np.ndarray, key: str) -> None:
        mean = values.mean(axis=0)
        # Two videos lie on opposite sides of their mean however alike they are, and copies scatter around it at random.
        scatter = np.linalg.norm(values - mean, axis=1)
        centred = len(values) > 2 and scatter.max() > _SCATTER * np.linalg.norm(values, axis=1).max()
        self._values: np.ndarray = values - mean if centred else values  # (V, D)
        self.dim = values.shape[1]
        self.key = key

    def __len__(self) -> int:
        return len(self._values)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        for first in range(0, len(self._values), size):
            yield self._values[first : first + size]

    def take(self, places: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._values[places]
        return rows
