"""Many stores -> one: what the ranks of a job wrote, or stores made apart.

Enters: stores of one space and segment rule. Leaves: a store equal to what one process would have written. Price: every row is read
once and written once, a row group in memory at a time; videos that are in several stores are compared by a digest.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvmae.errors import InputError
from lvmae.store.folder import StoreFolder
from lvmae.store.format import Manifest, VideoRecord, check_alike
from lvmae.store.reader import EmbeddingStore
from lvmae.store.writer import StoreWriter


@dataclass(frozen=True)
class MergeSummary:
    """The result of a merge, in videos. `failed` counts inputs that failed in a store and are in no other."""

    stores: int
    added: int
    skipped: int  # were in `out` before, or in two stores with the same content
    failed: int
    partial: int  # of those in `out`, the ones that break off


def rank_store(out: str | os.PathLike[str], rank: int, world_size: int) -> str:
    """Returns the path of a rank's store below the folder of a job."""
    return f"{os.fspath(out).rstrip('/')}/rank-{rank:05d}-of-{world_size:05d}"


def in_share(video: str, rank: int, world_size: int) -> bool:
    """Returns whether the video of this id belongs to process `rank` of `world_size`; other videos do not matter.

    Raises InputError for a rank that is not one of 0 to world_size - 1.
    """
    if not 0 <= rank < world_size:
        raise InputError(f"The rank must lie between 0 and world size - 1, not be {rank} of {world_size}.")
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:8]) % world_size == rank


def ids_of_other_ranks(out: str | os.PathLike[str], own: str, manifest: Manifest) -> set[str]:
    """Returns the ids in the rank stores below `out`, except `own`, of any world size.

    Raises InputError if one of them has another space or segment rule, or if `out` itself is a store.
    """
    if StoreFolder(out).manifest() is not None:
        raise InputError(
            f"{os.fspath(out)} is a store, but ranks write their stores into a plain folder: choose another folder."
        )
    found: set[str] = set()
    for path in rank_stores(out):
        if path != own:
            folder = StoreFolder(path)
            existing = folder.manifest()
            if existing is not None:
                check_alike(existing, manifest, path)
                found |= folder.ids() | folder.removed()
    return found


def merge_stores(
    stores: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> MergeSummary:
    """Adds every video of the stores to the new or existing store `out`; a folder of rank stores means all of them.

    A video in several stores must be the same in all of them, except for its path. What failed in one store and is in another is no
    failure. After a crash the same call resumes.

    Raises:
        InputError: a path holds no store, stores differ in space, width, kind or segment rule, or a video differs between two.
        WorkError: a shard is damaged, or cannot be written.
    """
    given = [stores] if isinstance(stores, (str, os.PathLike)) else list(stores)
    sources = [EmbeddingStore(path) for one in given for path in _stores_at(one)]
    if not sources:
        raise InputError("No store was given.")
    manifest = sources[0].manifest
    for source in sources:
        check_alike(source.manifest, manifest, source.path)
    folders = [source.folder for source in sources]
    target = StoreFolder(out)
    if any((folder.fs, folder.root) == (target.fs, target.root) for folder in folders):
        raise InputError(f"{os.fspath(out)} is one of the stores to merge; choose another output.")
    added = skipped = 0
    with StoreWriter(out, manifest) as writer:
        counts = Counter(writer.done)
        for folder in folders:
            counts.update(folder.ids())
        digests: dict[str, tuple[bytes, str]] = {}  # of the videos that come twice, with where they came from first
        if any(counts[video] > 1 for video in writer.done):
            digests = {r.id: (_digest(r), os.fspath(out)) for r in EmbeddingStore(out).stream() if counts[r.id] > 1}
        for source in sources:
            for record in source.stream():
                if record.id in writer.removed:
                    continue
                if record.id in writer.done:
                    digest, first = digests[record.id]
                    if digest != _digest(record):
                        raise InputError(
                            f"The video {record.id!r} in {source.path} differs from that in {first}; merge stores of the "
                            "same videos, or give different videos different ids."
                        )
                    skipped += 1
                    continue
                if counts[record.id] > 1:
                    digests[record.id] = _digest(record), source.path
                writer.add(record)
                added += 1
        for source in sources:
            for failure in source.failures:
                if failure.id not in writer.done and failure.id not in writer.failed:
                    writer.fail(failure.id, failure.path, failure.reason, failure.identity)
        removed = {video for source in sources for video in source.removed} - writer.done - writer.removed
        if removed:  # what was taken out of one of them stays out of what comes of them
            target.note_removal(removed=removed)
        partial = sum(failure.kept > 0 for failure in writer.failed.values())
        return MergeSummary(len(sources), added, skipped, len(writer.failed) - partial, partial)


def _stores_at(path: str | os.PathLike[str]) -> list[str]:
    if StoreFolder(path).manifest() is not None:
        return [os.fspath(path)]
    ranks = [one for one in rank_stores(path) if StoreFolder(one).manifest() is not None]
    if not ranks:
        raise InputError(f"{os.fspath(path)} is not a store, and there are no stores of ranks in it.")
    return ranks


def rank_stores(out: str | os.PathLike[str]) -> list[str]:
    """Returns the rank stores below the folder of a job, of any number of ranks."""
    return [f"{os.fspath(out).rstrip('/')}/{name}" for name in StoreFolder(out).folders() if name.startswith("rank-")]


def _digest(record: VideoRecord) -> bytes:
    """Of everything but the path, which depends on the machine."""
    digest = hashlib.blake2b(f"{record.duration!r}\0{record.shortened}\0".encode(), digest_size=16)
    for values in (record.starts, record.ends, record.embeddings, record.cls, record.mean):
        digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
    return digest.digest()
