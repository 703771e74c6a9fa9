"""Bounded answers: reads, and unpacks, what a server sends up to a limit.

The client's HTTP library is httpx or a fork of it, which openai chooses; so its classes are taken from what it hands over.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from lvmae.captioning.answers import one_line

_MOST_BYTES = 4 << 20  # of an answer, as it comes and unpacked; a caption has a thousandth of that


class TooLong(Exception):
    """An answer is longer than any caption needs, or packed in a way that nobody asked for."""


async def bounded(response: Any) -> None:
    """A hook of httpx: what is read of this answer, also by the client's own handling of errors, ends at its measure."""
    packing = response.headers.pop("content-encoding", "identity").strip().lower()
    (kind,) = (base for base in type(response.stream).__mro__ if base.__name__ == "AsyncByteStream")
    response.stream = type("Bounded", (_BoundedStream, kind), {})(response.stream, packing)


class _BoundedStream:
    """The bytes of an answer, unpacked, up to `_MOST_BYTES`; TooLong beyond."""

    def __init__(self, stream: Any, packing: str) -> None:
        self._stream, self._packing = stream, packing

    async def __aiter__(self) -> AsyncIterator[bytes]:
        unpack: Callable[..., bytes] | None = None
        if self._packing in ("gzip", "x-gzip", "deflate"):
            unpack = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress  # finds out which of the two it is
        elif self._packing not in ("", "identity"):
            raise TooLong(f"the answer is packed as {one_line(self._packing)[:40]}, which was not asked for")
        length = 0
        async for chunk in self._stream:
            try:
                data = chunk if unpack is None else unpack(chunk, _MOST_BYTES + 1 - length)
            except zlib.error:
                raise TooLong("the answer cannot be unpacked") from None
            length += len(data)
            if length > _MOST_BYTES:
                raise TooLong(f"an answer of more than {_MOST_BYTES >> 20} MiB is no caption")
            yield data

    async def aclose(self) -> None:
        """Ends the connection."""
        await self._stream.aclose()
