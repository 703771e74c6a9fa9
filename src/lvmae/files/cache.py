"""The cache of files that can be recreated: memory maps, unpacked weights, vectors, indexes. Every file is checked on use.

    <kind>/<name>             a file or a folder
    <kind>/<name>.about.json  the hash of every file of it, what it was made of, and when it was last used (the time of this file)

A copy is used only where its bytes have the hashes that were written beside it. Reading all bytes on every start would cost more
than the copies save, so the bytes are hashed again only where size, inode or change time of a file differ from what was noted:
nobody writes to a file without changing the last, which no program can set back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmae.errors import InputError, WorkError
from lvmae.files.writing import TEMPORARY, reason, remove, replacing, write_json

_ABOUT = ".about.json"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_IN_USE = 3600.0  # seconds since its last use that a limit leaves an entry alone
_ABANDONED = 24 * 3600.0  # seconds after which an unfinished entry is a killed process's


def cache_folder() -> Path:
    """Where memory maps and unpacked weights are kept: `$LVMAE_CACHE`, or `~/.cache/lvmae`. Safe to delete.

    Raises InputError if neither says a folder.
    """
    given = os.environ.get("LVMAE_CACHE")
    if given:
        return Path(given).expanduser()
    try:
        return Path.home() / ".cache" / "lvmae"
    except RuntimeError:
        raise InputError("this user has no home folder; set LVMAE_CACHE to a folder for the cache") from None


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache."""

    path: Path
    kind: str
    """What it is: the folder of the cache that it lies in."""
    of: str
    """The store or package that it is a copy of; empty if nobody noted it."""
    size: int
    """Bytes on the disk."""
    used: float
    """When it was last used, in seconds since 1970."""


def cached(kind: str, name: str, make: Callable[[Path], None], *, of: str = "", source: Path | None = None) -> Path:
    """The file or folder `kind`/`name` of the cache: as it is where its bytes are those that were written, else made again.

    Args:
        kind: what it is; entries of a kind share a folder.
        name: names the content. Two contents never share a name.
        make: writes the file, or the folder with its files, at the path that it is given.
        of: the store or package that it is a copy of, for `entries` and `forget`.
        source: the file that it is made from, where that may change: then it is made again.

    Raises:
        InputError: there is no place for a cache.
        WorkError: the cache cannot be written to.
    """
    path = cache_folder() / kind / name
    try:
        read = _identity(source) if source is not None else None
    except OSError as error:
        raise WorkError(f"{source} cannot be read: {reason(error)}") from None
    if _whole(path, read):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            make(beside)
            hashes = {part: _sha256(beside / part) for part in _parts(beside)}
            if beside.is_dir():
                remove(path)
    except OSError as error:
        if path.is_dir() and _whole(path, read):  # another process was first
            return path
        raise WorkError(
            f"could not write to the cache {path.parent}: {reason(error)}; point LVMAE_CACHE to a folder with room"
        ) from None
    files = {part: [digest, *_identity(path / part)] for part, digest in hashes.items()}
    about = {"of": of, "source": read, "files": files}
    write_json(_about(path), about, indent=None)
    limit = _limit()
    if limit is not None:
        prune(max_bytes=limit, unused_seconds=_IN_USE)
    return path


def entries() -> list[CacheEntry]:
    """All that lies in the cache, the largest first; also what an older version or a killed process left there."""
    found = []
    for path in _things(cache_folder()):
        about = _read_about(path)
        with contextlib.suppress(OSError):
            size = sum((path / part).stat().st_size for part in _parts(path))
            used = (_about(path) if about else path).stat().st_mtime
            found.append(CacheEntry(path, path.parent.name, str((about or {}).get("of", "")), size, used))
    return sorted(found, key=lambda entry: (-entry.size, entry.path))


def prune(
    *,
    max_bytes: int | None = None,
    unused_seconds: float = 0.0,
    gone: bool = False,
    everything: bool = False,
) -> list[CacheEntry]:
    """Removes entries, and says which. A process that has one of them mapped keeps it until it ends.

    Args:
        max_bytes: remove those that were not used for longest, until the rest is no larger.
        unused_seconds: leave alone what was used within so many seconds.
        gone: remove copies of stores on this machine that are no longer there, and what an older version or a killed process left.
        everything: remove all.
    """
    now = time.time()
    there = sorted(entries(), key=lambda entry: entry.used)
    total = sum(entry.size for entry in there)
    removed = []
    for entry in there:
        old = now - entry.used >= unused_seconds
        unfinished = entry.path.name.startswith(TEMPORARY)
        useless = now - entry.used > _ABANDONED if unfinished else gone and _is_gone(entry)
        if everything or useless or (old and not unfinished and max_bytes is not None and total > max_bytes):
            _drop(entry.path)
            total -= entry.size
            removed.append(entry)
    return removed


def forget(of: str, *, kind: str | None = None) -> int:
    """Removes every copy of one store or package, or those of a kind, and says how many there were."""
    mine = [entry for entry in entries() if entry.of == of and kind in (None, entry.kind)]
    for entry in mine:
        _drop(entry.path)
    return len(mine)


def bytes_of(size: str) -> int:
    """A size as people write it, such as "500M" or "20 GB", in bytes. Raises InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", size, re.IGNORECASE)
    if match is None:
        raise InputError(f"{size!r} is not a size; write it like 500M or 20GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _limit() -> int | None:
    given = os.environ.get("LVMAE_CACHE_LIMIT")
    return bytes_of(given) if given else None


def _about(path: Path) -> Path:
    return path.with_name(path.name + _ABOUT)


def _read_about(path: Path) -> dict[str, Any] | None:
    try:
        about = json.loads(_about(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) and isinstance(about.get("files"), dict) else None


def _whole(path: Path, source: list[int] | None) -> bool:
    """Whether an entry has the bytes that were written, from this source; notes its use, and what its files are now."""
    about = _read_about(path)
    if about is None or about.get("source") != source:
        return False
    changed = False
    try:
        if set(_parts(path)) != set(about["files"]):
            return False
        for part, noted in about["files"].items():
            identity = _identity(path / part)
            if noted[1:] != identity:
                if noted[0] != _sha256(path / part):
                    return False
                about["files"][part] = [noted[0], *identity]
                changed = True
    except (OSError, TypeError, IndexError, KeyError):
        return False
    with contextlib.suppress(OSError, WorkError):  # a cache that is only read, say
        if changed:
            write_json(_about(path), about, indent=None)
        else:
            os.utime(_about(path))
    return True


def _parts(path: Path) -> Iterator[str]:
    """Names of the files of an entry, relative to it; "." for one that is a file."""
    if path.is_dir():
        yield from (part.relative_to(path).as_posix() for part in sorted(path.rglob("*")) if part.is_file())
    elif path.exists():
        yield "."


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_ctime_ns]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _things(folder: Path) -> list[Path]:
    kinds = sorted(kind for kind in folder.glob("*") if kind.is_dir())
    return [thing for kind in kinds for thing in sorted(kind.iterdir()) if not thing.name.endswith(_ABOUT)]


def _is_gone(entry: CacheEntry) -> bool:
    if _read_about(entry.path) is None:
        return True  # an older version's: nothing reads it any more
    return Path(entry.of).is_absolute() and not Path(entry.of).exists()


def _drop(path: Path) -> None:
    with contextlib.suppress(OSError):
        remove(path)
        remove(_about(path))
