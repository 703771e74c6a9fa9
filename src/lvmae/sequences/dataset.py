"""Store -> seeded, masked windows of L2-normalised embeddings.

Enters: one or more open stores. Leaves: `Window`s, each a function of (seed, epoch, item) alone, so that neither worker count
nor interruptions change what is trained on. Price: reads the window's bytes and nothing else of the store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from lvmae.errors import InputError
from lvmae.sequences.masking import Unread, count_visible, mask_segments, shortest_maskable
from lvmae.sequences.masks import STRATEGIES, check_mask
from lvmae.store import EmbeddingStore, l2_normalize

# Validation draws from an epoch that training never reaches; an epoch's windows and masks from items that it never has.
_VALIDATION = 2**31
_WINDOWS, _MASKS = 2**31 + 1, 2**31 + 2
_STRIDE = 1 << 32  # numbers of the epoch's stream that each item has for its mask

_FORGIVEN = 1e-6  # of a segment: lengths in seconds are sums of binary fractions


@dataclass(frozen=True)
class Window:
    """Consecutive segments of one video, with a mask."""

    embeddings: np.ndarray
    """(L, D) float32, unit length."""
    masked: np.ndarray
    """(L,) bool, True is masked."""
    video: int
    """Place of the video, counted through all stores."""
    start: int
    """First segment of the window."""


class Drawn(NamedTuple):
    """Where a window lies, and the generator of its mask, to be used before the next window is drawn."""

    store: int
    video: int
    start: int
    length: int
    generator: np.random.Generator


@dataclass(frozen=True)
class DurationSampling:
    """Samples windows (paper, section 4.1): a duration drawn uniformly, then a random start.

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
        """Draws start and length, in segments, of a window in a video of `available` segments of `seconds`, every `stride`."""
        starts, lengths = self.draw_all(
            np.array([available]), SegmentTimes(seconds, stride or seconds), shortest, generator
        )
        return int(starts[0]), int(lengths[0])

    def draw_all(
        self, available: np.ndarray, times: SegmentTimes, shortest: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws starts and lengths, (V,) each, of one window in each of V videos, (V,) segments long."""
        longest = times.seconds_of(self.max_segments)
        if self.max_seconds is not None:
            longest = min(longest, self.max_seconds)
        least = min(self.min_seconds, longest)
        drawn = np.rint(times.segments_in(generator.uniform(least, longest, size=len(available)))).astype(np.int64)
        # Rounding must not leave [least, longest].
        fewest, most = math.ceil(times.segments_in(least) - _FORGIVEN), int(times.segments_in(longest) + _FORGIVEN)
        drawn = np.minimum(np.maximum(drawn, fewest), most)
        lengths = np.minimum(np.maximum(drawn, shortest), available)
        return generator.integers(available - lengths + 1), lengths


@dataclass(frozen=True)
class SegmentTimes:
    """The times of a store's segments: each lasts `seconds`, and one starts every `stride` seconds."""

    seconds: float
    stride: float

    @classmethod
    def of(cls, store: EmbeddingStore) -> SegmentTimes:
        """Returns the times by the store's segment rule; without a fixed length, the mean length and no overlap."""
        fixed = store.manifest.segments.get("seconds")
        seconds = float(fixed) if fixed else float(store.durations.sum() / store.lengths.sum())
        return cls(seconds, float(store.manifest.segments.get("stride") or seconds))

    def seconds_of(self, segments: int) -> float:
        """Returns the seconds that a number of consecutive segments covers."""
        return self.seconds + (segments - 1) * self.stride

    def segments_in(self, seconds: Any) -> Any:
        """Returns how many segments cover a time, possibly a fraction: the inverse of `seconds_of`."""
        if self.stride == self.seconds:
            return seconds / self.seconds
        return (seconds - self.seconds) / self.stride + 1


class WindowDataset(Dataset[Window]):
    """A dataset of one window per video and epoch, over one store or several.

    Item `(epoch, i)` is the i-th window of an epoch; item `i` that of the epoch last set by `set_epoch`.

    Args:
        stores: open stores of one embedding space.
        sampling: how long the windows are.
        mask, mask_ratio, temperature: see `lvmae.sequences.masking`.
        seed: everything is drawn from (seed, epoch, i).
        videos: for each store, which of its videos take part; all by default.
        weights: for each store, its share of an epoch's windows; by default every video comes once an epoch.
        draws: "epoch", one generator for all windows of an epoch and one for their masks; "window", a generator for each, as
            older versions did, which costs most of the time.

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
        draws: str = "epoch",
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
        self.draws = draws
        self._plan: tuple[int, np.ndarray] | None = None
        self._windows: tuple[int, np.ndarray, np.ndarray] | None = None
        self._masks: tuple[int, np.random.PCG64, Any] | None = None

    def __len__(self) -> int:
        return sum(len(places) for places in self._eligible)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch for plain integer items."""
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
        drawn = self.draw(epoch, place)
        return self._window(drawn, self.masked(drawn))

    def draw(self, epoch: int, place: int) -> Drawn:
        """Draws the place of a window of an epoch, without reading it."""
        number, video = self._planned(epoch)[place].tolist()
        if self.draws == "window":
            return self._draw_alone(number, video, np.random.default_rng([self.seed, epoch, place]))
        starts, lengths = self._drawn(epoch)
        return Drawn(number, video, int(starts[place]), int(lengths[place]), self._mask_generator(epoch, place))

    def lengths(self, epoch: int, places: Sequence[int] | None = None) -> np.ndarray:
        """Returns the lengths (n,), in segments, of all or some windows of an epoch."""
        if self.draws == "window":
            every = range(len(self)) if places is None else places
            return np.array([self.draw(epoch, place).length for place in every], dtype=np.int64)
        return self._drawn(epoch)[1] if places is None else self._drawn(epoch)[1][list(places)]

    def masked(self, drawn: Drawn) -> np.ndarray:
        """Returns which segments of a window are masked, (L,) bool, True is masked.

        Raises:
            InputError: a mask of the user's own hides another number than the ratio says.
        """
        store, (_, video, start, length, generator) = self.stores[drawn.store], drawn
        seen: np.ndarray | Unread
        if self.draws == "epoch" and self.mask in STRATEGIES:
            first = int(store.first_rows[video]) + start
            seen = Unread(store.similarity_to_previous[first + 1 : first + length])
        else:
            seen = l2_normalize(store.embeddings(video, start, start + length))
        masked = mask_segments(self.mask, seen, self.mask_ratio, generator, temperature=self.temperature)
        if (found := int(masked.sum())) != (wanted := length - count_visible(length, self.mask_ratio)):
            raise InputError(
                f"the mask {self.mask!r} hides {found} of {length} segments; of the ratio {self.mask_ratio} it has to hide {wanted}"
            )
        return masked

    def _drawn(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths of all windows of an epoch, (items,) each."""
        if self._windows is None or self._windows[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch, _WINDOWS])
            plan = self._planned(epoch)
            drawn = [
                self.sampling.draw_all(store.lengths[plan[plan[:, 0] == number, 1]], times, self.shortest, generator)
                for number, (store, times) in enumerate(zip(self.stores, self._times, strict=True))
            ]
            starts, lengths = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
            self._windows = epoch, starts, lengths
        return self._windows[1:]

    def _mask_generator(self, epoch: int, place: int) -> np.random.Generator:
        """The generator of an epoch's masks, where the numbers of an item begin: a jump costs less than a new generator."""
        if self._masks is None or self._masks[0] != epoch:
            bits = np.random.PCG64([self.seed, epoch, _MASKS])
            self._masks = epoch, bits, bits.state
        _, bits, state = self._masks
        bits.state = state
        return np.random.Generator(bits.advance(place * _STRIDE))

    def _draw_alone(self, number: int, video: int, generator: np.random.Generator) -> Drawn:
        available = self.stores[number].lengths[[video]]
        starts, lengths = self.sampling.draw_all(available, self._times[number], self.shortest, generator)
        return Drawn(number, video, int(starts[0]), int(lengths[0]), generator)

    def _window(self, drawn: Drawn, masked: np.ndarray | None = None) -> Window:
        number, video, start, length, generator = drawn
        embeddings = l2_normalize(self.stores[number].embeddings(video, start, start + length))
        if masked is None:
            masked = mask_segments(self.mask, embeddings, self.mask_ratio, generator, temperature=self.temperature)
        return Window(embeddings, masked, int(self._firsts[number]) + video, start)

    def fixed_windows(self, most: int | None = None) -> list[Window]:
        """Returns the windows and masks for validation, the same at every call and epoch.

        At most `most` of them, evenly spread over the videos.
        """
        places = [(number, int(video)) for number, chosen in enumerate(self._eligible) for video in chosen]
        if most is not None and most < len(places):
            places = [places[i] for i in np.linspace(0, len(places) - 1, most).round().astype(int)]
        return [
            self._window(
                self._draw_alone(number, video, np.random.default_rng([self.seed, _VALIDATION, number, video]))
            )
            for number, video in places
        ]


def split_videos(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the indices of `count` videos at random by seed into training and the fraction `held_out`, both sorted."""
    order = np.random.default_rng([seed, count]).permutation(count)
    cut = round(count * held_out)
    return np.sort(order[cut:]), np.sort(order[:cut])
