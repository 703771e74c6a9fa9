"""Which sources a store has, and under which ids: so that a source keeps its id, and no id means two videos.

Enters: a store, or the stores of a job's ranks. Leaves: answers by id and by source. Price: four columns of every shard are read.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lvmae.files.identity import UNKNOWN, FileIdentity, identity_of
from lvmae.files.urls import is_remote, without_secrets
from lvmae.store.folder import StoreFolder
from lvmae.store.format import IDENTITY_COLUMNS, identity_in


@dataclass(frozen=True)
class StoredSource:
    """The source of a video or a failure, and the identity of the file at that time."""

    source: str
    identity: FileIdentity = UNKNOWN


class StoredSources:
    """The sources of a store by id; empty at first."""

    def __init__(self, rows: Mapping[str, StoredSource] | None = None) -> None:
        self.rows = dict(rows or {})
        # An id that a person gave, or a clip's, says nothing about what the whole file is to be called.
        self._ids = {source_key(row.source): id for id, row in self.rows.items() if _is_path_of(id, row.source)}

    def id_of(self, path: str) -> str | None:
        """Returns the id under which a whole file is stored, or failed, if the id was made of its path."""
        return self._ids.get(source_key(path)) if self._ids else None

    def is_another(self, id: str, path: str, now: FileIdentity) -> bool:
        """Returns whether `id` belongs to a different video than the one at `path`, whose identity is `now`.

        The same content at another place is the same video: it was moved. Where the content of then is not known, it counts as
        moved unless its old place still holds a file.
        """
        row = self.rows.get(id)
        if row is None or source_key(row.source) == source_key(path):
            return False
        if row.identity.digest is not None:
            return row.identity.differs(path, now if now.digest is not None else identity_of(path))
        return not is_remote(row.source) and os.path.lexists(row.source)

    def changed(self, id: str, path: str, now: FileIdentity) -> bool:
        """Returns whether the content at `path`, whose identity is `now`, has changed since this id was stored, or failed."""
        row = self.rows.get(id)
        return row is not None and row.identity.differs(path, now)

    def may_succeed(self, id: str, path: str, now: FileIdentity) -> bool:
        """Returns whether the failed file of this id has changed, or its identity was unknown and is known now."""
        row = self.rows.get(id)
        return row is not None and now != UNKNOWN and (row.identity == UNKNOWN or row.identity.differs(path, now))


def stored_sources(paths: Iterable[str | os.PathLike[str]]) -> StoredSources:
    """Returns the sources of all videos and failures in these stores; a path without a store has none."""
    rows: dict[str, StoredSource] = {}
    _real.cache_clear()  # where links lead now
    for path in paths:
        folder = StoreFolder(path)
        if folder.manifest() is None:
            continue
        rows |= dict(_rows(folder))
        for id, failure in folder.failures(done=rows).items():
            rows.setdefault(id, StoredSource(failure.path, failure.identity))
    return StoredSources(rows)


def _rows(folder: StoreFolder) -> Iterator[tuple[str, StoredSource]]:
    for table in folder.columns(["id", "source", *(name for name, _ in IDENTITY_COLUMNS)]):
        for row in table.to_pylist():
            yield row["id"], StoredSource(row["source"], identity_in(row))


def source_key(path: str) -> str:
    """Returns a canonical form of a path or URL: absolute, links resolved, without access tokens.

    A linked file is another place than the file it leads to: collections name one file twice on purpose.
    """
    if is_remote(path):
        return without_secrets(path)
    folder, name = os.path.split(os.path.abspath(path.removeprefix("file://")))  # noqa: PTH100 (links are for below)
    return os.path.join(_real(folder), name)  # noqa: PTH118


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def path_names(path: str) -> list[str]:
    """Returns the parts of a path or URL, last one first, from which ids are made."""
    text = without_secrets(path).partition("://")[2].partition("?")[0] if is_remote(path) else Path(path).as_posix()
    return [part for part in text.split("/") if part not in ("", ".")][::-1]


def _is_path_of(id: str, source: str) -> bool:
    parts = "/".join(path_names(source)[::-1])
    return any(
        f"/{one}".endswith(f"/{id.lstrip('/')}") for one in (parts, parts.removesuffix(posixpath.splitext(parts)[1]))
    )
