"""Writes a file or a folder atomically: after any crash it is complete or absent.

What is new is written beside its place under a name that begins with `.tmp-`, brought to the disk, and renamed. A killed process
leaves no more than such a name, which `remove_leftovers` takes away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvmae.errors import WorkError

TEMPORARY = ".tmp-"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Gives a name beside `path`; the file or folder that the block makes there takes the place of `path` when the block ends.

    Where the block raises, what it made is removed and `path` stays as it was. A folder takes the place of nothing or of an empty
    folder.

    Args:
        path: what is written.
        durable: wait until it has reached the disk, so that it also survives a power cut.

    Raises:
        OSError: the disk refuses it.
    """
    target = Path(path)
    if target.is_symlink():  # what it leads to is replaced, not the link
        target = target.resolve()
    beside = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{target.suffix}")
    try:
        yield beside
        if durable:
            for part in [*beside.rglob("*"), beside]:
                to_disk(part)
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(beside)
        raise
    if durable:
        to_disk(target.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview, *, durable: bool = True) -> None:
    """Replaces a file in one step, and makes its folder if there is none.

    Pipes and devices, such as /dev/stdout, are written to. Raises WorkError, the old file in its place, where the disk refuses it.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            with target.open("wb") as file:
                file.write(content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=durable) as beside, beside.open("wb") as file:
            file.write(content)
    except OSError as error:
        raise WorkError(f"{os.fspath(path)} could not be written: {reason(error)}.") from error


def write_text(path: str | os.PathLike[str], text: str, *, durable: bool = True) -> None:
    """Replaces a file by a text in UTF-8, in one step. Raises WorkError if the disk refuses it."""
    write_bytes(path, text.encode("utf-8"), durable=durable)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2, durable: bool = True) -> None:
    """Replaces a file by a value as JSON, in one step. Raises WorkError if the disk refuses it, ValueError for NaN."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", durable=durable)


def to_disk(path: Path) -> None:
    """Waits until a file's bytes or a folder's entries have reached the disk. File systems that cannot say so are believed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left unfinished in a folder and below it; only for who holds the folder's lock."""
    for leftover in list(folder.rglob(f"{TEMPORARY}*")):
        with contextlib.suppress(OSError):
            remove(leftover)


def reason(error: BaseException) -> str:
    """Why something failed, in one line and in words that a person understands."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    said = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
    return str(said).splitlines()[0]
