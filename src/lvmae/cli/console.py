"""Standard output and error in all conditions: any code page, closed, full, or without a reader."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from lvmae.errors import WorkError

# What our tables and sentences are written with, for a console that has no such signs.
_PLAIN = {
    "±": "+-",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "×": "x",
    "·": ".",
    "→": "->",
    "²": "2",
    "’": "'",
    "█": "#",
}
_ERRORS = "lvmae-plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: signs that the console lacks, spelled with those that every console has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    spelled = (_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in lost)
    return "".join(spelled), error.end


codecs.register_error(_ERRORS, _plain)


class _Output:
    """Standard output for one command: if its reader has gone, the command still finishes its work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._without_a_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._without_a_reader():
            self._stream.flush()

    @contextlib.contextmanager
    def _without_a_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._to_nowhere()
        except OSError as error:
            self._to_nowhere()
            what = os.strerror(error.errno) if error.errno else str(error)
            if error.errno != errno.EINVAL:  # what Windows says for a broken pipe
                raise WorkError(f"standard output could not be written ({what}).") from None

    def _to_nowhere(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def console() -> Iterator[None]:
    """Has standard output and error take every sentence within the block; they are as before after it."""
    before: list[tuple[io.TextIOWrapper, str]] = []
    for stream in (sys.stdout, sys.stderr):
        errors = getattr(stream, "errors", None)
        if isinstance(stream, io.TextIOWrapper) and errors in ("strict", "backslashreplace"):
            before.append((stream, errors))
            stream.reconfigure(errors=_ERRORS)
    output = sys.stdout
    if output is not None:
        sys.stdout = cast("TextIO", _Output(output))
    try:
        yield
    finally:
        sys.stdout = output
        for stream, errors in before:
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors=errors)


def print_json(value: Any) -> None:
    """Prints JSON, in ASCII where the console is not one of Unicode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(json.dumps(value, indent=2, ensure_ascii="utf" not in encoding.lower(), allow_nan=False))
