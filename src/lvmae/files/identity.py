"""The identity of a source when it was read: size, time of change and a digest, to notice changed files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from lvmae.files.urls import file_system, is_remote

_SAMPLES = 16  # blocks of a file that its digest is made of, evenly spread, the first and the last among them
_SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True)
class FileIdentity:
    """What a source was when it was read; None is unknown, as in stores from before this was kept."""

    bytes: int | None = None
    changed: float | None = None
    """Time of the last change, in seconds since 1970."""
    digest: str | None = None
    """Of its size and of 1 MiB of its content, evenly spread; of an object in a bucket, its ETag."""

    def differs(self, path: str, now: FileIdentity) -> bool:
        """Whether the source at `path`, which is `now`, has other content than this. Reads it only where the times differ."""
        if self.bytes is not None and now.bytes is not None and self.bytes != now.bytes:
            return True
        if self.digest is not None and now.digest is not None:
            return self.digest != now.digest
        if self.changed is None or now.changed is None or self.changed == now.changed:
            return False
        if self.digest is None:
            return True
        digest = identity_of(path).digest
        return digest is not None and digest != self.digest


UNKNOWN = FileIdentity()


def stat_of(path: str | os.PathLike[str]) -> FileIdentity:
    """Size and time of a file of this machine, without reading it; unknown for a URL and if there is no file."""
    if is_remote(path):
        return UNKNOWN
    try:
        status = Path(os.fspath(path).removeprefix("file://")).stat()
    except (OSError, ValueError):
        return UNKNOWN
    if not stat.S_ISREG(status.st_mode):
        return UNKNOWN
    return FileIdentity(status.st_size, status.st_mtime)


def listed(entry: Mapping[str, Any]) -> FileIdentity:
    """What a listing of fsspec says about one of its files."""
    size, tag = entry.get("size"), entry.get("ETag") or entry.get("etag")
    stamps = (entry.get(name) for name in ("mtime", "LastModified", "last_modified", "updated", "created"))
    changed = next((when for stamp in stamps if (when := _seconds(stamp)) is not None), None)
    return FileIdentity(size if isinstance(size, int) else None, changed, f"etag:{tag}" if tag else None)


def identity_of(path: str | os.PathLike[str]) -> FileIdentity:
    """The identity of a file or URL: 1 MiB of a file is read, a URL is asked once. What cannot be told is unknown."""
    try:
        if is_remote(path):
            files, place = file_system(str(path))
            return listed(files.info(place))
        local = Path(os.fspath(path).removeprefix("file://"))
        if not local.is_file():
            return UNKNOWN
        with local.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.blake2b(str(status.st_size).encode(), digest_size=16)
            last = max(status.st_size - _SAMPLE_BYTES, 0)
            for offset in sorted({last * k // (_SAMPLES - 1) for k in range(_SAMPLES)}):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
        return FileIdentity(status.st_size, status.st_mtime, digest.hexdigest())
    except Exception:  # whoever reads the source next says what is wrong with it
        return UNKNOWN


def _seconds(stamp: Any) -> float | None:
    if isinstance(stamp, int | float):
        return float(stamp)
    if isinstance(stamp, str):
        for parse in (datetime.fromisoformat, parsedate_to_datetime):
            try:
                stamp = parse(stamp)
                break
            except ValueError:
                continue
    if isinstance(stamp, datetime):
        return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    return None
