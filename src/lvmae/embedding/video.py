"""Video files to frames: probing, and one streaming decode that converts nothing but the frames asked for.

Enters: a path and sample times. Leaves: uint8 RGB frames. Price: 0.6-0.8 of decoding the whole file, memory for two groups
of pictures of packets and the segments that overlap. Nothing is written to disk and no file is decoded twice.

What is "the frame at time t": what a player shows then, the last frame whose presentation time is <= t, counted from the
start of the file as a player counts (the earliest of its streams); before the first frame, the first. Rotation and pixel
aspect are applied.

The fast path decides packet by packet, from time stamps alone, before anything is decoded: frames nobody refers to are skipped
unless wanted, and of each group of pictures nothing is decoded after the last wanted frame, unless the next group is open and
leans on it. Where a file does not keep to the rules (missing or repeated time stamps, damage), the fast path stops and the file
is decoded in full for what is still owed.
"""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from lvmae.errors import InputError, WorkError

VideoPacket: TypeAlias = "av.Packet[VideoStream]"

# Decoders of FFmpeg that honour `skip_frame` packet by packet; others read it once, at opening, and would lose wanted frames.
_SKIPPING_DECODERS = frozenset({"h264", "hevc", "mpeg2video", "mpeg4"})
_GOP_BYTES = 64 << 20  # packets of one group of pictures that are held before the fast path gives up
# Demuxers that make pictures of text, and those that follow what a file says to other files.
_NO_VIDEO_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf", "image2", "hls", "concat", "dash", "sdp"})
_TRUNCATED_SECONDS = 1.0  # a file may end this much before it says it does
_INTERPOLATIONS = {"bicubic": Interpolation.BICUBIC, "bilinear": Interpolation.BILINEAR}

av.logging.set_level(av.logging.PANIC)  # FFmpeg's remarks go to no one; what matters is raised


class VideoError(WorkError):
    """One file cannot be used; the message says why, for the table of failures."""


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
    with _opened(path) as (container, stream):
        duration = _declared_duration(container, stream)
        first = next(_frames(container, stream), None)
        if first is None:
            raise VideoError("no frame could be decoded")
        width, height = _displayed_size(first, stream.sample_aspect_ratio)
        if round(first.rotation / 90) % 2:
            width, height = height, width
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        codec, rotation = stream.codec_context.name, first.rotation
    if duration is None:
        duration = _counted_duration(path)
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
) -> Iterator[np.ndarray]:
    """Yields for each segment [start, end) its `num_frames` evenly spaced frames, uint8 RGB (T, H, W, 3), H = W = image_size.

    Sample k of T lies at start + (k + 0.5) / T * (end - start). The short side is resized to `image_size` by FFmpeg's scaler and
    the long one cropped at its centre; with framing "stretch" both are resized, whatever their aspect. Starts ascend.
    `skip=False` decodes every frame, with the same result.
    Raises VideoError if the file ends before its segments do; segments yielded before are good.
    """
    convert = _FRAMINGS[framing](image_size, _INTERPOLATIONS[interpolation])
    times, end = _sample_times(starts, ends, num_frames)
    waiting: dict[int, np.ndarray] = {}
    missing: dict[int, int] = {}
    owed = 0
    for segment, k, picture in _pick(path, times, convert, end=end, skip=skip):
        frames = waiting.setdefault(segment, np.empty((num_frames, image_size, image_size, 3), np.uint8))
        frames[k] = picture
        missing[segment] = missing.get(segment, num_frames) - 1
        while missing.get(owed) == 0:
            del missing[owed]
            yield waiting.pop(owed)
            owed += 1


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
    for segment, _, picture in _pick(path, times, _Whole(height), end=end, skip=True):
        waiting.setdefault(segment, []).append(_jpeg(picture))
        while len(waiting.get(owed, ())) == num_frames:
            yield waiting.pop(owed)
            owed += 1


def thumbnails(path: str | os.PathLike[str], times: Sequence[float], height: int = 120) -> list[bytes]:
    """A JPEG for each time in seconds, in the order given, `height` pixels high; groups of pictures without one are not decoded."""
    order = np.argsort(np.asarray(times, np.float64), kind="stable")
    wanted = np.asarray(times, np.float64)[order][:, None]
    pictures: list[bytes] = [b""] * len(order)
    for i, _, picture in _pick(path, wanted, _Whole(height), end=0.0, skip=True):
        pictures[order[i]] = _jpeg(picture)
    return pictures


def _jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def still_picture(path: str | os.PathLike[str], image_size: int) -> np.ndarray:
    """A picture file prepared exactly as frames are: uint8 RGB (image_size, image_size, 3). Raises InputError if it is none."""
    try:
        with av.open(os.fspath(path)) as container:
            return np.ascontiguousarray(_Converter(image_size)(next(container.decode(video=0)), None))
    except (OSError, av.error.FFmpegError, StopIteration, IndexError) as error:
        raise InputError(f"{path} is not a picture that can be read: {error}.") from None


# --- which frames -----------------------------------------------------------------------------------------------------------


def _sample_times(
    starts: Sequence[float] | np.ndarray, ends: Sequence[float] | np.ndarray, num_frames: int
) -> tuple[np.ndarray, float]:
    """The times (L, T) in seconds that are looked at in each segment, and the end of the last one."""
    starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    offsets = (np.arange(num_frames) + 0.5) / num_frames
    return starts[:, None] + offsets * (ends - starts)[:, None], float(ends.max(initial=0.0))


class _CannotSkip(Exception):
    """The file does not keep to what the fast path needs."""


def _pick(
    path: str | os.PathLike[str], times: np.ndarray, convert: _Converter, *, end: float, skip: bool
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (row, column, picture) for every entry of times (L, T), sorted by time; a frame wanted twice is converted once.

    A file that is over clearly before `end` seconds is truncated: VideoError.
    """
    flat = times.ravel()
    order = np.argsort(flat, kind="stable")
    done = 0
    for picker in (_pick_skipping, _pick_all) if skip else (_pick_all,):
        with _opened(path) as (container, stream):
            assert stream.time_base is not None
            # Half a microsecond of room, so that a time computed to lie on a frame's own stamp finds that frame.
            ticks = np.floor((flat[order] + _origin(container, stream) + 5e-7) / float(stream.time_base)).astype(
                np.int64
            )
            last: VideoFrame | None = None
            picture: np.ndarray | None = None
            try:
                for frame in picker(container, stream, ticks[done:], end):
                    if frame is not last:
                        last, picture = frame, convert(frame, stream.sample_aspect_ratio)
                    assert picture is not None
                    yield *divmod(int(order[done]), times.shape[1]), picture
                    done += 1
            except _CannotSkip:
                continue
            return


def _pick_skipping(
    container: InputContainer, stream: VideoStream, ticks: np.ndarray, end: float
) -> Iterator[VideoFrame]:
    """Yields the frame of each tick (ascending), decoding as little as is exact; _CannotSkip where that is not known to be."""
    context = stream.codec_context
    may_skip = context.codec.name in _SKIPPING_DECODERS
    due: deque[tuple[int, int]] = (
        deque()
    )  # (time stamp, how many ticks ask for it), in order of presentation, as frames come out

    def out(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        for frame in frames:
            if frame.pts is None or frame.is_corrupt or (due and frame.pts > due[0][0]):
                raise _CannotSkip
            if due and frame.pts == due[0][0]:
                for _ in range(due.popleft()[1]):
                    yield frame

    place = 0
    try:
        for packets, next_pts, closed in _gops(container, stream):
            stamps = np.unique([p.pts for p in packets if not p.is_discard])
            until = len(ticks) if next_pts is None else max(place, int(np.searchsorted(ticks, next_pts)))
            asked: set[int] = set()
            if len(stamps) and until > place:
                if next_pts is None:
                    _check_end(_seconds_shown(container, stream, packets), end)
                at = np.maximum(np.searchsorted(stamps, ticks[place:until], side="right") - 1, 0)
                wanted, counts = np.unique(stamps[at], return_counts=True)
                due.extend(zip(wanted.tolist(), counts.tolist(), strict=True))
                asked.update(wanted.tolist())
                place = until
            needed = (
                len(packets) if not closed else max((i + 1 for i, p in enumerate(packets) if p.pts in asked), default=0)
            )
            for packet in packets[:needed]:
                if may_skip:
                    context.skip_frame = "DEFAULT" if packet.pts in asked else "NONREF"
                yield from out(context.decode(packet))
            if place == len(ticks):
                break
        yield from out(context.decode(None))
    except (av.error.FFmpegError, ValueError) as error:
        raise _CannotSkip from error
    if due or place < len(ticks):
        raise _CannotSkip


def _gops(container: InputContainer, stream: VideoStream) -> Iterator[tuple[list[VideoPacket], int | None, bool]]:
    """Groups of pictures as packets in decoding order, each with the next group's first time stamp (None at the end).

    And whether that next group is closed: shows nothing before its key frame, so needs nothing of this group.
    """
    before: list[VideoPacket] = []
    gop: list[VideoPacket] = []
    size = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.pts is None or packet.is_corrupt or not (gop or packet.is_keyframe):
            raise _CannotSkip
        if packet.is_keyframe and gop:
            if before:
                yield before, *_joint(before, gop)
            before, gop, size = gop, [], 0
        gop.append(packet)
        size += packet.size
        if size > _GOP_BYTES:
            raise _CannotSkip
    if before:
        yield before, *_joint(before, gop)
    if gop:
        yield gop, None, True


def _joint(gop: list[VideoPacket], following: list[VideoPacket]) -> tuple[int, bool]:
    """The following group's first time stamp, and whether it is closed; _CannotSkip where the two overlap in time."""
    first = min(_stamp(p) for p in following)
    if first <= max(_stamp(p) for p in gop):
        raise _CannotSkip
    return first, first == _stamp(following[0])


def _stamp(packet: VideoPacket) -> int:
    if packet.pts is None:
        raise _CannotSkip
    return packet.pts


def _pick_all(container: InputContainer, stream: VideoStream, ticks: np.ndarray, end: float) -> Iterator[VideoFrame]:
    """Yields the frame of each tick (ascending), decoding everything; damaged packets cost the frames they held."""
    assert stream.time_base is not None
    step = 1 / float((stream.average_rate or stream.guessed_rate or 25) * stream.time_base)
    held: VideoFrame | None = None
    place, now = 0, 0
    origin = round(_origin(container, stream) / stream.time_base)
    for count, frame in enumerate(_frames(container, stream)):
        stamp = frame.pts if frame.pts is not None else frame.dts
        now = stamp if stamp is not None else origin + round(count * step)
        while place < len(ticks) and ticks[place] < now:
            yield held if held is not None else frame
            place += 1
        held = frame
        if place == len(ticks):
            return
    if held is None:
        raise VideoError("no frame could be decoded")
    _check_end(float((now + (held.duration or round(step))) * stream.time_base) - _origin(container, stream), end)
    for _ in ticks[place:]:
        yield held


def _check_end(seen: float, declared: float) -> None:
    if seen + _TRUNCATED_SECONDS < declared:
        raise VideoError(f"truncated: it says it lasts {declared:.1f} s, and ends after {max(seen, 0.0):.1f} s")


def _seconds_shown(container: InputContainer, stream: VideoStream, packets: list[VideoPacket]) -> float:
    """When the last of these packets' frames stops being shown, in seconds from the start of the file."""
    assert stream.time_base is not None
    step = 1 / ((stream.average_rate or stream.guessed_rate or Fraction(25)) * stream.time_base)
    ticks = max((p.pts or 0) + (p.duration or step) for p in packets)
    return float(ticks * stream.time_base) - _origin(container, stream)


# --- the container ----------------------------------------------------------------------------------------------------------


class _opened:
    """A file's container and its first real video stream, one thread; every way this fails is a VideoError with a plain reason."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __enter__(self) -> tuple[InputContainer, VideoStream]:
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise VideoError("not a regular file")
            if status.st_size == 0:
                raise VideoError("the file is empty")
            # "file:" because a name may look like another protocol's address; nothing in a file may lead to other places.
            self.container = av.open(
                f"file:{self.path}", metadata_errors="replace", options={"protocol_whitelist": "file"}
            )
        except FileNotFoundError:
            raise VideoError("there is no such file, or it is a broken link") from None
        except PermissionError:
            raise VideoError("no permission to read it") from None
        except av.error.InvalidDataError:
            raise VideoError("not a video, or its index is missing or damaged") from None
        except (OSError, av.error.FFmpegError) as error:
            raise VideoError(f"it cannot be opened: {getattr(error, 'strerror', None) or error}") from None
        try:
            if self.container.format.name in _NO_VIDEO_FORMATS or self.container.format.name.endswith("_pipe"):
                raise VideoError("not a video")
            return self.container, _video_stream(self.container)
        except BaseException:
            self.container.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.container.close()


def _video_stream(container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        holds = ", ".join(sorted({s.type for s in container.streams}))
        raise VideoError(f"it holds no video, only {holds or 'nothing'}")
    stream = streams[0]
    try:
        context = stream.codec_context
    except (RuntimeError, ValueError):
        context = None
    if context is None:
        raise VideoError("its video codec is unknown")
    stream.thread_type = (
        "NONE"  # one process a core is faster, and `skip_frame` is then seen by the packet it is meant for
    )
    return stream


def _origin(container: InputContainer, stream: VideoStream) -> float:
    """Time stamp of the start of the file in seconds: the earliest of its streams, as players have it."""
    assert stream.time_base is not None
    candidates = [float(stream.start_time * stream.time_base)] if stream.start_time is not None else []
    if container.start_time is not None:
        candidates.append(container.start_time / av.time_base)
    return min(candidates, default=0.0)


def _declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds from the start of the file to the end of the last frame, as the file says; None where it does not."""
    assert stream.time_base is not None
    origin = _origin(container, stream)
    if stream.duration:
        begin = float(stream.start_time * stream.time_base) if stream.start_time is not None else origin
        return begin - origin + float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:01:02.345000000, the last time stamp
    try:
        return int(tag[0]) * 3600 + int(tag[1]) * 60 + float(tag[2]) - origin
    except (IndexError, ValueError):
        return None


def _counted_duration(path: str | os.PathLike[str]) -> float:
    """The same from the packets' time stamps, or from their number; reads the file without decoding it."""
    with _opened(path) as (container, stream):
        shown, packets = 0.0, 0
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
                if packet.pts is not None:
                    shown = max(shown, _seconds_shown(container, stream, [packet]))
        return shown or packets / float(stream.average_rate or stream.guessed_rate or 25)


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame that can be decoded, in order of presentation; VideoError if most of the packets are damaged."""
    packets = damaged = 0
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed, None)
            if packet is None:
                break
            packets += 1
            yield from stream.codec_context.decode(packet)
        except (av.error.InvalidDataError, av.error.ExternalError):
            damaged += 1
            if damaged > 100 and damaged > packets / 2:
                raise VideoError(f"too damaged: {damaged} of {packets} packets cannot be decoded") from None
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"reading failed: {getattr(error, 'strerror', None) or error}") from None


# --- pixels -----------------------------------------------------------------------------------------------------------------


def _displayed_size(frame: VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height in square pixels, before rotation; `aspect` is a pixel's width over its height, if known."""
    return max(1, round(frame.width * (aspect or 1))), frame.height


class _Converter:
    """Frame -> uint8 RGB (size, size, 3): short side resized, centre cropped, turned upright. One scaler, one thread."""

    def __init__(self, size: int, interpolation: Interpolation = Interpolation.BICUBIC) -> None:
        self.size = size
        self.interpolation = interpolation
        self.scaler = VideoReformatter()

    def target(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        scale = self.size / min(width, height)
        return max(self.size, round(width * scale)), max(self.size, round(height * scale))

    def __call__(self, frame: VideoFrame, aspect: Fraction | None) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        width, height = self.target(*_displayed_size(frame, aspect), turned=bool(turns % 2))
        scaled: Any = self.scaler.reformat(frame, width, height, "rgb24", interpolation=self.interpolation, threads=1)
        plane = scaled.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height]
        picture = rows[:, : width * 3].reshape(height, width, 3)
        return self.cut(np.rot90(picture, turns) if turns else picture)

    def cut(self, picture: np.ndarray) -> np.ndarray:
        top, left = (picture.shape[0] - self.size) // 2, (picture.shape[1] - self.size) // 2
        return picture[top : top + self.size, left : left + self.size]


class _Stretched(_Converter):
    """Frame -> uint8 RGB (size, size, 3): the whole picture, its aspect given up."""

    def target(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        return self.size, self.size


_FRAMINGS = {"crop": _Converter, "stretch": _Stretched}


class _Whole(_Converter):
    """Frame -> uint8 RGB (size, W, 3): the whole picture, `size` high once upright."""

    def target(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        scale = self.size / (width if turned else height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def cut(self, picture: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(picture)
