"""Reading every byte of a store, and putting aside what is damaged.

Enters: a store, in whatever state. Leaves: what is wrong with it, by file, with the videos concerned; after a repair, a store that
every command opens, without these videos: embedding the same films again makes just them. Price: one read of all shards.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from lvmae.errors import InputError, LVMAEError, WorkError
from lvmae.store.folder import Shard, StoreFolder, indexed_rows, metadata_of
from lvmae.store.format import REPRESENTATIONS, TABLES, Manifest
from lvmae.store.index import INDEX, IndexedRows, describe, read_rows
from lvmae.store.reader import EmbeddingStore
from lvmae.store.rewriting import (
    DAMAGED,
    add_missing_columns,
    add_missing_entries,
    drop_rows,
    finish,
    locked,
    lost_shard,
    take_out,
)

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Problem:
    """One problem: the file, what is wrong, and the affected videos as far as they are known."""

    file: str
    what: str
    ids: tuple[str, ...] = ()


@dataclass
class Verification:
    """The result of a verification: what was read, and the problems. The store is intact if `problems` is empty."""

    path: str
    kind: str
    files: int = 0
    bytes: int = 0
    videos: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no damage, and worth knowing."""
    repaired: list[str] = field(default_factory=list)


Progress = Callable[[int, int], None]
"""Is told the bytes read, and those to read in all."""


def verify_store(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Verification:
    """Reads every byte of a store or of representations.

    Raises:
        InputError: there is no store, nor what is left of one.
    """
    folder = _there(path)
    found = Verification(folder.said, "store")
    manifest = _manifest(folder, found)
    found.kind = manifest.kind if manifest else "store"
    ids: set[str] = set()
    todo = [shard for table in TABLES for shard in folder.listing(table)[0]]
    total = sum(shard.size for shard in todo)
    for shard in todo:
        _check_shard(folder, manifest, shard, found, ids)
        found.files, found.bytes = found.files + 1, found.bytes + max(shard.size, 0)
        if progress:
            progress(found.bytes, total)
    for table, number in _lost(folder):
        known = _ids_of(folder, lost_shard(folder, table, number))
        found.problems.append(Problem(f"{table}/part-{number:08d}.parquet", "it is lost", known))
    _check_index(folder, found)
    try:
        removed = folder.removed()
        left = sorted(ids & removed)
        if left:
            found.problems.append(
                Problem("data", "the removal of videos was interrupted; remove them again", tuple(left))
            )
        found.videos = len(ids - removed)
    except WorkError as error:
        found.problems.append(Problem("removed", str(error)))
    if found.kind == REPRESENTATIONS and not found.problems:
        stale = EmbeddingStore(path).stale()
        if stale:
            found.problems.append(
                Problem("data", "their embeddings have changed or gone since; make them again", tuple(stale))
            )
    if folder.local is not None and (folder.local / DAMAGED).is_dir():
        found.notes.append(f"what was damaged lies in {folder.local / DAMAGED}; delete it when you do not need it")
    return found


def repair_store(path: str | os.PathLike[str], found: Verification) -> None:
    """Repairs a store: moves damaged files aside, and writes a lost manifest and lost index entries again.

    What was done is added to `found.repaired`. Interrupted, verifying and repairing again finishes it.

    Raises:
        InputError: another process is writing to the store.
        WorkError: nothing is left that tells what the rows mean.
    """
    folder = _there(path)
    lock = locked(folder)
    try:
        manifest = _repair_manifest(folder, found)
        finish(folder)
        harmed = {problem.file for problem in found.problems}
        for table in TABLES:
            shards, lost = folder.listing(table)
            bad = [shard for shard in shards if shard.path in harmed]
            if table == "data" or any(entry.table == table for entry in folder.index()):
                bad += [lost_shard(folder, table, number) for number in lost]
            for shard in sorted(bad, key=lambda one: -(one.number or 0)):
                ids = _ids_of(folder, shard)
                if table == "data" and ids and shard.number is not None:
                    # An earlier row of a video that was embedded again must not count once more.
                    drop_rows(folder, manifest, ids, before=shard.number, leaving=harmed)
                take_out(folder, shard, aside=True)
                what = (
                    "was lost; the store no longer expects it" if shard.size < 0 else f"was put aside, into {DAMAGED}/"
                )
                found.repaired.append(f"{shard.path} {what}")
        _repair_index(folder, found)
    finally:
        if lock is not None:
            lock.release()


def migrate_store(path: str | os.PathLike[str]) -> int:
    """Adds what older versions did not write: the index of all shards, and columns. Returns how many entries were added.

    Rows keep their values, and the fingerprint stays. Raises WorkError if a shard is damaged already.
    """
    folder = _there(path)
    manifest = folder.manifest()
    if manifest is None:
        raise InputError(f"{folder.said} has no manifest.json; repair the store with `lvmae verify`")
    lock = locked(folder)
    try:
        folder.shards("data")  # a lost one is reported before anything is written
        added = add_missing_entries(folder, old=True)
        add_missing_columns(folder, manifest)
        return added
    finally:
        if lock is not None:
            lock.release()


def _there(path: str | os.PathLike[str]) -> StoreFolder:
    folder = StoreFolder(path)
    if not {MANIFEST_FILE, INDEX, *TABLES} & set(folder.entries()):
        raise InputError(f"{folder.said} is no store; `lvmae embed` and `lvmae import` make one")
    return folder


def _manifest(folder: StoreFolder, found: Verification) -> Manifest | None:
    try:
        manifest = folder.manifest()
    except LVMAEError as error:
        found.problems.append(Problem(MANIFEST_FILE, str(error)))
        return None
    if manifest is None:
        found.problems.append(Problem(MANIFEST_FILE, "it is lost"))
    return manifest


def _check_shard(
    folder: StoreFolder, manifest: Manifest | None, shard: Shard, found: Verification, ids: set[str]
) -> None:
    try:
        rows = folder.table(shard)
        wrong = _wrong_values(rows, manifest) if shard.table == "data" else ""
    except LVMAEError as error:
        found.problems.append(Problem(shard.path, _why(str(error), shard), _ids_of(folder, shard)))
        return
    written = (metadata_of(rows.schema) or {}).get("manifest")
    if isinstance(written, dict) and manifest is not None and written != json.loads(json.dumps(asdict(manifest))):
        differing = sorted(key for key in written if written[key] != asdict(manifest).get(key))
        if not any(problem.file == MANIFEST_FILE for problem in found.problems):
            found.problems.append(
                Problem(MANIFEST_FILE, f"it differs from what the shards say: {', '.join(differing)}")
            )
    if wrong:
        found.problems.append(Problem(shard.path, wrong, tuple(rows["id"].to_pylist())))
        return
    known = folder.indexed(shard)
    if known is not None and known != indexed_rows(shard.table, rows):
        found.problems.append(Problem(shard.path, "the index tells other rows of it", tuple(known.ids)))
    if shard.table == "data":
        ids |= set(rows["id"].to_pylist())
    if not shard.entries and not any("older version" in note for note in found.notes):
        found.notes.append("shards of an older version have no hashes yet: `lvmae migrate` adds them")


def _wrong_values(rows: pa.Table, manifest: Manifest | None) -> str:
    column = rows["embeddings"].combine_chunks()
    if manifest is not None and column.type.value_type.list_size != manifest.dim:
        return f"its embeddings are {column.type.value_type.list_size} wide, not {manifest.dim}"
    if any(rows[name].null_count for name in ("id", "source", "duration", "starts", "ends", "embeddings")):
        return "it has rows without a value"
    for batch in rows.combine_chunks().to_batches():
        embeddings = batch.column("embeddings")
        lengths = np.diff(np.from_dlpack(embeddings.offsets))
        for name in ("starts", "ends"):
            if not np.array_equal(np.diff(np.from_dlpack(batch.column(name).offsets)), lengths):
                return f"its {name} are not as many as its embeddings"
        if not np.isfinite(np.from_dlpack(embeddings.values.values)).all():
            return "it has values that are not finite"
    return ""


def _check_index(folder: StoreFolder, found: Verification) -> None:
    for entry in folder.index():
        if not entry.gone:
            content = folder.read(f"{INDEX}/{entry.name}")
            found.files, found.bytes = found.files + 1, found.bytes + len(content or b"")
            if content is None or read_rows(entry, content) is None:
                found.problems.append(Problem(f"{INDEX}/{entry.name}", "it is damaged; the shard itself is not"))


def _lost(folder: StoreFolder) -> Iterator[tuple[str, int]]:
    for table in TABLES:
        yield from ((table, number) for number in folder.listing(table)[1])


def _ids_of(folder: StoreFolder, shard: Shard) -> tuple[str, ...]:
    known: list[IndexedRows] = [rows for entry in shard.entries if (rows := folder.entry_rows(entry)) is not None]
    return tuple(dict.fromkeys(video for rows in known for video in rows.ids))


def _why(said: str, shard: Shard) -> str:
    _, _, reason = said.partition(f"{shard.path} is damaged (")
    return f"it is damaged ({reason.partition(')')[0]})" if reason else said


def _repair_manifest(folder: StoreFolder, found: Verification) -> Manifest:
    wrong = [problem for problem in found.problems if problem.file == MANIFEST_FILE]
    manifest = None
    with contextlib.suppress(LVMAEError):
        manifest = folder.manifest()
    if manifest is not None and not wrong:
        return manifest
    for table in TABLES:
        for shard in folder.listing(table)[0]:
            try:
                written = (metadata_of(folder.table(shard).schema) or {}).get("manifest")
                rebuilt = Manifest(**written) if isinstance(written, dict) else None
            except (LVMAEError, TypeError):
                continue
            if rebuilt is not None and not rebuilt.wrong():
                if folder.read(MANIFEST_FILE) is not None:
                    folder.move(MANIFEST_FILE, f"{DAMAGED}/{MANIFEST_FILE}")
                folder.write(MANIFEST_FILE, json.dumps(asdict(rebuilt), indent=2).encode())
                found.repaired.append(f"{MANIFEST_FILE} was written again, from {shard.path}")
                return rebuilt
    if manifest is not None:
        return manifest
    raise WorkError(
        f"{folder.said} has no manifest, and no shard that tells what its rows mean (those of older versions do not); restore "
        f"{MANIFEST_FILE} from a copy, or embed into a new store"
    )


def _repair_index(folder: StoreFolder, found: Verification) -> None:
    for table in TABLES:
        for shard in folder.listing(table)[0]:
            for entry in shard.entries:
                text = folder.read(f"{INDEX}/{entry.name}")
                if text is not None and read_rows(entry, text) is None:
                    content = folder.content(shard)
                    rows = indexed_rows(table, folder.parsed(shard, content))
                    folder.delete(f"{INDEX}/{entry.name}")
                    fresh, again = describe(table, entry.number, content, rows)
                    folder.write(f"{INDEX}/{fresh.name}", again, instead=True)
                    found.repaired.append(f"{INDEX}/{fresh.name} was written again")
    if added := add_missing_entries(folder):
        found.repaired.append(f"{added} entries were added to the index")
