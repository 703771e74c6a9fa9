"""Limits for one visitor: time for headers and bodies, connections, bytes, lines of the log."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""In which a request's headers must be there, from the first byte of a connection or of a further request."""
BODY_SECONDS = 60.0
"""In which a request's body must be there."""
MOST_CONNECTIONS = 512
_LINES = 20  # a minute and logger


class BodyError(Exception):
    """A body that is too long, or does not come."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose headers do not come, and those beyond the most there may be."""

    most = MOST_CONNECTIONS
    _deadline: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: Any) -> None:
        """Refuses the connection, or waits for its first request."""
        if len(self.connections) >= self.most:
            self._refused = True
            transport.abort()
            return
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._stop_waiting()
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A request, or a part of one."""
        if self._refused:
            return
        if self._is_idle() and self._deadline is None:
            self._wait()
        super().data_received(data)
        if not self._is_idle():
            self._stop_waiting()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def connections_that_fit() -> int:
    """The most connections, so that files can still be opened beside them."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST_CONNECTIONS, files // 2))


async def body_of(request: Any, most_bytes: int) -> bytes:
    """A request's body. Raises BodyError where it is longer than `most_bytes`, or is not there in time."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or len(declared) > 15 or int(declared) > most_bytes:
        raise BodyError(413, f"A body may have {most_bytes} bytes.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise BodyError(413, f"A body may have {most_bytes} bytes.")
    except TimeoutError:
        raise BodyError(408, "The body did not come.") from None
    return bytes(body)


class Sparing(logging.Filter):
    """Lets through a few lines a minute, and tells how many it held back."""

    def __init__(self) -> None:
        super().__init__()
        self._since, self._lines, self._held = time.monotonic(), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        now = time.monotonic()
        if now - self._since >= 60:
            if self._held:
                record.msg = f"{record.getMessage()} ({self._held} other lines were held back)"
                record.args = ()
            self._since, self._lines, self._held = now, 0, 0
        self._lines += 1
        if self._lines > _LINES:
            self._held += 1
            return False
        return True


def spare_logs() -> None:
    """Has asyncio and uvicorn write a few lines a minute at most: they write one, or a traceback, for each bad connection."""
    for name in ("asyncio", "uvicorn.error"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, Sparing) for one in logger.filters):
            logger.addFilter(Sparing())
