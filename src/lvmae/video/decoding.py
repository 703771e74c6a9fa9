"""Video files to frames: probing, and one streaming decode that converts nothing but the frames asked for.

Enters: a path or URL, and sample times. Leaves: uint8 RGB frames. Price: 0.6-0.9 of decoding what lies between the first and the
last of them (see `lvmae.video.frame_selection`), memory for two groups of pictures of packets and the segments that overlap.
Nothing is written to disk, and a file is decoded once, unless it breaks the rules that the fast path goes by.

What is "the frame at time t": what a player shows then, the last frame whose presentation time is <= t, counted from the
start of the file as a player counts (the earliest of its streams); before the first frame, the first. Rotation and pixel
aspect are applied.

Any part of a file can be decoded by itself: `decode_segments` with some of the segments gives the frames that it gives with all of
them, at a price in proportion. So several processes can share a long file, and a clip from the middle of a film is cheap.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from lvmae.errors import InputError
from lvmae.video.clock import duration_of, every_frame
from lvmae.video.container import opened
from lvmae.video.errors import VideoError
from lvmae.video.frame_selection import frames_between, pick
from lvmae.video.picture import FRAMINGS, Cropped, Whole, aspect_of, displayed_size, orientation_of

__all__ = [
    "VideoError",
    "VideoInfo",
    "decode_segments",
    "prepared_frames",
    "probe",
    "segment_jpegs",
    "small_frames",
    "still_picture",
    "thumbnails",
]

_INTERPOLATIONS = {"bicubic": Interpolation.BICUBIC, "bilinear": Interpolation.BILINEAR}


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its first video stream. Sizes are as displayed, after pixel aspect and rotation."""

    duration: float  # seconds, from the start of the file to the end of the last frame
    fps: float
    width: int
    height: int
    rotation: int  # degrees counter-clockwise that a player turns the frames by
    codec: str


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Opens a file and decodes its first frame. Raises VideoError with a reason a person understands."""
    with opened(path) as (container, stream):
        first = next(every_frame(container, stream), None)
        if first is None:
            raise VideoError("no frame could be decoded")
        width, height = displayed_size(first, aspect_of(first, stream))
        if orientation_of(first).transposes:
            width, height = height, width
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        codec, rotation = stream.codec_context.name, first.rotation
    duration = duration_of(path)
    if duration <= 0:
        raise VideoError("it lasts no time at all")
    return VideoInfo(duration, fps, width, height, rotation, codec)


def decode_segments(
    path: str | os.PathLike[str],
    starts: Sequence[float] | np.ndarray,
    ends: Sequence[float] | np.ndarray,
    *,
    num_frames: int,
    image_size: int,
    interpolation: str = "bicubic",
    framing: str = "crop",
    skip: bool = True,
    threads: int = 1,
) -> Iterator[np.ndarray]:
    """Yields for each segment [start, end) its `num_frames` evenly spaced frames, uint8 RGB (T, H, W, 3), H = W = image_size.

    Sample k of T lies at start + (k + 0.5) / T * (end - start). The short side is resized to `image_size` by FFmpeg's scaler and
    the long one cropped at its centre; with framing "stretch" both are resized, whatever their aspect. Starts ascend.
    `skip=False` decodes every frame, and `threads` decode several at once, with the same result; a process a core with one thread
    each does more work in all, several threads are for one process that has to be fast.
    Raises VideoError if the file ends before its segments do, or cannot be read further. The segments yielded before are good, and
    the error's `decoded_until` is the end of the last of them.
    """
    convert = FRAMINGS[framing](image_size, _INTERPOLATIONS[interpolation])
    times, end = _sample_times(starts, ends, num_frames)
    waiting: dict[int, np.ndarray] = {}
    missing: dict[int, int] = {}
    owed = 0
    try:
        for segment, k, picture in _pictures(path, times, convert, end=end, skip=skip, threads=threads):
            frames = waiting.setdefault(segment, np.empty((num_frames, image_size, image_size, 3), np.uint8))
            frames[k] = picture
            missing[segment] = missing.get(segment, num_frames) - 1
            while missing.get(owed) == 0:
                del missing[owed]
                yield waiting.pop(owed)
                owed += 1
    except VideoError as error:
        error.decoded_until = float(ends[owed - 1]) if owed else 0.0
        raise


def segment_jpegs(
    path: str | os.PathLike[str],
    starts: Sequence[float] | np.ndarray,
    ends: Sequence[float] | np.ndarray,
    *,
    num_frames: int,
    height: int,
) -> Iterator[list[bytes]]:
    """Yields for each segment what `decode_segments` does, as `num_frames` JPEGs of the whole picture, `height` pixels high.

    In order of time. Raises VideoError if the file ends before its segments do; segments yielded before are good.
    """
    times, end = _sample_times(starts, ends, num_frames)
    waiting: dict[int, list[bytes]] = {}
    owed = 0
    for segment, _, picture in _pictures(path, times, Whole(height), end=end):
        waiting.setdefault(segment, []).append(_jpeg(picture))
        while len(waiting.get(owed, ())) == num_frames:
            yield waiting.pop(owed)
            owed += 1


def thumbnails(path: str | os.PathLike[str], times: Sequence[float], height: int = 120) -> list[bytes]:
    """A JPEG for each time in seconds, in the order given, `height` pixels high; groups of pictures without one are not decoded."""
    order = np.argsort(np.asarray(times, np.float64), kind="stable")
    wanted = np.asarray(times, np.float64)[order][:, None]
    pictures: list[bytes] = [b""] * len(order)
    for i, _, picture in _pictures(path, wanted, Whole(height), end=0.0):
        pictures[order[i]] = _jpeg(picture)
    return pictures


def small_frames(
    path: str | os.PathLike[str], height: int, begin: float, end: float
) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame that appears in [begin, end) seconds: when, and uint8 BGR (height, W, 3), the whole picture, upright.

    BGR because that is what detectors built on OpenCV read. Raises VideoError if most of the file is damaged.
    """
    convert = Whole(height, Interpolation.BILINEAR)
    for moment, frame, aspect in frames_between(path, begin, end):
        yield moment, np.ascontiguousarray(convert(frame, aspect)[..., ::-1])


def _jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def still_picture(path: str | os.PathLike[str], image_size: int) -> np.ndarray:
    """A picture file prepared exactly as frames are: uint8 RGB (image_size, image_size, 3). Raises InputError if it is none."""
    try:
        with av.open(os.fspath(path)) as container:
            return np.ascontiguousarray(Cropped(image_size)(next(container.decode(video=0)), None))
    except (OSError, av.error.FFmpegError, StopIteration, IndexError) as error:
        raise InputError(f"{path} is not a picture that can be read: {error}.") from None


def prepared_frames(
    frames: np.ndarray, image_size: int, *, interpolation: str = "bicubic", framing: str = "crop"
) -> np.ndarray:
    """Frames in memory, uint8 RGB (T, H, W, 3), prepared exactly as those of files are: (T, image_size, image_size, 3)."""
    convert = FRAMINGS[framing](image_size, _INTERPOLATIONS[interpolation])
    return np.stack(
        [convert(VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24"), None) for one in frames]
    )


# --- which frames -----------------------------------------------------------------------------------------------------------


def _sample_times(
    starts: Sequence[float] | np.ndarray, ends: Sequence[float] | np.ndarray, num_frames: int
) -> tuple[np.ndarray, float]:
    """The times (L, T) in seconds that are looked at in each segment, and the end of the last one."""
    starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    offsets = (np.arange(num_frames) + 0.5) / num_frames
    return starts[:, None] + offsets * (ends - starts)[:, None], float(ends.max(initial=0.0))


def _pictures(
    path: str | os.PathLike[str],
    times: np.ndarray,
    convert: Cropped,
    *,
    end: float,
    skip: bool = True,
    threads: int = 1,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (row, column, picture) for every entry of times (L, T), sorted by time; a frame wanted twice is converted once."""
    flat = times.ravel()
    order = np.argsort(flat, kind="stable")
    last: VideoFrame | None = None
    picture: np.ndarray | None = None
    for place, (frame, aspect) in zip(order, pick(path, flat[order], end=end, skip=skip, threads=threads), strict=True):
        if frame is not last:
            last, picture = frame, convert(frame, aspect)
        assert picture is not None
        yield *divmod(int(place), times.shape[1]), picture
