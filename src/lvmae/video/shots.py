"""Segments by shots: a video -> the places where a cut is, made into segments neither very short nor very long.

Enters: a path or URL. Leaves: a timeline. Price: the video is decoded once more, every frame, shrunk to 90 pixels of height: at
360p 1.65 of the CPU time that ffmpeg takes to decode it, 0.78 for the frames that are embedded afterwards. Which those are depends
on where a shot ends; holding every frame at the encoder's size until then would save the second decode, but resizing them all
costs more than it does (0.7 ms a frame against 0.5), and a shot would take up to hundreds of megabytes. Needs the extra `shots`:
PySceneDetect, for which PyAV stays the only decoder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from lvmae.errors import InputError
from lvmae.video.decoding import small_frames

HEIGHT = 90  # pixels; what the detector looks at
DETECTOR = {"adaptive_threshold": 3.0, "min_content_val": 15.0, "window_width": 2}  # PySceneDetect's own defaults
_BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class ShotRule:
    """A segment a shot, after two corrections.

    A shot of under `min_seconds` joins the one after it, or at the end the one before. One of over `max_seconds` is cut into as few
    equal parts as are not longer. Cuts are found by PySceneDetect's AdaptiveDetector: where the change of hue, saturation and
    brightness from one frame to the next stands out from the changes around it. Fades and dissolves are mostly not seen.
    """

    looks: ClassVar[bool] = True
    min_seconds: float = 1.0
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.min_seconds > 0 or not 2 * self.min_seconds <= self.max_seconds < float("inf"):
            raise InputError(
                f"Shots are cut at {self.max_seconds:g} s and joined under {self.min_seconds:g} s: "
                "the first must be at least twice the second."
            )
        _scenedetect()

    @property
    def description(self) -> dict[str, Any]:
        """What a store's manifest records: the detector, its version and every parameter."""
        return {
            "kind": "shots",
            "min_seconds": float(self.min_seconds),
            "max_seconds": float(self.max_seconds),
            "detector": "PySceneDetect AdaptiveDetector",
            "version": _version(),
            "height": HEIGHT,
            **DETECTOR,
        }

    def lay_out(
        self, path: str | os.PathLike[str], begin: float, end: float
    ) -> Generator[float, None, tuple[np.ndarray, np.ndarray]]:
        """Decodes [begin, end) and returns its segments; yields the share that is done about once a second. Raises VideoError."""
        cuts = yield from find_cuts(path, begin, end)
        return self.segments(cuts, begin, end)

    def segments(self, cuts: Iterable[float], begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends (L,) float64 of [begin, end) with cuts at these seconds, ascending."""
        borders = [begin]
        for cut in cuts:
            if begin < cut < end and cut - borders[-1] >= self.min_seconds:
                borders.append(cut)
        if len(borders) > 1 and end - borders[-1] < self.min_seconds:
            borders.pop()
        borders.append(end)
        edges = [np.array([begin])]
        for start, stop in pairwise(borders):
            parts = max(1, int(np.ceil((stop - start) / self.max_seconds - 1e-9)))
            edges.append(np.linspace(start, stop, parts + 1)[1:])
        points = np.concatenate(edges)
        return points[:-1], points[1:]


def find_cuts(path: str | os.PathLike[str], begin: float, end: float) -> Generator[float, None, list[float]]:
    """Returns the times in seconds of the first frame after each cut in [begin, end), ascending; yields the share that is done."""
    scenedetect = _scenedetect()
    # Its clock is the frames' number: ours is their time stamps, whatever the frame rate.
    detector = scenedetect.AdaptiveDetector(min_scene_len=0, **DETECTOR)
    times: list[float] = []
    cuts: list[float] = []
    beat = time.monotonic()
    for moment, picture in small_frames(path, HEIGHT, begin, end):
        now = scenedetect.FrameTimecode(len(times), fps=25.0)
        times.append(moment)
        cuts += [times[cut.frame_num] for cut in detector.process_frame(now, picture)]
        if time.monotonic() - beat > _BEAT_SECONDS:
            beat = time.monotonic()
            yield float(np.clip((moment - begin) / (end - begin), 0, 1))
    return cuts


def _scenedetect() -> Any:
    try:
        import scenedetect
    except ImportError:
        raise InputError("Segments by shots need PySceneDetect: pip install 'lvmae[shots]'.") from None
    return scenedetect


def _version() -> str:
    for name in ("scenedetect-headless", "scenedetect"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
