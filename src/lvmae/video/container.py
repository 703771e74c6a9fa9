"""A path or a URL -> an open container and its video stream, or one plain reason why not.

Enters: a path of this machine, or any URL that fsspec knows (`s3://`, `gs://`, `hf://`, `https://`, `memory://`, ...). Leaves: a
container of PyAV, one thread, where packets of other streams are not even read. Price of a URL: blocks of 4 MiB, fetched one ahead
of their use, 32 MiB held. Nothing that a file says makes anything else be opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lvmae.errors import WorkError
from lvmae.files.urls import is_remote

# Demuxers that make pictures of text, and those that follow what a file says to other files.
_NO_VIDEO_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf", "image2", "hls", "concat", "dash", "sdp"})
_MOST_PIXELS = 1 << 26  # of a picture: 8K has half of that; a header that claims more would take gigabytes
_BLOCK_BYTES = 4 << 20
_BLOCKS = 8
_BUFFER_BYTES = 256 << 10  # what FFmpeg asks of a URL's file at once
_READ_ATTEMPTS = 3

av.logging.set_level(av.logging.PANIC)  # FFmpeg's remarks go to no one; what matters is raised


class VideoError(WorkError):
    """One file cannot be used, or not to its end; the message says why, for the table of failures.

    `decoded_until`: the end, in seconds, of the last segment that was yielded before; 0 where there is none.
    """

    decoded_until: float = 0.0


class opened:
    """A context: (container, stream) of a file's first real video stream. Every way this fails is a VideoError."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = path
        self.threads = threads
        self.remote: _Remote | None = None

    def __enter__(self) -> tuple[InputContainer, VideoStream]:
        try:
            self.container = self._open_url(str(self.path)) if is_remote(self.path) else self._open_local()
        except VideoError:
            self._close_remote()
            raise
        except av.error.InvalidDataError:
            self._close_remote()
            raise VideoError("not a video, or its index is missing or damaged") from None
        except FileNotFoundError:
            raise VideoError("there is no such file, or it is a broken link") from None
        except PermissionError as error:
            # EPERM is FFmpeg's own, for a file that refers to others.
            raise VideoError("not a video" if error.errno == errno.EPERM else "no permission to read it") from None
        except (OSError, av.error.FFmpegError) as error:
            self._close_remote()
            raise VideoError(f"it cannot be opened: {getattr(error, 'strerror', None) or error}") from None
        try:
            if self.container.format.name in _NO_VIDEO_FORMATS or self.container.format.name.endswith("_pipe"):
                raise VideoError("not a video")
            return self.container, _video_stream(self.container, self.threads)
        except BaseException:
            self.container.close()
            self._close_remote()
            raise

    def _open_local(self) -> InputContainer:
        path = Path(os.fspath(self.path).removeprefix("file://"))
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise VideoError("it is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("it is a pipe or a device, not a file")
        if status.st_size == 0:
            raise VideoError("the file is empty")
        # "file:" because a name may look like another protocol's address; nothing in a file may lead to other places.
        return av.open(
            f"file:{path}",
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "max_pixels": str(_MOST_PIXELS)},
        )

    def _open_url(self, url: str) -> InputContainer:
        self.remote = _Remote(url)
        return av.open(
            self.remote,
            "r",
            metadata_errors="replace",
            buffer_size=_BUFFER_BYTES,
            io_open=_refuse,
            options={"max_pixels": str(_MOST_PIXELS)},
        )

    def _close_remote(self) -> None:
        if self.remote is not None:
            self.remote.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()
        self._close_remote()
        # FFmpeg may take a failed read for the end of the file; it was none.
        if (
            self.remote is not None
            and self.remote.failure is not None
            and (error is None or isinstance(error, Exception))
        ):
            raise self.remote.failure from None


def _refuse(url: str, *_: Any) -> Any:
    raise VideoError(f"not a video by itself: it refers to {url}")


class _Remote:
    """A URL as a seekable file that PyAV can read; a failing read is tried again, and then a VideoError that is kept."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.name = url
        self.failure: VideoError | None = None
        scheme = url.split("://", 1)[0]
        try:
            system, place = fsspec.core.url_to_fs(url)
            self.file = system.open(
                place,
                "rb",
                block_size=_BLOCK_BYTES,
                cache_type="background",
                cache_options={"maxblocks": _BLOCKS},
            )
            size = self.file.seek(0, os.SEEK_END)
            self.file.seek(0)
        except FileNotFoundError:
            raise VideoError("there is no such file") from None
        except PermissionError:
            raise VideoError("no permission to read it") from None
        except ImportError as error:
            raise VideoError(f"reading {scheme}:// needs another package: {error}") from None
        except Exception as error:
            raise VideoError(f"it cannot be opened: {type(error).__name__}: {error}") from None
        if size == 0:
            raise VideoError("the file is empty")

    def read(self, size: int) -> bytes:
        for attempt in range(_READ_ATTEMPTS):
            try:
                data: bytes = self.file.read(size)
            except Exception as error:
                self.failure = VideoError(f"reading failed: {type(error).__name__}: {error}")
                time.sleep(0.5 * attempt)
            else:
                self.failure = None
                return data
        assert self.failure is not None
        raise self.failure

    def seek(self, offset: int, whence: int = 0) -> int:
        place: int = self.file.seek(offset, whence)
        return place

    def tell(self) -> int:
        place: int = self.file.tell()
        return place

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.file.close()


def _video_stream(container: InputContainer, threads: int) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = {"a cover picture" if s.type == "video" else str(s.type) for s in container.streams}
        holds = " and ".join(sorted(kinds))
        raise VideoError(f"it holds no video, only {holds}" if holds else "it holds nothing that can be played")
    stream = streams[0]
    try:
        context = stream.codec_context
    except (RuntimeError, ValueError):
        context = None
    if context is None:
        raise VideoError("its video codec is unknown")
    if context.width * context.height > _MOST_PIXELS:
        raise VideoError(
            f"its pictures are said to be {context.width} x {context.height}, which is too large to decode"
        )
    context.options = {"max_pixels": str(_MOST_PIXELS)}
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    # With several, each decodes a frame of its own; FFmpeg hands `skip_frame` to the one that gets the packet it was set for.
    stream.thread_type = "FRAME" if threads > 1 else "NONE"
    context.thread_count = threads
    return stream


# --- times ------------------------------------------------------------------------------------------------------------------


def origin_of(container: InputContainer, stream: VideoStream) -> float:
    """Time stamp of the start of the file in seconds: the earliest of its streams, as players have it."""
    assert stream.time_base is not None
    candidates = [float(stream.start_time * stream.time_base)] if stream.start_time is not None else []
    if container.start_time is not None:
        candidates.append(container.start_time / av.time_base)
    return min(candidates, default=0.0)


def frame_ticks(stream: VideoStream) -> Fraction:
    """How long a frame lasts that does not say so, in the stream's time base."""
    assert stream.time_base is not None
    return 1 / ((stream.average_rate or stream.guessed_rate or Fraction(25)) * stream.time_base)


def declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds from the start of the file to the end of the last frame, as the file says; None where it does not."""
    assert stream.time_base is not None
    if container.format.name == "mpeg":
        return None  # one time stamp for many frames: FFmpeg's estimate is half a second short
    origin = origin_of(container, stream)
    if stream.duration:
        begin = float(stream.start_time * stream.time_base) if stream.start_time is not None else origin
        return begin - origin + float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:01:02.345000000, the last time stamp
    try:
        return int(tag[0]) * 3600 + int(tag[1]) * 60 + float(tag[2]) - origin
    except (IndexError, ValueError):
        return None


def counted_duration(path: str | os.PathLike[str]) -> float:
    """The same from the packets' time stamps, or from their number; reads the file without decoding it."""
    with opened(path) as (container, stream):
        assert stream.time_base is not None
        origin, step = origin_of(container, stream), frame_ticks(stream)
        shown, packets = 0.0, 0
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
                if packet.pts is not None:
                    shown = max(shown, float((packet.pts + (packet.duration or step)) * stream.time_base) - origin)
        return shown or packets / float(stream.average_rate or stream.guessed_rate or 25)


# --- every frame ------------------------------------------------------------------------------------------------------------


def every_frame(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
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
            if getattr(error, "errno", None) == errno.EINVAL:
                raise VideoError("its pictures are damaged, or too large to decode") from None
            raise VideoError(f"reading failed: {getattr(error, 'strerror', None) or error}") from None
