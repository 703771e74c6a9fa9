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
from pathlib import Path
from types import TracebackType
from typing import Any

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from lvmae.files.urls import is_remote
from lvmae.video.errors import VideoError
from lvmae.video.picture import has_one_aspect
from lvmae.video.remote import RemoteFile

# Demuxers that make pictures of text, and those that follow what a file says to other files.
_NO_VIDEO_FORMATS = frozenset({"tty", "bin", "xbin", "adf", "idf", "image2", "hls", "concat", "dash", "sdp"})
_MOST_PIXELS = 1 << 26  # of a picture: 8K has half of that; a header that claims more would take gigabytes
_BUFFER_BYTES = 256 << 10  # what FFmpeg asks of a URL's file at once
_PROBED_BYTES = 5_000_000  # FFmpeg's own probesize
_MOST_BOXES = 10_000

av.logging.set_level(av.logging.PANIC)  # FFmpeg's remarks go to no one; what matters is raised


class opened:
    """A context: (container, stream) of a file, its film as ffmpeg chooses it. Every way this fails is a VideoError."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        self.path = path
        self.threads = threads
        self.remote: RemoteFile | None = None

    def __enter__(self) -> tuple[InputContainer, VideoStream]:
        self.container = self._open()
        try:
            if self.container.format.name in _NO_VIDEO_FORMATS or self.container.format.name.endswith("_pipe"):
                raise VideoError("not a video")
            return self.container, _video_stream(self.container, self.path, self.threads)
        except BaseException:
            self.container.close()
            self._close_remote()
            raise

    def sending(self) -> set[int]:
        """Opens the file and says which streams have packets in its beginning, as far as FFmpeg looks for them."""
        found: set[int] = set()
        container = self._open()
        try:
            wanted = {stream.index for stream in container.streams.video}
            read = 0
            with contextlib.suppress(av.error.FFmpegError, OSError):
                for packet in container.demux():
                    if packet.size:
                        found.add(packet.stream_index)
                    read += packet.size
                    if read > _PROBED_BYTES or wanted <= found:
                        break
        finally:
            container.close()
            self._close_remote()
        return found

    def has_fragments(self) -> bool:
        """Whether an MP4 is in fragments: then no index of it tells how long it is (ISO/IEC 14496-12)."""
        with contextlib.ExitStack() as stack:
            if self.remote is not None:
                file: Any = self.remote
                stack.callback(file.seek, file.tell())
            else:
                file = stack.enter_context(_local(self.path).open("rb"))
            place = 0
            for _ in range(_MOST_BOXES):
                file.seek(place)
                head = file.read(16)
                if len(head) < 8 or head[4:8] == b"moof":
                    return len(head) >= 8
                size = int.from_bytes(head[:4])
                if size == 1:
                    size = int.from_bytes(head[8:])
                if size < 8:
                    return False
                place += size
        return False

    def _open(self) -> InputContainer:
        try:
            return self._open_url(str(self.path)) if is_remote(self.path) else self._open_local()
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

    def _open_local(self) -> InputContainer:
        path = _local(self.path)
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
        self.remote = RemoteFile(url)
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


def _local(path: str | os.PathLike[str]) -> Path:
    return Path(os.fspath(path).removeprefix("file://"))


def _refuse(url: str, *_: Any) -> Any:
    raise VideoError(f"not a video by itself: it refers to {url}")


def _video_stream(container: InputContainer, path: str | os.PathLike[str], threads: int) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        kinds = {"a cover picture" if s.type == "video" else str(s.type) for s in container.streams}
        holds = " and ".join(sorted(kinds))
        raise VideoError(f"it holds no video, only {holds}" if holds else "it holds nothing that can be played")
    stream = streams[0] if len(streams) == 1 else _film(streams, path)
    context = _context(stream)
    if context is None:
        raise VideoError("its video codec is unknown")
    if context.width * context.height > _MOST_PIXELS:
        raise VideoError(
            f"its pictures are said to be {context.width} x {context.height}, which is too large to decode"
        )
    context.options = {"max_pixels": str(_MOST_PIXELS)}
    context.copy_opaque = not has_one_aspect(stream)
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    # With several, each decodes a frame of its own; FFmpeg hands `skip_frame` to the one that gets the packet it was set for.
    stream.thread_type = "FRAME" if threads > 1 else "NONE"
    context.thread_count = threads
    return stream


def _context(stream: VideoStream) -> VideoCodecContext | None:
    try:
        return stream.codec_context
    except (RuntimeError, ValueError):
        return None


def _film(streams: list[VideoStream], path: str | os.PathLike[str]) -> VideoStream:
    """Which of several streams ffmpeg plays: one that sends packets, the default one, the one of most pixels, the first."""
    sending = opened(path).sending()

    def rank(stream: VideoStream) -> int:
        context = _context(stream)
        if context is None:
            return -1
        default = bool(stream.disposition & av.stream.Disposition.default)
        # The weights are those of ffmpeg (fftools/ffmpeg_mux_init.c, map_auto_video).
        return context.width * context.height + 100_000_000 * (stream.index in sending) + 5_000_000 * default

    return max(streams, key=rank)  # ties: the first
