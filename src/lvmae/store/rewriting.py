"""Exchanging shards that are written: what removal, repair and migration share. Readers see the old rows or the new ones.

Price: the shards that are concerned are read and written once. Every step can be interrupted; the same call finishes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lvmae.errors import InputError
from lvmae.files.locks import Lock
from lvmae.files.writing import remove_leftovers
from lvmae.store.folder import Shard, StoreFolder, indexed_rows
from lvmae.store.format import FAILURE_SCHEMA, METADATA, TABLES, Manifest, data_schema
from lvmae.store.index import INDEX, shard_digest, tombstone

DAMAGED = "damaged"


def locked(folder: StoreFolder) -> Lock | None:
    """The writer's lock of a local store, taken; None on object storage, which has none."""
    if folder.local is None:
        return None
    if not folder.local.is_dir():
        raise InputError(f"there is no store at {folder.said}")
    lock = Lock(
        folder.local / ".lock",
        f"another process is writing to {folder.said}; wait for it to end, and run the command again",
    )
    lock.take()
    remove_leftovers(folder.local)
    return lock


def shard_bytes_of(rows: pa.Table, table: str, number: int, manifest: Manifest) -> memoryview:
    """A shard's bytes. Its own metadata tells which one it is, and carries the manifest, so that a lost one can be made again."""
    written = json.dumps({"table": table, "number": number, "manifest": asdict(manifest)}, sort_keys=True)
    sink = pa.BufferOutputStream()
    # Dictionaries cannot shrink embeddings and cost time; zstd takes about a tenth off.
    pq.write_table(
        rows.replace_schema_metadata({METADATA: written.encode()}),
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


def add_missing_entries(folder: StoreFolder, *, old: bool = False) -> int:
    """Adds what the index lacks: shards whose writer was killed before their entry, and with `old` those of older versions.

    Returns their number. Raises WorkError if one of them is damaged.
    """
    added = 0
    for table in TABLES:
        for shard in folder.listing(table)[0]:
            if shard.entries or shard.number is None or not (old or folder.names_itself(shard)):
                continue
            content = folder.content(shard)
            folder.add_to_index(shard, content, indexed_rows(table, folder.parsed(shard, content)))
            added += 1
    return added


def drop_rows(
    folder: StoreFolder,
    manifest: Manifest,
    ids: Collection[str],
    *,
    before: int | None = None,
    leaving: Collection[str] = (),
) -> int:
    """Takes the rows of these ids out of the shards, and returns their number.

    With `before`, only of the shards of `data` below that number; never of the shards `leaving`.
    """
    dropped = 0
    for table in TABLES if before is None else ("data",):
        for shard in folder.listing(table)[0]:
            known = folder.indexed(shard)
            if known is not None and not set(ids) & set(known.ids):
                continue
            if shard.path in leaving:
                continue
            if before is not None and (shard.number is None or shard.number >= before):
                continue
            content = folder.content(shard)
            rows = folder.parsed(shard, content)
            keep = np.array([video not in ids for video in rows["id"].to_pylist()], dtype=bool)
            if not keep.all():
                _exchange(folder, manifest, _with_entry(folder, shard, content, rows), rows, keep)
                dropped += int((~keep).sum())
    return dropped


def add_missing_columns(folder: StoreFolder, manifest: Manifest) -> int:
    """Gives shards of older versions the columns that came later, empty, so that other tools read all shards as one table.

    Returns the number of shards that were written again. Raises WorkError if one of them is damaged.
    """
    added = 0
    for table, schema in (("data", data_schema(manifest)), ("failures", FAILURE_SCHEMA)):
        for shard in folder.listing(table)[0]:
            content = folder.content(shard)
            rows = folder.parsed(shard, content)
            missing = [name for name in schema.names if name not in rows.schema.names]
            if shard.number is None or not missing:
                continue
            entered = _with_entry(folder, shard, content, rows)
            for name in missing:
                rows = rows.append_column(schema.field(name), pa.nulls(len(rows), schema.field(name).type))
            _exchange(folder, manifest, entered, rows, np.ones(len(rows), dtype=bool))
            added += 1
    return added


def _with_entry(folder: StoreFolder, shard: Shard, content: bytes, rows: pa.Table) -> Shard:
    """A shard that the index tells of: one of an older version gets its entry, so that one of two fits while it is exchanged."""
    if shard.entries or shard.number is None:
        return shard
    return replace(shard, entries=(folder.add_to_index(shard, content, indexed_rows(shard.table, rows)),))


def _exchange(folder: StoreFolder, manifest: Manifest, shard: Shard, rows: pa.Table, keep: np.ndarray) -> None:
    number = shard.number
    if number is None:
        raise InputError(f"{folder.said}/{shard.path} has no number, so lvmae did not write it; move it away first")
    kept = rows.filter(pa.array(keep)).combine_chunks()
    if kept.num_rows == 0:
        take_out(folder, shard)
        return
    new = shard_bytes_of(kept, shard.table, number, manifest)
    entry = folder.add_to_index(shard, new, indexed_rows(shard.table, kept))
    folder.write(shard.path, new, instead=True)
    for old in shard.entries:
        if old.name != entry.name:
            folder.delete(f"{INDEX}/{old.name}")


def take_out(folder: StoreFolder, shard: Shard, *, aside: bool = False) -> None:
    """Takes a shard out of the store for good, or puts it and what the index said of it aside, into `damaged/`."""
    assert shard.number is not None
    entry = tombstone(shard.table, shard.number)
    folder.write(f"{INDEX}/{entry.name}", json.dumps({"aside": aside}).encode())
    _clear_away(folder, shard, aside=aside)


def finish(folder: StoreFolder) -> None:
    """Finishes what an interrupted call began: of shards that are taken out nothing stays, and of entries those that fit."""
    index = folder.index()
    for entry in index:
        if entry.gone:
            try:
                said = json.loads(folder.read(f"{INDEX}/{entry.name}") or b"")
            except ValueError:
                said = None
            aside = not isinstance(said, dict) or bool(said.get("aside"))
            name = f"part-{entry.number:08d}.parquet"
            others = tuple(
                one for one in index if (one.table, one.number, one.gone) == (entry.table, entry.number, False)
            )
            size = 0 if folder.exists(f"{entry.table}/{name}") else -1
            _clear_away(folder, Shard(entry.table, name, size, "", others), aside=aside)
    for table in TABLES:
        for shard in folder.listing(table)[0]:
            if len(shard.entries) > 1:
                digest = shard_digest(folder.content(shard))
                for one in shard.entries:
                    if one.digest != digest:
                        folder.delete(f"{INDEX}/{one.name}")


def _clear_away(folder: StoreFolder, shard: Shard, *, aside: bool) -> None:
    there = [shard.path] if shard.size >= 0 else []
    for name in [*there, *(f"{INDEX}/{entry.name}" for entry in shard.entries)]:
        if aside:
            folder.move(name, f"{DAMAGED}/{name.replace('/', '-')}")
        else:
            folder.delete(name)


def lost_shard(folder: StoreFolder, table: str, number: int) -> Shard:
    """A shard that the index tells of, and that is not there."""
    entries = tuple(entry for entry in folder.index() if (entry.table, entry.number) == (table, number))
    return Shard(table, f"part-{number:08d}.parquet", -1, "", entries)
