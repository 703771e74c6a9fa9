"""Writing a store: append, commit, resume after any crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Self

import numpy as np
import pyarrow as pa

from lvmae.errors import InputError, WorkError
from lvmae.files.identity import UNKNOWN, FileIdentity
from lvmae.files.locks import Lock
from lvmae.files.urls import without_secrets
from lvmae.files.writing import TEMPORARY, remove_leftovers
from lvmae.process import handling_signals
from lvmae.store.folder import StoreFolder, indexed_rows
from lvmae.store.format import (
    CARD,
    FAILURE_SCHEMA,
    REPRESENTATIONS,
    TABLES,
    Failure,
    Manifest,
    VideoRecord,
    check_alike,
    data_schema,
    identity_columns,
    layers_of,
    to_half,
)
from lvmae.store.index import INDEX, IndexEntry, describe
from lvmae.store.rewriting import add_missing_entries, drop_rows, shard_bytes_of


class StoreWriter:
    """Adds videos to a new or existing store; committed videos stay and are listed in `done`.

    Use it as a context manager: leaving it commits, also when an exception or Ctrl-C is on its way.

    Raises:
        InputError: another process writes to this store, or what is on disk has another space, width, kind or segment rule.
        WorkError: a shard could not be written (disk full, no permission).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        *,
        shard_bytes: int = 64 << 20,
        flush_seconds: float = 30.0,
    ) -> None:
        self.manifest = manifest
        self.done: set[str] = set()
        self.failed: dict[str, Failure] = {}
        self.removed: set[str] = set()
        """Ids of videos that were removed from the store, and stay out."""
        self._folder = StoreFolder(path)
        self._shard_bytes, self._flush_seconds = shard_bytes, flush_seconds
        self._rows: list[VideoRecord] = []
        self._failures: list[Failure] = []
        self._bytes = 0
        self._committed_at = time.monotonic()
        self._lock: Lock | None = None
        self._unindexed: list[tuple[IndexEntry, bytes]] = []
        self._open()

    def _open(self) -> None:
        folder = self._folder
        if folder.local is not None:
            self._take(folder.local)
        try:
            existing = folder.manifest()
            if existing is None:
                there = set() if folder.local is not None else set(folder.entries())
                if there - {"README.md"}:
                    raise InputError(
                        f"{folder.said} is not empty and holds no store; choose another place, or empty it"
                    )
                card = CARD.format(
                    kind=self.manifest.kind.capitalize(), dim=self.manifest.dim, space_id=self.manifest.space_id
                )
                if folder.read("README.md") is None:
                    folder.write("README.md", card.encode())
                folder.write("manifest.json", self._manifest_text())
            else:
                check_alike(existing, self.manifest, folder.said)
            # First the numbers, then what is there: a shard that another writer adds in between has our next number and stops us.
            self._next = {table: folder.next_number(table) for table in TABLES}
            add_missing_entries(folder)
            self.removed = folder.removed()
            self.done = folder.ids()
            self.failed = folder.failures(done=self.done)
        except BaseException:
            self.close()
            raise

    def _take(self, local: Path) -> None:
        if local.is_dir() and not (local / "manifest.json").exists() and any(map(_is_foreign, local.iterdir())):
            raise InputError(f"{local} is not empty and holds no store; choose another place, or empty it")
        busy = f"another process is writing to {local}; wait for it to end, or choose another place"
        lock = Lock(local / ".lock", busy)
        lock.take()
        self._lock = lock
        remove_leftovers(local)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        finally:
            self.close()

    def add(self, record: VideoRecord, *, replaces: bool = False) -> None:
        """Adds a video; it is on disk after the next commit. A shortened one is also in `failed`, with its kept seconds.

        With `replaces`, a video of this id that is stored already counts no more: readers take the last row of an id.

        Raises:
            ValueError: shapes that disagree, values that are not finite or that float16 cannot hold, an id that is stored already.
        """
        if record.id in self.done and not replaces:
            raise ValueError(f"{record.id!r} is in the store already")
        if record.id in self.removed:
            raise ValueError(f"{record.id!r} was removed from the store, and has to be admitted again first")
        row = self._checked(record)
        partly = self.failed.get(row.id)
        self._rows.append(row)
        self.done.add(row.id)
        self._bytes += row.embeddings.nbytes
        if row.shortened:
            self._failures.append(Failure(row.id, row.source, row.shortened, float(row.duration), row.identity))
            self.failed[row.id] = self._failures[-1]
        elif partly is not None and partly.kept:
            self._failures.append(Failure(row.id, row.source, ""))
            del self.failed[row.id]
        else:
            self.failed.pop(row.id, None)
        self._commit_if_due()

    def admit(self, ids: Iterable[str]) -> None:
        """Allows removed videos to be added again."""
        admitted = self.removed & set(ids)
        if admitted:
            drop_rows(self._folder, self.manifest, admitted)  # where their removal was interrupted
            self._folder.note_removal(admitted=admitted)
            self.removed -= admitted

    def fail(self, id: str, path: str, reason: str, identity: FileIdentity = UNKNOWN) -> None:
        """Records an input that could not be embedded."""
        self._failures.append(Failure(id, without_secrets(path), without_secrets(reason), identity=identity))
        self.failed[id] = self._failures[-1]
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        if self._bytes >= self._shard_bytes or time.monotonic() - self._committed_at >= self._flush_seconds:
            self.commit()

    def _checked(self, record: VideoRecord) -> VideoRecord:
        values = np.asarray(record.embeddings)
        length = len(record.starts)
        if values.ndim != 2 or values.shape[1] != self.manifest.dim:
            raise ValueError(
                f"{record.id!r} has embeddings of shape {values.shape}, not (segments, {self.manifest.dim})"
            )
        if not length or not length == len(record.ends) == len(values):
            raise ValueError(f"{record.id!r} has {len(values)} embeddings, {length} starts and {len(record.ends)} ends")
        try:
            half = to_half(values)
        except ValueError as error:
            raise ValueError(f"{record.id!r} has values that {error}") from None
        if self.manifest.kind == REPRESENTATIONS:
            for name in ("cls", "mean"):
                pooled = getattr(record, name)
                if pooled is None or np.shape(pooled) != (self.manifest.dim,):
                    raise ValueError(f"{record.id!r} lacks its {name} feature of width {self.manifest.dim}")
        told = without_secrets(record.source), without_secrets(record.shortened)
        return replace(record, embeddings=half, source=told[0], shortened=told[1])

    def commit(self) -> None:
        """Writes buffered rows as one shard per table; then they are safe from any crash. Ctrl-C waits for the end."""
        self._committed_at = time.monotonic()
        if self._folder.read("manifest.json") is None:
            lost = f", and {len(self._rows)} videos that were not committed yet are lost" if self._rows else ""
            self._rows, self._failures, self._bytes = [], [], 0
            raise WorkError(f"{self._folder.said} was deleted while it was written to{lost}; rerun to make it again")
        with _uninterrupted():
            # Failures first: a shortened video is never in the store without its reason.
            if self._failures:
                columns = {
                    name: [getattr(f, name) for f in self._failures] for name in ("id", "path", "reason", "kept")
                }
                columns |= identity_columns(f.identity for f in self._failures)
                self._write("failures", pa.table(columns, schema=FAILURE_SCHEMA))
                self._failures = []
            if self._rows:
                self._write("data", _rows_to_table(self._rows, self.manifest))
                self._rows, self._bytes = [], 0
            while self._unindexed:
                entry, content = self._unindexed[0]
                self._folder.write(f"{INDEX}/{entry.name}", content)
                del self._unindexed[0]

    def _write(self, table: str, rows: pa.Table) -> None:
        number = self._next[table]
        content = shard_bytes_of(rows, table, number, self.manifest)
        self._folder.write(f"{table}/part-{number:08d}.parquet", content)
        self._next[table] += 1
        self._unindexed.append(describe(table, number, content, indexed_rows(table, rows)))

    def _manifest_text(self) -> bytes:
        return json.dumps(asdict(self.manifest), indent=2).encode()

    def close(self) -> None:
        """Releases the lock without a commit."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _is_foreign(path: Path) -> bool:
    """Whether a file in a folder without a manifest is not what a writer leaves that was killed while it made the store."""
    return path.name not in (".lock", "README.md") and not path.name.startswith(TEMPORARY)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect behind the block, not within: between a shard and the note that it is written lies a duplicate."""
    came: list[tuple[int, FrameType | None]] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with handling_signals(dict.fromkeys(numbers, lambda *arguments: came.append(arguments))):
            yield
    finally:
        for number, frame in came[:1]:
            handler = before[signal.Signals(number)]
            assert callable(handler)
            handler(number, frame)


def _rows_to_table(rows: list[VideoRecord], manifest: Manifest) -> pa.Table:
    lengths = np.array([len(row.embeddings) for row in rows])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    flat = pa.array(np.concatenate([row.embeddings.reshape(-1) for row in rows]))
    columns = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "source": pa.array([row.source for row in rows], pa.string()),
        "duration": pa.array([float(row.duration) for row in rows], pa.float64()),
        "starts": pa.ListArray.from_arrays(
            offsets, pa.array(np.concatenate([row.starts for row in rows]), pa.float64())
        ),
        "ends": pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([row.ends for row in rows]), pa.float64())),
        "embeddings": pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, manifest.dim)),
        **identity_columns(row.identity for row in rows),
    }
    if manifest.kind == REPRESENTATIONS:
        for name in ("cls", "mean"):
            columns[name] = pa.array(
                [np.asarray(getattr(row, name), np.float32) for row in rows], pa.list_(pa.float32())
            )
        columns["center"] = pa.array(
            [None if row.center is None else np.asarray(row.center, np.float32) for row in rows], pa.list_(pa.float32())
        )
        if layers_of(manifest):
            means = [None if row.layers is None else np.asarray(row.layers, np.float32).reshape(-1) for row in rows]
            columns["layers"] = pa.array(means, pa.list_(pa.float32()))
        columns["made_from"] = pa.array([row.made_from or None for row in rows], pa.string())
    schema = data_schema(manifest)
    return pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
