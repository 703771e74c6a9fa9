"""Removes videos from a store permanently: their rows, the copies of them in the cache, and the way back in.

Enters: a store and ids. Leaves: a store without them, in which they stay out until they are admitted again. It is noted first
which videos are removed: from then on no reader shows them. Then the shards that hold them are exchanged. Interrupted in between,
the same call finishes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from lvmae.errors import InputError
from lvmae.files import cache
from lvmae.store.folder import StoreFolder
from lvmae.store.rewriting import DAMAGED, drop_rows, finish, locked

_DERIVED = ("search", "projections", "probes")  # kinds in the cache that are made of videos, and do not say of which


@dataclass(frozen=True)
class Removal:
    """The result of a removal: numbers of removed videos, rows taken from shards, and copies deleted from the cache."""

    videos: int
    rows: int
    copies: int
    note: str = ""


def remove_videos(store: str | os.PathLike[str], ids: Iterable[str]) -> Removal:
    """Removes videos and their failures from a store or from representations.

    Raises:
        InputError: there is no store, an id is not in it, or another process is writing to it.
        WorkError: a shard is damaged, or the disk refuses it.
    """
    folder = StoreFolder(store)
    manifest = folder.manifest()
    if manifest is None:
        raise InputError(f"{folder.said} is not a store (it has no manifest.json)")
    lock = locked(folder)
    try:
        already = folder.removed()
        wanted = set(ids)
        there = set(folder.rows())
        known = there | already | {video for shard in folder.shards("failures") for video in folder.ids_in(shard)}
        unknown = sorted(wanted - known)
        if unknown:
            further = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise InputError(f"{folder.said} holds no video {unknown[0]!r}{further}; `lvmae inspect` lists its ids")
        if wanted - already:
            folder.note_removal(removed=wanted - already)
        finish(folder)
        rows = drop_rows(folder, manifest, wanted | already)
        copies = cache.forget(folder.cached_as) + sum(cache.forget("", kind=kind) for kind in _DERIVED)
        note = ""
        if folder.local is not None and (folder.local / DAMAGED).is_dir():
            note = f"{folder.local / DAMAGED} holds shards that were put aside and may show them still; delete it"
        return Removal(len(wanted & there), rows, copies, note)
    finally:
        if lock is not None:
            lock.release()
