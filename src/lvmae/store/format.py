"""What a store's rows mean and where its files lie: the format, shared by the writer and the reader."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lvmae.errors import InputError, LVMAEError, WorkError
from lvmae.files.identity import UNKNOWN, FileIdentity
from lvmae.files.urls import file_system
from lvmae.files.writing import reason, replacing

SCHEMA_VERSION = 1
EMBEDDINGS = "embeddings"
REPRESENTATIONS = "representations"

CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
tags:
- lvmae
---

# {kind} of long videos

A row a video: `id`, `source`, `duration` and the segments' `starts` and `ends` in seconds, and `embeddings`, a list of
{dim} float16 values a segment, in the space `{space_id}`. Written by lvmae;
`datasets.load_dataset("parquet", data_files="data/*.parquet")` opens it without.
"""


@dataclass(frozen=True)
class Manifest:
    """What a store's rows mean. Two stores may be used together only if their `space_id` is the same."""

    space_id: str
    """Names the embedding space: model, revision, frames, pooling, preprocessing, segment length."""
    dim: int
    """Width D of one embedding."""
    segments: dict[str, Any]
    """The segment rule, such as `{"kind": "fixed", "seconds": 5.0}`."""
    encoder: dict[str, Any]
    """Name, options and licence of the encoder: enough to rebuild its text side."""
    kind: str = EMBEDDINGS
    run: dict[str, Any] | None = None
    """Representations only: path and fingerprint of the run they come from, and the store they were computed on."""
    schema_version: int = SCHEMA_VERSION


@dataclass
class VideoRecord:
    """One video: L segments with their times in seconds and their embeddings."""

    id: str
    source: str
    duration: float
    starts: np.ndarray
    """(L,) seconds."""
    ends: np.ndarray
    """(L,) seconds."""
    embeddings: np.ndarray
    """(L, D); float16 once stored."""
    cls: np.ndarray | None = None
    """(D,) float32; representations only."""
    mean: np.ndarray | None = None
    """(D,) float32; representations only."""
    shortened: str = ""
    """Why the end of the video is missing here, if it is; then `duration` is that of what was kept."""
    identity: FileIdentity = UNKNOWN
    """What the source was when it was embedded."""


@dataclass(frozen=True)
class Failure:
    """An input that could not be embedded, or not to its end, and why, in words a person understands."""

    id: str
    path: str
    reason: str
    kept: float = 0.0
    """Seconds of it that are in the store all the same."""
    identity: FileIdentity = UNKNOWN
    """What the source was when it failed."""


def check_alike(here: Manifest, wanted: Manifest, where: str) -> None:
    """Raises InputError where two manifests' rows must not be in one store; `where` names the one of `here`."""
    for name, what in (
        ("kind", "kind"),
        ("space_id", "embedding space"),
        ("dim", "width"),
        ("segments", "segment rule"),
        ("run", "run"),
    ):
        ours, theirs = getattr(here, name), getattr(wanted, name)
        if ours != theirs:
            raise InputError(f"{where} holds {what} {ours!r}, not {theirs!r}; two never mix: choose another store")


# These came later: shards without them are read as if all were null.
IDENTITY_COLUMNS = [
    ("source_bytes", pa.int64()),
    ("source_changed", pa.float64()),
    ("source_digest", pa.string()),
]


def identity_columns(identities: Iterable[FileIdentity]) -> dict[str, pa.Array]:
    """The identities of rows as columns."""
    values = [(one.bytes, one.changed, one.digest) for one in identities]
    return {name: pa.array([row[place] for row in values], kind) for place, (name, kind) in enumerate(IDENTITY_COLUMNS)}


def identity_in(row: Mapping[str, Any]) -> FileIdentity:
    """The identity that a row tells, of any age."""
    return FileIdentity(*(row.get(name) for name, _ in IDENTITY_COLUMNS))


def data_schema(manifest: Manifest) -> pa.Schema:
    columns = [
        ("id", pa.string()),
        ("source", pa.string()),
        ("duration", pa.float64()),
        ("starts", pa.list_(pa.float64())),
        ("ends", pa.list_(pa.float64())),
        ("embeddings", pa.list_(pa.list_(pa.float16(), manifest.dim))),
        *IDENTITY_COLUMNS,
    ]
    if manifest.kind == REPRESENTATIONS:
        columns += [("cls", pa.list_(pa.float32())), ("mean", pa.list_(pa.float32()))]
    return pa.schema(columns)


# `kept` came later: stores without it are read as if it were 0.
FAILURE_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("reason", pa.string()), ("kept", pa.float64()), *IDENTITY_COLUMNS]
)


_REQUESTS = 16  # at once, to an object store


class StoreFolder:
    """A folder on any file system fsspec knows.

    Local writes are synced and renamed. Remote ones are put whole, and refused where the name is taken: object stores have no
    locks, so two writers meet at a shard's number. The first one has it; the other stops, and has spoilt nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.url = os.fspath(path)
        self.fs, self.root = file_system(self.url)
        self.local = Path(self.root) if "file" in _protocols(self.fs) else None

    def _join(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        try:
            with self._reached():
                content: bytes = self.fs.cat_file(self._join(name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return content

    def write(self, name: str, content: bytes | memoryview) -> None:
        if self.local is None:
            self._put(name, bytes(content))
            return
        target = self.local / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as beside, beside.open("wb") as file:
                file.write(content)
        except OSError as error:
            raise WorkError(
                f"could not write {target}: {reason(error)}; what was committed is intact, and the same command continues"
            ) from None

    def _put(self, name: str, content: bytes) -> None:
        try:
            with self._reached():
                self.fs.pipe_file(self._join(name), content, mode="create")
        except FileExistsError:
            if self.read(name) != content:  # it is, if a put was done and its answer lost
                raise InputError(
                    f"another process is writing to {self.url}; wait for it to end, or choose another place"
                ) from None
        except FileNotFoundError:
            raise InputError(f"{self.url} cannot be written: its bucket does not exist; make it first") from None

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Whatever the client of an object store raises, in one sentence; that something is missing, or there, passes."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, LVMAEError):
            raise
        except Exception as error:
            if self.local is not None:
                raise
            said = f"{self.url} cannot be reached: {' '.join(str(error).split()) or type(error).__name__}".rstrip(".")
            if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
                raise InputError(f"{said}; check the credentials that this machine has for it") from None
            raise WorkError(f"{said}; nothing that is stored is lost, so try again when it can be reached") from None

    def shards(self, table: str) -> list[dict[str, Any]]:
        """Name, size and time of change of every committed shard of a table, in order."""
        self.fs.invalidate_cache()
        try:
            with self._reached():
                entries = self.fs.ls(self._join(table), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for entry in entries:
            name = entry["name"].rsplit("/", 1)[-1]
            if name.startswith("part-") and name.endswith(".parquet"):
                changed = entry.get("ETag") or entry.get("etag") or entry.get("mtime") or entry.get("LastModified")
                found.append({"name": name, "size": entry["size"], "changed": str(changed)})
        return sorted(found, key=lambda shard: str(shard["name"]))

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted."""
        return sorted(name for name, kind in self.entries().items() if kind == "directory")

    def entries(self) -> dict[str, str]:
        """Name -> "file" or "directory" of what lies directly in this folder."""
        self.fs.invalidate_cache()
        try:
            with self._reached():
                found = self.fs.ls(self.root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        names = ((entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"]) for entry in found)
        return {name: str(kind) for name, kind in names if name}

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        # From afar: one request for a whole shard, and for some columns no more than their bytes, without read-ahead.
        with self._damage(name), self._reached():
            if self.local is None and columns is None:
                return pq.read_table(pa.BufferReader(self.fs.cat_file(self._join(name))))
            with self.fs.open(self._join(name), "rb", **({} if self.local else {"cache_type": "none"})) as file:
                return pq.read_table(file, columns=columns)

    def row_groups(self, name: str) -> Iterator[pa.Table]:
        with self._damage(name), self._reached(), self.fs.open(self._join(name), "rb") as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group)

    @contextlib.contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        try:
            yield
        except pa.ArrowInvalid as error:
            raise WorkError(
                f"{self.url}/{name} is damaged ({error}); restore it, or delete it and embed again"
            ) from None

    def ids(self) -> set[str]:
        """Of the videos that are committed."""
        return set(self.rows())

    def rows(self) -> list[str]:
        """The id of every row, in order; of a video that was embedded again, the last row counts."""
        names = [f"data/{shard['name']}" for shard in self.shards("data")]
        with ThreadPoolExecutor(1 if self.local else _REQUESTS) as pool:
            tables = pool.map(lambda name: self.table(name, ["id"]), names)
            return [video for table in tables for video in table["id"].to_pylist()]

    def failures(self, done: Container[str]) -> dict[str, Failure]:
        """By id, the last thing that went wrong with each input that is not in the store, or only in part (`kept`)."""
        rows: dict[str, Failure] = {}
        for shard in self.shards("failures"):
            for row in self.table(f"failures/{shard['name']}").to_pylist():
                failure = Failure(row["id"], row["path"], row["reason"], row.get("kept") or 0.0, identity_in(row))
                if not failure.reason:  # a video that was stored in part, and is now whole
                    rows.pop(failure.id, None)
                elif (failure.kept > 0) == (failure.id in done):  # a commit may end between the two tables
                    rows[failure.id] = failure
        return rows

    def manifest(self) -> Manifest | None:
        content = self.read("manifest.json")
        if content is None:
            return None
        try:
            values = json.loads(content)
            version = values["schema_version"]
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{self.url}/manifest.json is not the manifest of a store") from None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{self.url} has store version {version} and this lvmae reads version "
                f"{SCHEMA_VERSION}; use the lvmae that wrote it"
            )
        known = {field.name for field in fields(Manifest)}
        try:
            return Manifest(**{key: value for key, value in values.items() if key in known})
        except TypeError:
            raise InputError(f"{self.url}/manifest.json lacks entries of a store's manifest") from None


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def as_float32(embeddings: np.ndarray) -> np.ndarray:
    """A copy in float32. numpy widens float16 in software, seven times slower than torch does."""
    if embeddings.dtype != np.float16:
        return np.array(embeddings, dtype=np.float32)
    import torch

    wide: np.ndarray = torch.from_numpy(embeddings.copy()).float().numpy()
    return wide


def l2_normalize(embeddings: np.ndarray) -> np.ndarray:
    """(…, D) of any float type -> float32 of unit length; a zero vector stays zero."""
    values = as_float32(np.asarray(embeddings))
    norm = np.sqrt(np.einsum("...d,...d->...", values, values))
    values *= np.reciprocal(np.maximum(norm, np.finfo(np.float32).tiny))[..., None]
    return values


def shard_number(name: str) -> int | None:
    digits = name.removeprefix("part-").removesuffix(".parquet")
    return int(digits) if digits.isdigit() else None
