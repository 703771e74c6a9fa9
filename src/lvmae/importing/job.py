"""The import itself: which videos are still to be read, the outcome of each, and the summary."""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np

from lvmae.errors import InputError
from lvmae.files.identity import FileIdentity, identity_of, stat_of
from lvmae.importing.arrays import Layout, sentence
from lvmae.importing.candidates import Candidate, open_source
from lvmae.progress import progress
from lvmae.store import (
    EmbeddingStore,
    Manifest,
    StoredSources,
    StoreWriter,
    VideoRecord,
    path_names,
    stored_sources,
)


class TurnedError(InputError):
    """Raised if arrays seem to be (width, segments) without `transpose`, or the reverse."""


log = logging.getLogger(__name__)

_LOOKED_AT = 32  # arrays whose shapes decide how wide an embedding is


@dataclass(frozen=True)
class ImportSummary:
    """The result of an import: videos added, already stored and refused, and the totals of the store."""

    added: int
    kept: int
    failed: int
    videos: int
    segments: int
    dim: int
    changed: tuple[
        str, ...
    ] = ()  # ids whose values are not what they were when they were stored, and were not read again
    left_out: str = ""  # how many files of the folder are no arrays, by suffix


def import_embeddings(
    source: str | Path,
    out: str | Path,
    *,
    segment_seconds: float,
    space: str,
    key: str | None = None,
    dim: int | None = None,
    transpose: bool = False,
    refresh: bool = False,
) -> ImportSummary:
    """Writes the embeddings in `source` to the store `out`; a rerun adds only new ones.

    Args:
        source: a folder or a file, in one of the forms of this package's docstring.
        out: the store, made or added to.
        segment_seconds: how much of the video one embedding stands for; segment i is [i, i + 1) times this, in seconds.
        space: the name of the embedding space (model, revision, frames, preprocessing): stores of two spaces never mix.
        key: the array's name inside each file or group, where there are several.
        dim: the width; without it that of the store, or else of most of the first videos.
        transpose: the arrays are (width, segments).
        refresh: videos whose values have changed since they were stored are stored again.

    Raises:
        InputError: where there is nothing to import, nothing in it is usable, the arrays look turned, or the store holds another
            space.

    A video that cannot be used (unreadable, another width, no segment, NaN) becomes a row of the store's failures.
    """
    source = Path(source)
    if not segment_seconds > 0:
        raise InputError(
            f"a segment must last more than 0 seconds, not {segment_seconds}; give its length as `segment_seconds`"
        )
    if not space.strip():
        raise InputError("the embedding space needs a name: give one as `space`, such as clip-vit-b32")
    if dim is not None and dim <= 0:
        raise InputError(f"the width of an embedding must be positive, not {dim}")
    manifest = Manifest(
        space_id=space,
        dim=dim or 0,
        segments={"kind": "fixed", "seconds": float(segment_seconds)},
        encoder={"name": "imported", "options": {}},
    )
    with ExitStack() as stack:
        opened = open_source(source, key, stack)
        candidates = opened.videos
        stored = stored_sources([out])
        begun = _store_at(out)
        layout = Layout(transpose, dim or (begun.dim if begun is not None else 0))
        if not layout.dim:
            first = list(islice(candidates, _LOOKED_AT))
            layout = replace(layout, dim=_width(first, layout))
            candidates = chain(first, candidates)
        added = kept = 0
        changed: list[str] = []
        refused: list[tuple[str, str, str, FileIdentity]] = []  # id, path, reason
        seen: dict[str, str] = {}
        identity = lru_cache(maxsize=4)(identity_of)
        writer: StoreWriter | None = None
        if begun is not None:
            writer = stack.enter_context(StoreWriter(out, replace(manifest, dim=dim or begun.dim)))
        for candidate in progress(candidates, desc="import", unit="videos", total=opened.total):
            id = _named(candidate, stored, seen)
            if id is None or id in seen:
                taken = seen.get(candidate.id) or stored.rows[candidate.id].source
                reason = f"its id '{candidate.id}' is taken by {taken}; rename one of them"
                second = f"{candidate.id}, a second time: {Path(candidate.path).name}"
                refused.append((second, candidate.where, reason, stat_of(candidate.path)))
                continue
            seen[id] = candidate.where
            if writer is not None and id in writer.removed:
                log.info("%s was removed from %s and stays out", id, out)
                kept += 1
                continue
            there = writer is not None and id in writer.done
            if there and not (id in stored.rows and stored.changed(id, candidate.path, stat_of(candidate.path))):
                kept += 1
                continue
            try:
                embeddings = layout.checked(candidate.load())
            except (ValueError, OSError, MemoryError) as error:
                refused.append((id, candidate.where, sentence(error), stat_of(candidate.path)))
                continue
            if there and begun is not None:
                if id in begun.ids and np.array_equal(begun.embeddings(begun.index(id)), embeddings):
                    kept += 1
                    continue
                if not refresh:
                    kept += 1
                    changed.append(id)
                    continue
            if writer is None:  # only a usable array makes a store
                writer = stack.enter_context(StoreWriter(out, replace(manifest, dim=embeddings.shape[1])))
            writer.add(_record(id, candidate, embeddings, segment_seconds, identity(candidate.path)), replaces=there)
            added += 1
        if not seen and not refused:
            raise InputError(f"{source} holds no embeddings; give a file with at least one video")
        if writer is None or not (added or kept):
            path, reason = refused[0][1:3]
            raise InputError(f"none of the {len(seen)} videos in {source} can be used; the first, {path}: {reason}")
        for id_, path, reason, then in refused:
            known = writer.failed.get(id_)
            if known is None or known.reason != reason:
                writer.fail(id_, path, reason, then)
    store = EmbeddingStore.open(out)
    return ImportSummary(
        added,
        kept,
        len(refused),
        len(store),
        int(store.lengths.sum()),
        store.dim,
        tuple(changed),
        _counted(opened.left_out),
    )


def _store_at(path: str | os.PathLike[str]) -> EmbeddingStore | None:
    try:
        return EmbeddingStore(path)
    except InputError:  # none there yet; what else may be wrong with it, the writer says
        return None


def _named(candidate: Candidate, stored: StoredSources, seen: dict[str, str]) -> str | None:
    """The id of a video: the one its file has in the store, or one that means no other video; None if there is none."""
    if candidate.keeps_id:  # the same file holds it again, or another file has a video of this name
        return candidate.id if not _is_anothers(candidate, candidate.id, stored) else None
    known = stored.id_of(candidate.path)
    if known is not None and known not in seen:
        return known
    parts = path_names(str(Path(candidate.path).with_suffix("")))
    first = len(Path(candidate.id).parts)
    names = [candidate.id, *("/".join(parts[:count][::-1]) for count in range(first + 1, len(parts) + 1))]
    if candidate.id in seen:
        return candidate.id  # of two files of one name in one folder, the second is refused
    return next((name for name in names if not _is_anothers(candidate, name, stored)), None)


def _is_anothers(candidate: Candidate, id: str, stored: StoredSources) -> bool:
    return stored.is_another(id, candidate.path, stat_of(candidate.path))


def _width(candidates: list[Candidate], layout: Layout) -> int:
    """How wide most of the first arrays are; 0 if none can be read. InputError if they look turned."""
    shapes: list[tuple[int, int]] = []
    for candidate in candidates:
        try:
            shape = candidate.shape() if candidate.shape is not None else None
            if shape is None or len(shape) != 2:
                rows, columns = layout.rows(candidate.load()).shape
            else:
                rows, columns = shape[::-1] if layout.transpose else shape
        except (ValueError, OSError, MemoryError):
            continue
        if rows and columns:
            shapes.append((rows, columns))
    lengths, widths = {rows for rows, _ in shapes}, Counter(columns for _, columns in shapes)
    if len(widths) > 1 and len(lengths) == 1:
        one, other = f"{lengths.pop()} rows", f"{min(widths)} to {max(widths)} columns"
        right = "as they are, not transposed" if layout.transpose else "transposed"
        raise TurnedError(
            f"the arrays look turned: all of the first {len(shapes)} have {one}, and {other}; import them {right}, or say how wide "
            "an embedding is"
        )
    if not widths:
        return 0
    (width, most), *others = widths.most_common()
    if others and others[0][1] == most:
        said = " and ".join(f"{count} are {columns} wide" for columns, count in [(width, most), *others][:3])
        raise InputError(f"the arrays are of different widths ({said}); say how wide an embedding is")
    return width


def _record(
    id: str, candidate: Candidate, embeddings: np.ndarray, segment_seconds: float, identity: FileIdentity
) -> VideoRecord:
    edges = np.arange(len(embeddings) + 1, dtype=np.float64) * segment_seconds
    return VideoRecord(
        id=id,
        source=candidate.path,
        duration=float(edges[-1]),
        starts=edges[:-1],
        ends=edges[1:],
        embeddings=embeddings,
        identity=identity,
    )


def _counted(left_out: Counter[str]) -> str:
    if not left_out:
        return ""
    return f"{left_out.total()} files that are no arrays: " + ", ".join(
        f"{n} {kind}" for kind, n in left_out.most_common(8)
    )
