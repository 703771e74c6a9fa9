"""The records of a command for operators: a log with one event per file, and a summary as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lvmae
from lvmae.errors import InputError, WorkError
from lvmae.files.urls import without_secrets
from lvmae.process import EVENTS, tell_event

_LEVELS = ("debug", "info", "warning", "error")


def takes_journal(command: Any) -> None:
    """Adds the options; `lvmae.cli` carries them out."""
    group = command.add_argument_group("logs")
    group.add_argument("--log", metavar="FILE", help="append all messages, and one event per file, to this file")
    group.add_argument(
        "--log-level",
        choices=_LEVELS,
        default="info",
        help="lowest level to print and log (default: info)",
    )
    group.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="format of the log: lines of text or of JSON (default: text)",
    )
    group.add_argument("--summary", metavar="FILE", help="write the results and the exit code to this file, as JSON")


@contextlib.contextmanager
def journal(arguments: argparse.Namespace) -> Iterator[None]:
    """Within the block, the package's loggers write to standard error, and to the log if there is one.

    Raises InputError if the log cannot be written.
    """
    logger = logging.getLogger("lvmae")
    before = logger.level
    added: list[logging.Handler] = []
    if not logger.handlers:
        spoken = logging.StreamHandler()
        spoken.addFilter(lambda record: record.name != EVENTS)  # the progress line tells those
        added.append(spoken)
    level = getattr(arguments, "log_level", "info").upper()
    logger.setLevel(level)
    if path := getattr(arguments, "log", None):
        added.append(_to_file(Path(path).expanduser(), arguments.log_format))
    for handler in added:
        logger.addHandler(handler)
    try:
        tell_event("began", f"lvmae {lvmae.__version__} {arguments.command}", version=lvmae.__version__)
        yield
    finally:
        for handler in added:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before)


def write_summary(arguments: argparse.Namespace, *, began: float, code: int, error: str | None) -> None:
    """Writes the summary. Raises WorkError if it cannot be written."""
    tell_event("ended", f"ended with exit code {code}" + (f": {error}" if error else ""), exit_code=code)
    path = getattr(arguments, "summary", None)
    if not path:
        return
    found = {
        "command": arguments.command,
        "version": lvmae.__version__,
        "exit_code": code,
        "error": error,
        "seconds": round(time.time() - began, 3),
        **getattr(arguments, "came_out", {}),
    }
    text = without_secrets(json.dumps(_plain(found), indent=2, allow_nan=False))
    try:
        Path(path).expanduser().write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        raise WorkError(f"the summary {path} could not be written ({problem.strerror})") from None


def _to_file(path: Path, form: str) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"the log {path} cannot be written ({error.strerror}); name another file") from None
    handler.setFormatter(_Json() if form == "json" else _Text())
    return handler


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = without_secrets(record.getMessage())
        said = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in said)  # one record, one line
        return f"{_time(record)} {record.levelname:<7} {said}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": "said",
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        return without_secrets(json.dumps(_plain(facts), allow_nan=False))


def _plain(value: Any) -> Any:
    """Converts to the types of JSON; NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def flush_output() -> None:
    """Flushes standard output, so that an error in it is noticed while it can still be reported."""
    if sys.stdout is not None:
        sys.stdout.flush()
