"""Films whose frames carry their own number, so that a test can tell which frame it got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = 64  # pixels; 4 x 4 blocks of one bit each
TICKS = Fraction(1, 1000)

Filmer = Callable[..., Path]


def picture_of(number: int) -> np.ndarray:
    """uint8 RGB (64, 64, 3): the number's 16 bits as black and white blocks."""
    bits = np.array([number >> i & 1 for i in range(16)], np.uint8).reshape(4, 4)
    return np.repeat(np.kron(bits * 255, np.ones((SIZE // 4, SIZE // 4), np.uint8))[..., None], 3, axis=2)


def number_in(picture: np.ndarray) -> int:
    """The number in a picture of any size, whatever the resizing."""
    block = picture.shape[0] // 4
    bits = picture[block // 2 :: block, block // 2 :: block, 0] > 127
    return int(sum(1 << i for i in np.flatnonzero(bits)))


def write_film(
    path: Path,
    milliseconds: Sequence[int],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    last_milliseconds: int = 40,
    offset: int = 0,
    pictures: Callable[[int], np.ndarray] = picture_of,
    **container_options: Any,
) -> Path:
    """Frame i, which carries the number i, is shown from milliseconds[i] + offset."""
    with av.open(str(path), "w", **container_options) as container:
        first = pictures(0)
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = first.shape[1], first.shape[0]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # encoders with many threads starve each other on a busy machine
        stream.time_base = stream.codec_context.time_base = TICKS
        if rotation:
            stream.set_display_rotation(rotation)
        durations = [*np.diff(milliseconds).tolist(), last_milliseconds]
        for number, (start, duration) in enumerate(zip(milliseconds, durations, strict=True)):
            frame = av.VideoFrame.from_ndarray(pictures(number), format="rgb24")
            frame.pts, frame.time_base, frame.duration = start + offset, TICKS, duration
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
