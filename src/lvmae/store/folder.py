"""The folder of a store, on any file system: what lies where, read with every byte checked, and written whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lvmae.errors import InputError, LVMAEError, OutageError, WorkError
from lvmae.files.outages import is_refusal, passes_with_time
from lvmae.files.urls import file_system, without_secrets
from lvmae.files.writing import reason, replacing
from lvmae.store.format import (
    METADATA,
    SCHEMA_VERSION,
    Failure,
    Manifest,
    identity_in,
    row_digests,
    shard_number,
    wrong_with,
)
from lvmae.store.index import INDEX, IndexedRows, IndexEntry, describe, parse_name, read_rows, shard_digest, some

REMOVED = "removed"
TAGS_FILE = "tags.csv"  # tags that visitors of the search page give; no part of the store
_REQUESTS = 16  # at once, to an object store


@dataclass(frozen=True)
class Shard:
    """One shard, as listings tell of it."""

    table: str
    name: str
    size: int
    changed: str
    """Time of its last change, or its ETag."""
    entries: tuple[IndexEntry, ...] = ()
    """What the index says of its number: nothing, or two things while it is being exchanged."""

    @property
    def path(self) -> str:
        return f"{self.table}/{self.name}"

    @property
    def number(self) -> int | None:
        return shard_number(self.name)


class StoreFolder:
    """A folder on any file system fsspec knows.

    Local writes are synced and renamed. Remote ones are put whole, and refused where the name is taken: object stores have no
    locks, so two writers meet at a shard's number. The first one has it; the other stops, and has spoilt nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.url = os.fspath(path)
        self.said = without_secrets(self.url)
        """What messages call it."""
        self.fs, self.root = file_system(self.url)
        self._known: dict[str, IndexedRows] = {}
        self.local = Path(self.root) if "file" in _protocols(self.fs) else None

    @property
    def cached_as(self) -> str:
        """What the cache notes that copies of this store are of."""
        return str(self.local.resolve()) if self.local else self.said

    def _join(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if there is none."""
        try:
            with self._reached(name):
                content: bytes = self.fs.cat_file(self._join(name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return content

    def write(self, name: str, content: bytes | memoryview, *, instead: bool = False) -> None:
        """Writes a file whole. On object storage a name that is taken is refused, unless what is there is to be replaced."""
        if self.local is None:
            self._put(name, bytes(content), instead=instead)
            return
        target = self.local / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as beside, beside.open("wb") as file:
                file.write(content)
        except OSError as error:
            raise WorkError(
                f"could not write {target}: {reason(error)}; what was committed is intact: rerun the same command to resume"
            ) from None

    def _put(self, name: str, content: bytes, *, instead: bool) -> None:
        try:
            with self._reached(name):
                self.fs.pipe_file(self._join(name), content, **({} if instead else {"mode": "create"}))
        except FileExistsError:
            if self.read(name) != content:  # it is, if a put was done and its answer lost
                raise InputError(
                    f"another process is writing to {self.said}; wait for it to end, or choose another place"
                ) from None
        except FileNotFoundError:
            raise InputError(f"{self.said} cannot be written: its bucket does not exist; make it first") from None

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._reached(name):
            return bool(self.fs.exists(self._join(name)))

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError), self._reached(name):
            self.fs.rm_file(self._join(name))

    def move(self, name: str, to: str) -> None:
        """Moves a file within the store."""
        with self._reached(name):
            self.fs.makedirs(self._join(to).rpartition("/")[0], exist_ok=True)
            self.fs.mv(self._join(name), self._join(to))

    @contextlib.contextmanager
    def _reached(self, name: str = "") -> Iterator[None]:
        """What a disk or the client of an object store raises, in one sentence; that something is missing, or there, passes."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, LVMAEError):
            raise
        except Exception as error:
            if self.local is not None:
                if not isinstance(error, OSError) or isinstance(error, pa.ArrowException):
                    raise
                where = self.local / name
                if isinstance(error, PermissionError):
                    raise InputError(f"no permission to read {where}; ask for it, or choose another store") from None
                raise WorkError(
                    f"{where} cannot be read: {reason(error)}; restore it, or choose another store"
                ) from None
            what = without_secrets(" ".join(str(error).split())) or type(error).__name__
            said = f"{self.said} cannot be reached: {what}".rstrip(".")
            if passes_with_time(error):
                raise OutageError(f"{said}; nothing that is stored is lost, so rerun when it can be reached") from None
            if is_refusal(error) or "Credential" in type(error).__name__:
                raise InputError(f"{said}; check the credentials that this machine has for it") from None
            raise WorkError(f"{said}; nothing that is stored is lost, so try again when it can be reached") from None

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        self.fs.invalidate_cache()
        try:
            with self._reached(folder):
                found: list[dict[str, Any]] = self.fs.ls(self._join(folder) if folder else self.root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return found

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted."""
        return sorted(name for name, kind in self.entries().items() if kind == "directory")

    def entries(self) -> dict[str, str]:
        """Name -> "file" or "directory" of what lies directly in this folder."""
        names = ((entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"]) for entry in self._listed(""))
        return {name: str(kind) for name, kind in names if name}

    def index(self) -> list[IndexEntry]:
        """What the index says, in order."""
        names = sorted(entry["name"].rsplit("/", 1)[-1] for entry in self._listed(INDEX))
        return [entry for entry in map(parse_name, names) if entry is not None]

    def listing(self, table: str) -> tuple[list[Shard], list[int]]:
        """The shards of a table, in order, and the numbers of those that are lost."""
        index = [
            entry for entry in self.index() if entry.table == table
        ]  # first: what it says of has been written by now
        gone = {entry.number for entry in index if entry.gone}
        shards = []
        for entry in self._listed(table):
            name = entry["name"].rsplit("/", 1)[-1]
            if name.startswith("part-") and name.endswith(".parquet") and shard_number(name) not in gone:
                changed = entry.get("ETag") or entry.get("etag") or entry.get("mtime") or entry.get("LastModified")
                mine = tuple(one for one in index if one.number == shard_number(name))
                shards.append(Shard(table, name, entry["size"], str(changed), mine))
        there = {shard.number for shard in shards if shard.number is not None}
        expected = {entry.number for entry in index}
        if table == "data":
            expected |= set(range(max(there, default=0)))
        return sorted(shards, key=lambda shard: shard.name), sorted(expected - there - gone)

    def shards(self, table: str) -> list[Shard]:
        """The shards of a table, in order. Raises WorkError if one is lost."""
        shards, lost = self.listing(table)
        if lost:
            name = f"{table}/part-{lost[0]:08d}.parquet"
            of = [entry for entry in self.index() if (entry.table, entry.number) == (table, lost[0])]
            further = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise WorkError(
                f"{self.said} has lost {name}{further}{self._concerns(of)}; restore it, or repair the store with `lvmae verify`"
            )
        return shards

    def next_number(self, table: str) -> int:
        """The number of the next shard of a table."""
        taken = [entry.number for entry in self.index() if entry.table == table]
        taken += [number for shard in self.listing(table)[0] if (number := shard.number) is not None]
        return max(taken, default=-1) + 1

    def _concerns(self, entries: list[IndexEntry] | tuple[IndexEntry, ...]) -> str:
        for entry in entries:
            rows = self.entry_rows(entry)
            if rows is not None and rows.ids:
                return f", with {some(rows.ids)}"
        return ""

    def entry_rows(self, entry: IndexEntry) -> IndexedRows | None:
        """The ids and digests that an entry of the index tells; None if it is damaged or gone."""
        if entry.name not in self._known:  # of one name the content is always the same
            content = self.read(f"{INDEX}/{entry.name}")
            rows = None if content is None else read_rows(entry, content)
            if rows is None:
                return None
            self._known[entry.name] = rows
        return self._known[entry.name]

    def indexed(self, shard: Shard) -> IndexedRows | None:
        """The ids and digests of a shard without reading it; None if only the shard itself can tell."""
        fitting = [entry for entry in shard.entries if entry.size == shard.size]
        return self.entry_rows(fitting[0]) if len(fitting) == 1 else None

    def add_to_index(self, shard: Shard | str, content: bytes | memoryview, rows: IndexedRows) -> IndexEntry:
        """Writes the entry of a shard."""
        table, _, name = (shard.path if isinstance(shard, Shard) else shard).partition("/")
        number = shard_number(name)
        assert number is not None
        entry, text = describe(table, number, content, rows)
        self.write(f"{INDEX}/{entry.name}", text)
        return entry

    def content(self, shard: Shard) -> bytes:
        """The bytes of a shard. Raises WorkError if they are not those that were written."""
        try:
            with self._reached(shard.path):
                content: bytes = self.fs.cat_file(self._join(shard.path))
        except OSError as error:
            raise self._damaged(shard, reason(error)) from None
        if shard.entries:
            digest = shard_digest(content)
            if not any((entry.size, entry.digest) == (len(content), digest) for entry in shard.entries):
                raise self._damaged(shard, "its bytes are not those that were written")
        return content

    def names_itself(self, shard: Shard) -> bool:
        """Whether a shard's metadata say which one it is: those of older versions do not. Reads no more than its end."""
        try:
            options = {} if self.local else {"cache_type": "none"}
            with self._reached(shard.path), self.fs.open(self._join(shard.path), "rb", **options) as file:
                return METADATA in (pq.read_schema(file).metadata or {})
        except (pa.ArrowException, OSError):
            return False  # damaged: whoever reads it says so

    def table(self, shard: Shard) -> pa.Table:
        """The rows of a shard. Raises WorkError if it is damaged, or a copy of another one."""
        return self.parsed(shard, self.content(shard))

    def parsed(self, shard: Shard, content: bytes) -> pa.Table:
        """The rows of a shard of these bytes. Raises WorkError if it is damaged, or a copy of another one."""
        try:
            # Without threads: one of Arrow's that outlives Python aborts the process.
            with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
                table = file.read(use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(shard, reason(error)) from None
        odd = wrong_with(table.schema, shard.table)
        if odd:
            raise self._damaged(shard, odd)
        written = metadata_of(table.schema)
        if written is not None and (written.get("table"), written.get("number")) != (shard.table, shard.number):
            raise self._damaged(shard, f"it is a copy of {written.get('table')} {written.get('number')}")
        return table

    def _damaged(self, shard: Shard, why: str) -> WorkError:
        concerned = self._concerns(shard.entries)
        return WorkError(
            f"{self.said}/{shard.path} is damaged ({why}){concerned}; restore it, or repair the store with `lvmae verify`"
        )

    def ids_in(self, shard: Shard) -> list[str]:
        """The ids of a shard's rows, in order; from the index where it tells them."""
        rows = self.indexed(shard)
        if rows is not None:
            return rows.ids
        # Of a shard that the index does not tell of, no more than this column is read.
        ids: list[str] = (self.table(shard) if shard.entries else self._id_column(shard))["id"].to_pylist()
        return ids

    def _id_column(self, shard: Shard) -> pa.Table:
        options = {} if self.local else {"cache_type": "none"}
        try:
            with self._reached(shard.path), self.fs.open(self._join(shard.path), "rb", **options) as file:
                return pq.ParquetFile(file, page_checksum_verification=True).read(columns=["id"], use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(shard, reason(error)) from None

    def ids(self) -> set[str]:
        """Of the videos that are committed."""
        return set(self.rows()) - self.removed()

    def rows(self) -> list[str]:
        """The id of every row, in order; of a video that was embedded again, the last row counts."""
        with ThreadPoolExecutor(1 if self.local else _REQUESTS) as pool:
            return [video for ids in pool.map(self.ids_in, self.shards("data")) for video in ids]

    def columns(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of every shard of videos, as far as it has them; nothing else of it is read, and a damaged one left out."""
        with ThreadPoolExecutor(1 if self.local else _REQUESTS) as pool:
            tables = pool.map(lambda shard: self._columns(shard, names), self.listing("data")[0])
            yield from (table for table in tables if table is not None)

    def _columns(self, shard: Shard, names: Sequence[str]) -> pa.Table | None:
        options = {} if self.local else {"cache_type": "none"}
        try:
            with self._reached(shard.path), self.fs.open(self._join(shard.path), "rb", **options) as file:
                parquet = pq.ParquetFile(file)
                there = [name for name in names if name in parquet.schema_arrow.names]
                return parquet.read(columns=there, use_threads=False)
        except (pa.ArrowException, OSError, ValueError):
            return None  # whoever needs its videos says what is wrong with it

    def removed(self) -> set[str]:
        """Ids of the videos that were removed, and not admitted again since."""
        removed: set[str] = set()
        for name in self._removals():
            content = self.read(f"{REMOVED}/{name}")
            try:
                record = json.loads(content or b"")
                removed = (removed | set(map(str, record["removed"]))) - set(map(str, record["admitted"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise WorkError(
                    f"{self.said}/{REMOVED}/{name} is damaged, so nobody knows which videos were removed; restore it, or delete it "
                    "and remove them again"
                ) from None
        return removed

    def note_removal(self, *, removed: Iterable[str] = (), admitted: Iterable[str] = ()) -> None:
        """Notes which videos are removed, or admitted again, from now on."""
        number = len(self._removals())
        record = {"removed": sorted(removed), "admitted": sorted(admitted)}
        self.write(f"{REMOVED}/part-{number:08d}.json", json.dumps(record, ensure_ascii=False).encode())

    def _removals(self) -> list[str]:
        names = (entry["name"].rsplit("/", 1)[-1] for entry in self._listed(REMOVED))
        return sorted(name for name in names if name.startswith("part-") and name.endswith(".json"))

    def failures(self, done: Container[str]) -> dict[str, Failure]:
        """By id, the last thing that went wrong with each input that is not in the store, or only in part (`kept`)."""
        rows: dict[str, Failure] = {}
        for shard in self.shards("failures"):
            for row in self.table(shard).to_pylist():
                failure = Failure(row["id"], row["path"], row["reason"], row.get("kept") or 0.0, identity_in(row))
                if not failure.reason:  # a video that was stored in part, and is now whole
                    rows.pop(failure.id, None)
                elif (failure.kept > 0) == (failure.id in done):  # a commit may end between the two tables
                    rows[failure.id] = failure
        return rows

    def manifest(self) -> Manifest | None:
        """What the store's rows mean; None if there is no manifest. Raises InputError if it is none of ours."""
        content = self.read("manifest.json")
        return None if content is None else parse_manifest(content, self.said)


def parse_manifest(content: bytes, where: str) -> Manifest:
    """A manifest from the bytes of its file. Raises InputError if it is none, or of another version."""
    try:
        values = json.loads(content)
        version = values["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(
            f"{where}/manifest.json is not the manifest of a store; repair the store with `lvmae verify`"
        ) from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{where} has store version {version} and this lvmae reads version {SCHEMA_VERSION}; use the lvmae that wrote it"
        )
    known = {field.name for field in fields(Manifest)}
    try:
        manifest = Manifest(**{key: value for key, value in values.items() if key in known})
    except TypeError:
        raise InputError(f"{where}/manifest.json lacks entries of a store's manifest") from None
    wrong = manifest.wrong()
    if wrong:
        raise InputError(f"{where}/manifest.json is damaged: {wrong}; repair the store with `lvmae verify`")
    return manifest


def metadata_of(schema: pa.Schema) -> dict[str, Any] | None:
    """What a shard says of itself: its table, its number and the store's manifest; None for one of an older version."""
    try:
        written = json.loads((schema.metadata or {})[METADATA])
    except (KeyError, ValueError, RecursionError):
        return None
    return written if isinstance(written, dict) else None


def indexed_rows(name: str, table: pa.Table) -> IndexedRows:
    """What the index says of a table's rows."""
    return IndexedRows(table["id"].to_pylist(), row_digests(table) if name == "data" else [])


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
