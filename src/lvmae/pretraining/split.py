"""Which videos a run trains on, and which it holds out: decided by id, through all stores, and written down.

split.csv   id, split, store: a line a video. `split` is "train", "held_out", "too_short" (to mask) or "excluded" (by the caller)

A video that is in two stores is on one side in both: what is held out is never seen.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lvmae.errors import InputError
from lvmae.files.id_lists import read_ids
from lvmae.files.writing import write_text
from lvmae.recipes import Recipe
from lvmae.runs import EXCLUDED, HELD_OUT, SPLIT_FILE, TOO_SHORT, TRAIN
from lvmae.sequences import split_videos
from lvmae.store import EmbeddingStore

log = logging.getLogger(__name__)

Ids = str | os.PathLike[str] | Collection[str]


@dataclass(frozen=True)
class Split:
    """The part of every video of every store: an array (V,) of the words above, a store."""

    stores: Sequence[EmbeddingStore]
    parts: list[np.ndarray]

    def places(self, part: str) -> list[np.ndarray]:
        """For each store, the places of its videos of that part."""
        return [np.flatnonzero(parts == part) for parts in self.parts]

    def counts(self, store: int) -> dict[str, int]:
        """How many videos of a store are of each part but "train"."""
        return {part: int((self.parts[store] == part).sum()) for part in (HELD_OUT, TOO_SHORT, EXCLUDED)}

    def digest(self, store: int) -> str:
        """Of a store's ids and their parts: another one means that a run would train on other videos."""
        digest = hashlib.sha256()
        for identity, part in sorted(zip(self.stores[store].ids, self.parts[store].tolist(), strict=True)):
            digest.update(f"{identity}\0{part}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def write(self, run: Path) -> None:
        """Writes `split.csv`. Raises WorkError."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["id", "split", "store"])
        for store, parts in zip(self.stores, self.parts, strict=True):
            rows.writerows([identity, part, str(store.path)] for identity, part in zip(store.ids, parts, strict=True))
        write_text(run / SPLIT_FILE, text.getvalue())


def split_stores(
    stores: Sequence[EmbeddingStore],
    recipe: Recipe,
    shortest: int,
    *,
    only: Ids | None = None,
    exclude: Ids | None = None,
) -> Split:
    """Draws the videos that are held out, by `recipe.seed` and `recipe.val_fraction`.

    Args:
        stores: of one space.
        recipe: says the share that is held out.
        shortest: segments that a video needs.
        only, exclude: ids, or a file of them, that alone may be used, or that may not: neither trained on nor held out.

    Raises:
        InputError: a list that names no video of the stores, or no video is left to train on.
    """
    allowed, refused = _listed(only, stores, "only"), _listed(exclude, stores, "exclude")
    decided: dict[str, str] = {}
    parts = []
    for store in stores:
        ids = np.array(store.ids, dtype=object)
        part = np.full(len(ids), TRAIN, dtype=object)
        part[store.lengths < shortest] = TOO_SHORT
        for place, identity in enumerate(store.ids):
            if (allowed is not None and identity not in allowed) or (refused is not None and identity in refused):
                part[place] = EXCLUDED
            elif part[place] == TRAIN and identity in decided:
                part[place] = decided[identity]
        free = [place for place in np.flatnonzero(part == TRAIN).tolist() if ids[place] not in decided]
        part[np.array(free, dtype=int)[_held_out(len(free), recipe)]] = HELD_OUT
        decided |= {ids[place]: part[place] for place in free}
        parts.append(part)
    if not any((part == TRAIN).any() for part in parts):
        whole = sum(map(len, parts))
        excluded = sum(int((part == EXCLUDED).sum()) for part in parts)
        raise InputError(
            f"no video is left to train on: of {whole}, {excluded} were excluded, and one needs the {shortest} segments that "
            f"mask_ratio={recipe.mask_ratio:g} takes to leave one visible and one masked; use longer videos or shorter segments"
        )
    return Split(stores, parts)


def _listed(ids: Ids | None, stores: Sequence[EmbeddingStore], what: str) -> set[str] | None:
    if ids is None:
        return None
    where = os.fspath(ids) if isinstance(ids, str | os.PathLike) else f"the list `{what}`"
    wanted = set(read_ids(ids) if isinstance(ids, str | os.PathLike) else ids)
    absent = sorted(wanted - {identity for store in stores for identity in store.ids})
    if absent and len(absent) == len(wanted):
        some = next((store.ids[0] for store in stores if len(store)), "")
        raise InputError(
            f"{where} names no video of the stores: it has ids such as {absent[0]!r}, and the stores such as {some!r}"
        )
    if absent:
        log.warning("%d of %d ids of %s are in no store; the first is %r.", len(absent), len(wanted), where, absent[0])
    return wanted


def _held_out(count: int, recipe: Recipe) -> np.ndarray:
    """Places to hold out of `count`: at least one to hold out and one to train on, where there are two."""
    fraction = min(max(recipe.val_fraction, 1 / count), 1 - 1 / count) if recipe.val_fraction and count > 1 else 0.0
    return split_videos(count, fraction, recipe.seed)[1]
