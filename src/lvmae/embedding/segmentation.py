"""Timelines: a video's duration -> the start and end of each segment, in seconds. Pure functions of numbers.

Paper, section 3.1: fixed segments of 5 s; its ablation has overlapping ones too (docs of the method: fixed 5 s is best).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lvmae.errors import InputError

MIN_SECONDS = 0.1


@dataclass(frozen=True)
class SegmentRule:
    """Segments of `seconds`, one every `stride` seconds (None: one after the other).

    A last partial segment of under half the length joins the one before it; a longer one stands alone. A video shorter than one
    segment is one segment. With a stride, what is left after the last full segment becomes one more that ends where the video ends.
    """

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
