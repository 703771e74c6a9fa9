"""Timelines: a video -> the start and end of each segment, in seconds.

`segment_rule(kind, seconds, stride)` gives a rule. A fixed one is a pure function of the duration; one by shots (`shots.py`) looks
at the video, and costs decoding it once more.

Paper, section 3.1: fixed segments of 5 s; its ablation has overlapping ones and shots, too (fixed 5 s is best).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from lvmae.errors import InputError

MIN_SECONDS = 0.1
KINDS = ("fixed", "shots")


class Segmentation(Protocol):
    """A rule by which videos are cut into segments. Pickles small."""

    looks: ClassVar[bool]
    """Whether laying out a timeline decodes the video; then a long film is not laid out by several workers at once."""

    @property
    def description(self) -> dict[str, Any]:
        """What a store's manifest records; stores of different rules never mix."""

    def lay_out(
        self, path: str | os.PathLike[str], begin: float, end: float
    ) -> Generator[float, None, tuple[np.ndarray, np.ndarray]]:
        """Returns starts and ends (L,) float64, L >= 1, of the part [begin, end) of a file, in seconds of the file.

        Yields now and then the share that is done, 0 to 1, so that one who waits sees life. Raises VideoError.
        """


def segment_rule(kind: str = "fixed", seconds: float | None = None, stride: float | None = None) -> Segmentation:
    """The rule of a kind: "fixed" segments of `seconds` (5), one every `stride`; or "shots", cut where longer than `seconds` (10).

    Raises InputError for a rule that makes no sense or needs a package that is missing.
    """
    if kind == "fixed":
        return SegmentRule(5.0 if seconds is None else seconds, stride)
    if kind == "shots":
        from lvmae.video.shots import ShotRule

        if stride is not None:
            raise InputError("Shots follow each other and have no stride.")
        return ShotRule() if seconds is None else ShotRule(max_seconds=seconds)
    raise InputError(f"There are no segments of the kind {kind!r}; there are {' and '.join(KINDS)}.")


@dataclass(frozen=True)
class SegmentRule:
    """Segments of `seconds`, one every `stride` seconds (None: one after the other).

    A last partial segment of under half the length joins the one before it; a longer one stands alone. A video shorter than one
    segment is one segment. With a stride, what is left after the last full segment becomes one more that ends where the video ends.
    """

    looks: ClassVar[bool] = False
    seconds: float = 5.0
    stride: float | None = None

    def __post_init__(self) -> None:
        if not MIN_SECONDS <= self.seconds < float("inf"):
            raise InputError(f"A segment must last at least {MIN_SECONDS} seconds, not {self.seconds}.")
        if self.stride is not None and not MIN_SECONDS <= self.stride <= self.seconds:
            raise InputError(
                f"The stride must lie between {MIN_SECONDS} and the segment's {self.seconds} seconds, not be {self.stride}."
            )

    @property
    def description(self) -> dict[str, Any]:
        """What a store's manifest records; stores of different rules never mix."""
        if self.stride is None or self.stride == self.seconds:
            return {"kind": "fixed", "seconds": float(self.seconds)}
        return {"kind": "overlapping", "seconds": float(self.seconds), "stride": float(self.stride)}

    def segments(self, duration: float) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends (L,) float64 of a video of `duration` seconds, L >= 1; the last one ends with the video."""
        step = self.stride or self.seconds
        # A millionth of a step forgives durations that are sums of frame times.
        full = int((duration - self.seconds) / step + 1e-6) + 1 if duration >= self.seconds * (1 - 1e-9) else 0
        starts = np.arange(max(full, 1)) * step
        # Where segments touch, one's end is the next one's start, to the bit.
        ends = (np.arange(len(starts)) + 1) * step if step == self.seconds else starts + self.seconds
        left = duration - ends[-1]
        if full and left > 1e-6 * step:
            if step == self.seconds and left >= self.seconds / 2:
                starts, ends = np.append(starts, ends[-1]), np.append(ends, duration)
            elif step < self.seconds and left >= step / 2:
                starts, ends = np.append(starts, duration - self.seconds), np.append(ends, duration)
        ends[-1] = duration
        return starts, ends

    def lay_out(
        self, path: str | os.PathLike[str], begin: float, end: float
    ) -> Generator[float, None, tuple[np.ndarray, np.ndarray]]:
        """The segments of [begin, end), whatever the file."""
        yield from ()
        starts, ends = self.segments(end - begin)
        return starts + begin, ends + begin
