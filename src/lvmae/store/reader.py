"""Reading a store: any window of any video, as a view on a memory map."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from lvmae.errors import InputError, LVMAEError, WorkError
from lvmae.files.cache import cached
from lvmae.files.urls import is_url
from lvmae.files.writing import reason
from lvmae.store.folder import Shard, StoreFolder, metadata_of
from lvmae.store.format import (
    IDENTITY_COLUMNS,
    REPRESENTATIONS,
    Failure,
    VideoRecord,
    identity_in,
    l2_normalize,
    layers_of,
    row_digests,
)
from lvmae.store.index import some

log = logging.getLogger(__name__)

_MEANING = ("space_id", "dim", "kind", "segments")  # what the manifest and every shard say
_UNSOUND = b"lvmae.unsound"  # in the metadata of a mapped copy
_TOLD = 5  # videos that are named; more are only counted

log = logging.getLogger(__name__)
_OLD_FINGERPRINT = 16  # hex digits of a fingerprint as version 0.1 made it


@dataclass(frozen=True)
class _Shard:
    """One mapped shard: its batch, and views on the buffers that windows are cut from."""

    batch: pa.RecordBatch
    offsets: np.ndarray
    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class EmbeddingStore(Sequence[VideoRecord]):
    """Reads a store without loading it into memory; `store[i]` is the i-th video.

    Pickles to its path alone and maps its shards on first use, so that each worker process opens its own.

    Raises:
        InputError: there is no store, it is of another version, or it holds no video.
        WorkError: a shard is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._folder = StoreFolder(path)
        self._left_out: dict[str, Failure] = {}
        self.path = self._folder.said
        """Path or URL, without what a URL grants access by: fit to be printed and written down."""
        manifest = self._folder.manifest()
        if manifest is None:
            raise InputError(
                f"{self.path} is not a store (it has no manifest.json); make one with `lvmae embed` or `lvmae import`"
            )
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str] | EmbeddingStore) -> EmbeddingStore:
        """Opens the store at a path or URL and checks that it holds videos; an open store is returned as it is."""
        if isinstance(path, EmbeddingStore):
            return path
        store = cls(path)
        if len(store) == 0:
            said = store.path
            raise InputError(f"{said} holds no video yet; see `lvmae inspect {said}` for what failed")
        if store.kind == REPRESENTATIONS and (stale := store.stale()):
            log.warning(
                "%s is stale: the embeddings of %s have changed or gone since; make these representations again",
                store.path,
                some(stale),
            )
        return store

    def __reduce__(self) -> tuple[type[EmbeddingStore], tuple[str]]:
        return type(self), (self._folder.url,)

    @property
    def folder(self) -> StoreFolder:
        """Returns the folder or URL of the store's files."""
        return self._folder

    @property
    def dim(self) -> int:
        """Returns the width D of one embedding."""
        return self.manifest.dim

    @property
    def space_id(self) -> str:
        """Returns the name of the embedding space."""
        return self.manifest.space_id

    @property
    def kind(self) -> str:
        """Returns "embeddings" or "representations"."""
        return self.manifest.kind

    @cached_property
    def _shards(self) -> list[_Shard]:
        return [self._map(shard) for shard in self._listed]

    @cached_property
    def _listed(self) -> list[Shard]:
        return [shard for shard in self._folder.shards("data") if all(entry.rows for entry in shard.entries)]

    def _map(self, shard: Shard) -> _Shard:
        copy = self._cached("stores", "arrow", shard, lambda path: self._write_arrow(shard, path))
        try:
            return self._viewed(pa.ipc.open_file(pa.memory_map(str(copy))).get_batch(0), shard)
        except (OSError, pa.ArrowException) as error:
            raise WorkError(f"the cached copy {copy} cannot be read: {reason(error)}; delete it") from None

    def _cached(self, kind: str, ending: str, shard: Shard, make: Callable[[Path], None]) -> Path:
        """What is made of a shard, in the cache."""
        local, of = self._folder.local, self._folder.cached_as
        key = hashlib.sha256(f"{of}\0{shard.name}\0{shard.size}\0{shard.changed}\0looked at".encode()).hexdigest()[:32]
        return cached(kind, f"{key}.{ending}", make, of=of, source=local / shard.path if local else None)

    def _write_arrow(self, shard: Shard, path: Path) -> None:
        table = self._folder.table(shard).combine_chunks()
        # Looked at once, here: whoever maps the copy knows which rows are no numbers.
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _UNSOUND: _unsound_rows(table)})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, table.num_rows))

    def _viewed(self, batch: pa.RecordBatch, shard: Shard) -> _Shard:
        column = batch.column("embeddings")
        if column.type.value_type.list_size != self.dim:
            raise WorkError(f"{self.path}/{shard.path} does not have the width {self.dim} of its manifest")
        written = (metadata_of(batch.schema) or {}).get("manifest")
        if isinstance(written, dict) and any(written.get(name) != getattr(self.manifest, name) for name in _MEANING):
            raise WorkError(
                f"{self.path}/manifest.json says something else than {shard.path}; repair the store with `lvmae verify`"
            )
        # DLPack gives the same views as to_numpy, which would import pandas first.
        return _Shard(
            batch=batch,
            offsets=np.from_dlpack(column.offsets),
            values=np.from_dlpack(column.values.values).reshape(-1, self.dim),
            starts=np.from_dlpack(batch.column("starts").values),
            ends=np.from_dlpack(batch.column("ends").values),
        )

    def stream(self) -> Iterator[VideoRecord]:
        """Yields every video in the order on disk, with one shard in memory at a time and nothing in the cache."""
        again = Counter(self._folder.rows())  # rows of an id that are still to come: its last one counts
        for shard in self._listed:
            table = self._folder.table(shard).combine_chunks()
            views, unsound = self._viewed(table.to_batches()[0], shard), json.loads(_unsound_rows(table))
            for row, video in enumerate(views.batch.column("id").to_pylist()):
                again[video] -= 1
                if again[video] > 0 or video in self.removed:
                    continue
                if str(row) in unsound:
                    failure = _unsound(video, views.batch.column("source")[row].as_py(), *unsound[str(row)])
                    self._left_out[video] = failure
                    log.warning("%s: the video %r is left out: %s", self._folder.said, video, failure.reason)
                else:
                    yield self._record(views, row)

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.cumsum([0, *(shard.batch.num_rows for shard in self._shards)])

    def _column(self, name: str) -> list[Any]:
        """A column's values in the order of the rows on disk."""
        return [value for shard in self._shards for value in shard.batch.column(name).to_pylist()]

    @cached_property
    def _order(self) -> np.ndarray:
        """Place in the store -> row on disk, of an id the last. Rows lie as they were finished, by workers and crashes."""
        written = self._rows_of_ids
        for video in self.unsound:
            del written[video]
        return np.array([written[video] for video in sorted(written)], dtype=np.int64)

    @cached_property
    def ids(self) -> list[str]:
        """The videos' ids, sorted: the order of everything here."""
        return sorted(set(self._column("id")) - self.removed - self.unsound.keys())

    @property
    def _rows_of_ids(self) -> dict[str, int]:
        return {video: row for row, video in enumerate(self._column("id")) if video not in self.removed}

    @cached_property
    def unsound(self) -> dict[str, Failure]:
        """Videos whose values are not finite, by id: they are left out, and reported once."""
        found: dict[str, Failure] = {}
        counted = self._rows_of_ids
        for first, shard in zip(self._firsts, self._shards, strict=False):
            rows = json.loads((shard.batch.schema.metadata or {}).get(_UNSOUND, b"{}"))
            for row, (bad, length) in rows.items():
                video = shard.batch.column("id")[int(row)].as_py()
                if counted.get(video) == int(first) + int(row):
                    found[video] = _unsound(video, shard.batch.column("source")[int(row)].as_py(), bad, length)
        for video, failure in list(found.items())[:_TOLD]:
            log.warning("%s: the video %r is left out: %s", self._folder.said, video, failure.reason)
        if len(found) > _TOLD:
            log.warning("%s: %d more videos are left out in the same way", self._folder.said, len(found) - _TOLD)
        return found

    @cached_property
    def removed(self) -> set[str]:
        """Ids of the videos that were removed from it, and stay out."""
        return self._folder.removed()

    @cached_property
    def lengths(self) -> np.ndarray:
        """(V,) segments a video."""
        lengths = [np.diff(shard.offsets) for shard in self._shards] or [np.empty(0)]
        in_order: np.ndarray = np.concatenate(lengths).astype(np.int64)[self._order]
        return in_order

    @cached_property
    def first_rows(self) -> np.ndarray:
        """(V,) where each video's segments begin among all segments, in the order of `blocks`."""
        firsts, rows = [np.empty(0, np.int64)], 0
        for shard in self._shards:
            firsts.append(rows + shard.offsets[:-1].astype(np.int64))
            rows += len(shard.values)
        in_order: np.ndarray = np.concatenate(firsts)[self._order]
        return in_order

    @property
    def blocks(self) -> list[np.ndarray]:
        """Returns all segments in the order on disk, arrays (n, D) float16 each, as views on the memory maps."""
        return [shard.values for shard in self._shards]

    @cached_property
    def similarity_to_previous(self) -> np.ndarray:
        """(segments,) float32, in the order of `blocks`: each segment's cosine with the one before; without meaning for a first.

        Computed once a store and kept in the cache, 4 bytes a segment.
        """
        parts = [np.empty(0, np.float32)]
        for shard, values in zip(self._listed, self.blocks, strict=True):
            copy = self._cached("similarities", "npy", shard, functools.partial(_write_similarities, values))
            parts.append(np.load(copy))
        return np.concatenate(parts)

    @cached_property
    def durations(self) -> np.ndarray:
        """(V,) seconds a video."""
        in_order: np.ndarray = np.array(self._column("duration"), np.float64)[self._order]
        return in_order

    @property
    def failures(self) -> list[Failure]:
        """Returns the inputs that failed, or are stored only in part, with the last reason; later successes are left out."""
        if "_shards" in vars(self):  # it is not worth mapping all of them for this
            self._left_out |= self.unsound
        return [*self._failures.values(), *self._left_out.values()]

    @cached_property
    def _failures(self) -> dict[str, Failure]:
        return self._folder.failures(done=self._folder.ids() if self._folder.shards("failures") else ())

    def __len__(self) -> int:
        return len(self._order)

    def _locate(self, index: int) -> tuple[_Shard, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        row = int(self._order[index])
        which = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self._shards[which], row - int(self._firsts[which])

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[VideoRecord]: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | list[VideoRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._record(*self._locate(int(index)))

    def _record(self, shard: _Shard, row: int) -> VideoRecord:
        first, last = shard.offsets[row], shard.offsets[row + 1]
        pooled = {}
        if self.kind == REPRESENTATIONS:
            pooled = {name: np.array(shard.batch.column(name)[row].as_py(), np.float32) for name in ("cls", "mean")}
            if "center" in shard.batch.schema.names and (center := shard.batch.column("center")[row].as_py()):
                pooled["center"] = np.array(center, np.float32)
            if "layers" in shard.batch.schema.names and (layers := shard.batch.column("layers")[row].as_py()):
                pooled["layers"] = np.array(layers, np.float32).reshape(-1, self.dim)
        video = shard.batch.column("id")[row].as_py()
        failure = self._failures.get(video)
        return VideoRecord(
            id=video,
            source=shard.batch.column("source")[row].as_py(),
            duration=shard.batch.column("duration")[row].as_py(),
            starts=shard.starts[first:last],
            ends=shard.ends[first:last],
            embeddings=shard.values[first:last],
            shortened=failure.reason if failure else "",
            identity=identity_in(
                {name: shard.batch.column(name)[row].as_py() for name in _identity_names(shard.batch.schema)}
            ),
            made_from=(shard.batch.column("made_from")[row].as_py() or "")
            if "made_from" in shard.batch.schema.names
            else "",
            **pooled,
        )

    def embeddings(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns segments `start` to `stop` of a video, (L, D) float16, as a view on the memory map."""
        shard, row = self._locate(int(index))
        first, last = int(shard.offsets[row]), int(shard.offsets[row + 1])
        stop = last - first if stop is None else stop
        if not 0 <= start <= stop <= last - first:
            raise IndexError(f"segments {start} to {stop} of {last - first}")
        return shard.values[first + start : first + stop]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {video: place for place, video in enumerate(self.ids)}

    def index(self, video_id: str) -> int:  # type: ignore[override]
        """Returns the index of a video by its id. Raises KeyError if it is absent."""
        return self._places[video_id]

    def _pooled(self, name: str) -> np.ndarray:
        flat = [np.from_dlpack(shard.batch.column(name).flatten()) for shard in self._shards]
        in_order: np.ndarray = np.concatenate(flat).reshape(-1, self.dim)[self._order]
        return in_order

    @cached_property
    def cls_features(self) -> np.ndarray:
        """(V, D) float32: [CLS] of every video; representations only."""
        if self.kind != REPRESENTATIONS:
            raise InputError(
                f"{self.path} holds raw embeddings, which have no [CLS]; compute representations with `lvmae represent`"
            )
        return self._pooled("cls")

    @cached_property
    def center_features(self) -> np.ndarray | None:
        """(V, D) float32: what a run with center=video took off each video's embeddings; None if nothing was."""
        names = [shard.batch.schema.names for shard in self._shards]
        if not all("center" in known for known in names) or any(
            s.batch.column("center").null_count for s in self._shards
        ):
            return None
        return self._pooled("center") if len(self) else None

    @cached_property
    def layer_features(self) -> dict[int, np.ndarray]:
        """Block of the encoder, from 1 -> (V, D) float32, the mean of its tokens; empty if none were kept."""
        layers = layers_of(self.manifest)
        if not layers or not len(self):
            return {}
        flat = np.concatenate([np.from_dlpack(shard.batch.column("layers").flatten()) for shard in self._shards])
        means = flat.reshape(-1, len(layers), self.dim)[self._order]
        return {layer: means[:, place] for place, layer in enumerate(layers)}

    @cached_property
    def mean_features(self) -> np.ndarray:
        """(V, D) float32: the mean of a video's token features, or of its L2-normalised embeddings."""
        if self.kind == REPRESENTATIONS:
            return self._pooled("mean")
        return np.stack([l2_normalize(self.embeddings(i)).mean(axis=0) for i in range(len(self))])

    @cached_property
    def digests(self) -> dict[str, str]:
        """Id -> a digest of the video's times, embeddings and pooled features."""
        found: dict[str, str] = {}
        for listed, shard in zip(self._listed, self._shards, strict=True):
            rows = self._folder.indexed(listed)
            known = rows.digests if rows is not None and rows.digests else row_digests(pa.table(shard.batch))
            found |= zip(shard.batch.column("id").to_pylist(), known, strict=True)
        return {video: digest for video, digest in found.items() if video not in self.removed}

    def stale(self, source: EmbeddingStore | None = None) -> list[str]:
        """Returns the ids of representations whose embeddings have changed or been removed since.

        Args:
            source: the store that they were made from; None opens the one that is noted, and gives nothing where it is not there.
        """
        if source is None:
            noted = (self.manifest.run or {}).get("store")
            if not isinstance(noted, str) or is_url(noted) or not Path(noted).is_dir():
                return []
            try:
                opened = EmbeddingStore(noted)
                if all(shard.entries for shard in opened._listed):  # else all embeddings would have to be read
                    return self.stale(opened)
            except LVMAEError:
                pass
            return []
        there = set(source.ids)
        gone = [video for video in self.ids if video not in there]
        noted = self._made_from()
        return gone + [
            video for video in self.ids if video in there and noted.get(video) and noted[video] != source.digests[video]
        ]

    def _made_from(self) -> dict[str, str]:
        noted: dict[str, str] = {}
        for shard in self._shards:
            if "made_from" in shard.batch.schema.names:
                noted |= zip(
                    shard.batch.column("id").to_pylist(), shard.batch.column("made_from").to_pylist(), strict=True
                )
        return noted

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the space and of every video's id and content: changes with any value, not when the store is copied."""
        digest = hashlib.sha256(f"{self.space_id}\0{self.dim}\0{self.kind}".encode())
        for video in self.ids:
            digest.update(f"\0{video}\0{self.digests[video]}".encode())
        return digest.hexdigest()[:32]

    def has_fingerprint(self, written: str | None) -> bool:
        """Returns whether a recorded fingerprint, also one of an older version, belongs to this store."""
        return written in ((self.fingerprint,) if len(written or "") != _OLD_FINGERPRINT else (self.old_fingerprint,))

    @cached_property
    def old_fingerprint(self) -> str:
        """The fingerprint as version 0.1 made it: of the space, ids, lengths and one embedding a video."""
        digest = hashlib.sha256(f"{self.space_id}\0{self.dim}\0{self.kind}".encode())
        for place, video in enumerate(self.ids):
            row = self.embeddings(place)
            digest.update(f"{video}\0{len(row)}\0".encode())
            digest.update(row[len(row) // 2].tobytes())
        return digest.hexdigest()[:_OLD_FINGERPRINT]


def _unsound(video: str, source: str, bad: int, length: int) -> Failure:
    where = f"{bad} of {length} segments hold" if bad else "its pooled features hold"
    return Failure(video, source, f"{where} NaN or infinity; repair the store with `lvmae verify`")


def _unsound_rows(table: pa.Table) -> bytes:
    """Row -> [segments that are not finite, segments] of each video of a shard that has such, as JSON."""
    found: dict[str, tuple[int, int]] = {}
    if table.num_rows:
        batch = table.to_batches()[0]
        column = batch.column("embeddings")
        # All bits of a half's exponent are set: NaN or infinity.
        bits = np.from_dlpack(column.values.values).view(np.uint16).reshape(-1, column.type.value_type.list_size)
        bad = np.add.accumulate([False, *((bits & 0x7C00) == 0x7C00).any(axis=1)], dtype=np.int64)
        edges = np.from_dlpack(column.offsets)
        pooled = [
            np.array([not np.isfinite(np.asarray(one, np.float64)).all() for one in batch.column(name).to_pylist()])
            for name in ("cls", "mean")
            if name in batch.schema.names
        ]
        counts = bad[edges[1:]] - bad[edges[:-1]]
        for row in np.flatnonzero(np.logical_or.reduce([counts > 0, *pooled])).tolist():
            found[str(row)] = int(counts[row]), int(edges[row + 1] - edges[row])
    return json.dumps(found).encode()


def _identity_names(schema: pa.Schema) -> list[str]:
    """Those of the identity's columns that a shard has: they came later than the format."""
    return [name for name, _ in IDENTITY_COLUMNS if name in schema.names]


_CHUNK = 16384  # segments whose similarities are computed at once


def _write_similarities(values: np.ndarray, path: Path) -> None:
    found = np.zeros(len(values), np.float32)
    for first in range(0, len(values), _CHUNK):
        rows = l2_normalize(values[max(0, first - 1) : first + _CHUNK])
        found[max(1, first) : first + _CHUNK] = np.einsum("ld,ld->l", rows[1:], rows[:-1])
    with path.open("wb") as file:
        np.save(file, found)
