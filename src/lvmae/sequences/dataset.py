"""Store -> seeded, masked windows of L2-normalised embeddings.

Enters: one or more open stores. Leaves: `Window`s, each a function of (seed, epoch, item) alone, so that neither worker count
nor interruptions change what is trained on. Price: reads the window's bytes and nothing else of the store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from lvmae.errors import InputError
from lvmae.sequences.masking import mask_segments, shortest_maskable
from lvmae.sequences.masks import check_mask
from lvmae.store import EmbeddingStore, l2_normalize

# Validation draws from an epoch that training never reaches.
_VALIDATION = 2**31

_FORGIVEN = 1e-6  # of a segment: lengths in seconds are sums of binary fractions


@dataclass(frozen=True)
class Window:
    """Consecutive segments of one video, and which of them are masked."""

    embeddings: np.ndarray
    """(L, D) float32, unit length."""
    masked: np.ndarray
    """(L,) bool, True is masked."""
    video: int
    """Place of the video, counted through all stores."""
    start: int
    """First segment of the window."""


@dataclass(frozen=True)
class DurationSampling:
    """Dynamic duration sampling (paper section 4.1): a duration drawn uniformly, then a random start.

    `min_seconds` 10 and `max_segments` 256 are the paper's; `max_seconds` caps clips further (its 5-minute ablation).
    """

    min_seconds: float = 10.0
    max_segments: int = 256
    max_seconds: float | None = None

    def draw(
        self,
        available: int,
        seconds: float,
        shortest: int,
        generator: np.random.Generator,
        *,
        stride: float | None = None,
    ) -> tuple[int, int]:
        """Start and length, in segments, of a window in a video of `available` segments of `seconds`, one every `stride`."""
        rule = SegmentTimes(seconds, stride or seconds)
        longest = rule.seconds_of(self.max_segments)
        if self.max_seconds is not None:
            longest = min(longest, self.max_seconds)
        least = min(self.min_seconds, longest)
        drawn = round(rule.segments_in(generator.uniform(least, longest)))
        # Rounding must not leave [least, longest].
        drawn = min(
            max(drawn, math.ceil(rule.segments_in(least) - _FORGIVEN)), int(rule.segments_in(longest) + _FORGIVEN)
        )
        length = min(max(drawn, shortest), available)
        return int(generator.integers(available - length + 1)), length


@dataclass(frozen=True)
class SegmentTimes:
    """How the segments of a store lie in time: each lasts `seconds`, and one starts every `stride` seconds."""

    seconds: float
    stride: float

    @classmethod
    def of(cls, store: EmbeddingStore) -> SegmentTimes:
        """A store's, by its rule; where that is no fixed length, the mean length, one after the other."""
        fixed = store.manifest.segments.get("seconds")
        seconds = float(fixed) if fixed else float(store.durations.sum() / store.lengths.sum())
        return cls(seconds, float(store.manifest.segments.get("stride") or seconds))

    def seconds_of(self, segments: int) -> float:
        """The seconds from the start of the first to the end of the last of so many consecutive segments."""
        return self.seconds + (segments - 1) * self.stride

    def segments_in(self, seconds: float) -> float:
        """The inverse of `seconds_of`: a fraction where the time holds no whole number of them."""
        if self.stride == self.seconds:
            return seconds / self.seconds
        return (seconds - self.seconds) / self.stride + 1


class WindowDataset(Dataset[Window]):
    """One window a video and epoch, over one store or a mixture of several.

    Item `(epoch, i)` is the i-th window of an epoch; item `i` that of the epoch last set by `set_epoch`.

    Args:
        stores: open stores of one embedding space.
        sampling: how long the windows are.
        mask, mask_ratio, temperature: see `lvmae.sequences.masking`.
        seed: everything is drawn from (seed, epoch, i).
        videos: for each store, which of its videos take part; all by default.
        weights: for each store, its share of an epoch's windows; by default every video comes once an epoch.

    Raises:
        InputError: stores of different spaces, or no video long enough to mask.
    """

    def __init__(
        self,
        stores: Sequence[EmbeddingStore],
        *,
        sampling: DurationSampling | None = None,
        mask: str = "random",
        mask_ratio: float = 0.4,
        temperature: float | None = None,
        seed: int = 0,
        videos: Sequence[np.ndarray] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        for store in stores[1:]:
            if (store.space_id, store.dim) != (stores[0].space_id, stores[0].dim):
                raise InputError(
                    f"{store.path} holds embeddings of {store.space_id!r} and {stores[0].path} of {stores[0].space_id!r}; "
                    "two spaces never mix: embed both with the same encoder"
                )
        self.stores = list(stores)
        self.sampling = sampling or DurationSampling()
        check_mask(mask)
        self.mask, self.mask_ratio, self.temperature, self.seed = mask, mask_ratio, temperature, seed
        self.shortest = shortest_maskable(mask_ratio)
        self._times = [SegmentTimes.of(store) for store in stores]
        self._weights = None if weights is None else np.asarray(weights, np.float64)
        if self._weights is not None and (len(self._weights) != len(stores) or (self._weights <= 0).any()):
            raise InputError(f"{len(stores)} stores need as many positive weights, not {list(weights or ())}")
        taking_part = videos or [np.arange(len(store)) for store in stores]
        self._firsts = np.cumsum([0, *(len(store) for store in stores)])
        self._eligible = [
            chosen[store.lengths[chosen] >= self.shortest] for store, chosen in zip(stores, taking_part, strict=True)
        ]
        self.too_short = sum(len(chosen) for chosen in taking_part) - sum(len(places) for places in self._eligible)
        """Videos left out because they cannot leave one visible and one masked segment."""
        if not all(len(places) for places in self._eligible):
            raise InputError(
                f"no video has the {self.shortest} segments that mask ratio {mask_ratio} needs to leave one visible and one "
                "masked; use longer videos or shorter segments"
            )
        self._epoch = 0
        self._plan: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(len(places) for places in self._eligible)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that plain integer items belong to."""
        self._epoch = epoch

    def _planned(self, epoch: int) -> np.ndarray:
        """(items, 2) store and place of every item of an epoch."""
        if self._weights is None:
            epoch = 0
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._make_plan(epoch))
        return self._plan[1]

    def _make_plan(self, epoch: int) -> np.ndarray:
        if self._weights is None:
            counts = np.array([len(places) for places in self._eligible])
        else:
            share = np.cumsum(self._weights) / self._weights.sum() * len(self)
            counts = np.diff(np.round(share).astype(int), prepend=0)
        rows = []
        for number, (places, count) in enumerate(zip(self._eligible, counts, strict=True)):
            if self._weights is None:
                chosen = places
            else:
                generator = np.random.default_rng([self.seed, epoch, _VALIDATION, number])
                rounds = [generator.permutation(places) for _ in range(-(-count // len(places)))]
                chosen = np.concatenate([*rounds, places[:0]])[:count]
            rows.append(np.stack([np.full(len(chosen), number), chosen], axis=1))
        return np.concatenate(rows)

    def __getitem__(self, item: int | tuple[int, int]) -> Window:
        epoch, place = item if isinstance(item, tuple) else (self._epoch, item)
        number, video = self._planned(epoch)[place]
        return self._window(int(number), int(video), np.random.default_rng([self.seed, epoch, place]))

    def _window(self, number: int, video: int, generator: np.random.Generator) -> Window:
        store = self.stores[number]
        times = self._times[number]
        start, length = self.sampling.draw(
            int(store.lengths[video]), times.seconds, self.shortest, generator, stride=times.stride
        )
        embeddings = l2_normalize(store.embeddings(video, start, start + length))
        masked = mask_segments(self.mask, embeddings, self.mask_ratio, generator, temperature=self.temperature)
        return Window(embeddings, masked, int(self._firsts[number]) + video, start)

    def fixed_windows(self, most: int | None = None) -> list[Window]:
        """The same windows and masks at every call, whatever the epoch: what validation looks at.

        At most `most` of them, evenly spread over the videos.
        """
        places = [(number, int(video)) for number, chosen in enumerate(self._eligible) for video in chosen]
        if most is not None and most < len(places):
            places = [places[i] for i in np.linspace(0, len(places) - 1, most).round().astype(int)]
        return [
            self._window(number, video, np.random.default_rng([self.seed, _VALIDATION, number, video]))
            for number, video in places
        ]


def split_videos(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of `count` videos, split at random by seed into those to train on and the fraction `held_out`, both sorted."""
    order = np.random.default_rng([seed, count]).permutation(count)
    cut = round(count * held_out)
    return np.sort(order[cut:]), np.sort(order[:cut])
