"""A URL as a seekable file that PyAV can read: failed requests are retried; unreachable differs from not found.

Enters: any URL that fsspec knows. Price: blocks of 4 MiB, fetched one ahead of their use, 32 MiB held; a thread a file.

A refused, throttled, failed, stalled or short answer is tried again with growing pauses, or the one that the server asks for
(`Retry-After`), over a new connection; after the last try it is an `Outage`. Only what the server says is not there, and what can
never be read, is the file's own fault.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from lvmae.files.outages import answer_of, is_outage, is_refusal, retry_after
from lvmae.video.errors import Outage, VideoError

__all__ = ["Outage", "RemoteFile", "set_patience"]

_BLOCK_BYTES = 4 << 20
_BLOCKS = 8
_ATTEMPTS = 5
_REFUSED_ATTEMPTS = 2  # access that is refused comes back with new credentials, not with time
_FIRST_PAUSE = 0.5  # seconds; each is twice the one before
_STALL_SECONDS = 30.0  # without an answer


class _Limits:
    """What holds for all URLs of this process."""

    patience = 120.0  # seconds


def set_patience(seconds: float) -> None:
    """How long, in seconds, this process tries to read on after a failed read of a URL."""
    _Limits.patience = seconds


class RemoteFile:
    """A URL as a file. Raises Outage where it cannot be reached now, VideoError if it cannot be read at all."""

    failure: VideoError | None = None
    """Why the last read failed: FFmpeg may take that for the end of the file."""

    def __init__(self, url: str) -> None:
        self.name = url
        self._place = 0
        self._file: Any = None
        self._caller = _Caller()
        try:
            self._size: int = self._patiently(self._open, "it cannot be opened")
        except BaseException:
            self.close()
            raise
        if self._size == 0:
            self.close()
            raise VideoError("the file is empty")

    def _open(self) -> int:
        """Opens the URL over a connection of its own, and gives its size."""
        import fsspec

        if self._file is not None:  # what it holds may be a part of an answer
            with contextlib.suppress(Exception):
                self._file.close()
        system, place = fsspec.core.url_to_fs(self.name)
        options = {"maxblocks": _BLOCKS}
        self._file = system.open(place, "rb", block_size=_BLOCK_BYTES, cache_type="background", cache_options=options)
        return int(self._file.seek(0, os.SEEK_END))

    def read(self, size: int) -> bytes:
        rest = max(0, self._size - self._place)
        wanted = rest if size < 0 else min(size, rest)

        def attempt() -> bytes:
            if self._file is None:
                self._open()
            self._file.seek(self._place)
            data = bytes(self._file.read(wanted))
            if len(data) < wanted:
                raise ConnectionError(f"the server sent {len(data)} of {wanted} bytes")
            return data

        try:
            data: bytes = self._patiently(attempt, "reading failed")
        except VideoError as error:
            self.failure = error
            raise
        self._place += len(data)
        return data

    def _patiently(self, attempt: Callable[[], Any], what: str) -> Any:
        """The result of `attempt`, tried again as long as that can help."""
        end, pause, attempts = time.monotonic() + _Limits.patience, _FIRST_PAUSE, 0
        stall = min(_STALL_SECONDS, _Limits.patience / 4)
        while True:
            try:
                return self._caller.call(attempt, stall)
            except VideoError:
                raise
            except Exception as error:
                attempts += 1
                said = f"{what}: {answer_of(error)}"
                if not is_outage(error):
                    raise _of_the_file(error, self.name, said) from None
                asked = retry_after(error)
                pause = pause if asked is None else asked
                most = _REFUSED_ATTEMPTS if is_refusal(error) else _ATTEMPTS
                if attempts >= most or time.monotonic() + pause > end:
                    wait = f"; the server asks to wait {asked:.0f} s" if asked else ""
                    raise Outage(f"{said}{wait}") from None
            self._caller = _Caller()  # the old one may hang for ever
            self._file = None
            time.sleep(pause)
            pause = max(2 * pause, _FIRST_PAUSE)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        self._caller.end()
        with contextlib.suppress(Exception):
            self._file.close()


class _Caller:
    """A thread that calls for another, which can stop waiting. It ends with the process whatever it is at."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while (function := self._asked.get()) is not None:
            try:
                answer: tuple[Any, Exception | None] = function(), None
            except Exception as error:
                answer = None, error
            self._answered.put(answer)

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        self._asked.put(function)
        try:
            result, error = self._answered.get(timeout=seconds)
        except queue.Empty:
            self.end()
            raise TimeoutError(f"the server did not answer for {seconds:.3g} s") from None
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        self._asked.put(None)


def _of_the_file(error: Exception, url: str, said: str) -> VideoError:
    if isinstance(error, FileNotFoundError):
        return VideoError("there is no such file")
    if isinstance(error, ImportError):
        return VideoError(f"reading {url.split('://', 1)[0]}:// needs another package: {error}")
    return VideoError(said)
