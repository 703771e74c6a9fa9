"""Features made elsewhere -> an embedding store.

Enters: embeddings of any encoder and any width. Leaves: a store that the whole rest of the path takes, with no video
at hand.

What is accepted, each array being (segments, width), one segment after the other without gaps:

- a folder (or one file) of `.npy`, `.npz`, `.safetensors`, `.pt`/`.pth`: one file a video, its id the path without the
  suffix. A file of several arrays needs exactly one of two dimensions, or `key`, its name. Nothing that could execute
  code is loaded.
- a `.parquet` file with a row a video: a column `id` and a column of lists of lists (`embeddings`, or the only one).
- a `.parquet` file with a row a segment: a column `id`, a column `segment` (its number), and the vector, as one column
  of lists or as numeric columns in their order. The rows of a video stand together; within it they are sorted by
  `segment`.
- a `.h5`/`.hdf5` file: a dataset a video, its id the dataset's path; with `key`, the dataset of that name in a group a
  video.

Cost: one video in memory at a time, plus the store's write buffer. What is in the store already is not read again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError
from lvmae.files.tables import read_parquet_rows
from lvmae.progress import progress
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, to_half

log = logging.getLogger(__name__)

_ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")
_PARQUET_SUFFIXES = (".parquet",)
_HDF5_SUFFIXES = (".h5", ".hdf5")
_ID_COLUMNS = ("id", "video_id", "video")
_SEGMENT_COLUMNS = ("segment", "segment_index", "index")
_VECTOR_COLUMNS = ("embeddings", "embedding")
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ImportSummary:
    """What an import did: videos added now, videos that were there already, videos refused, and the store's totals."""

    added: int
    kept: int
    failed: int
    videos: int
    segments: int
    dim: int


@dataclass(frozen=True)
class _Candidate:
    """One video's array, not yet read. `load` raises `ValueError` or `OSError` with the reason it cannot be used."""

    id: str
    path: str
    load: Callable[[], np.ndarray]


def import_embeddings(
    source: str | Path,
    out: str | Path,
    *,
    segment_seconds: float,
    space: str,
    key: str | None = None,
    dim: int | None = None,
) -> ImportSummary:
    """Writes the embeddings in `source` to the store `out`; run again, it adds what is new.

    Args:
        source: a folder, an array file, a Parquet or an HDF5 file, in one of the forms of this module's docstring.
        out: the store, made or added to.
        segment_seconds: how much of the video one embedding stands for; segment i is [i, i + 1) times this, in seconds.
        space: the name of the embedding space (model, revision, frames, preprocessing): stores of two spaces never mix.
        key: the array's name inside each file or group, where there are several.
        dim: the width; without it that of the store, or else of the first video that can be read.

    Raises:
        InputError: where there is nothing to import, nothing in it is usable, or the store holds another space.

    A video that cannot be used (unreadable, another width, no segment, NaN) becomes a row of the store's failures.
    """
    source = Path(source)
    if not segment_seconds > 0:
        raise InputError(
            f"a segment must last more than 0 seconds, not {segment_seconds}; give its length as `segment_seconds`"
        )
    if not space.strip():
        raise InputError("the embedding space needs a name: give one as `space`, such as clip-vit-b32")
    manifest = Manifest(
        space_id=space,
        dim=dim or 0,
        segments={"kind": "fixed", "seconds": float(segment_seconds)},
        encoder={"name": "imported", "options": {}},
    )
    candidates, total = _candidates(source, key)
    added = kept = 0
    refused: list[tuple[str, str, str]] = []  # id, path, reason
    seen: dict[str, str] = {}
    with ExitStack() as stack:
        writer: StoreWriter | None = None
        begun = _store_at(out)
        if begun is not None:
            manifest = replace(manifest, dim=dim or begun.dim)
            writer = stack.enter_context(StoreWriter(out, manifest))
        for candidate in progress(candidates, desc="import", unit="videos", total=total):
            if candidate.id in seen:
                reason = f"its id '{candidate.id}' is taken by {seen[candidate.id]}; rename one of them"
                refused.append((candidate.path, candidate.path, reason))
                continue
            seen[candidate.id] = candidate.path
            if writer is not None and candidate.id in writer.removed:
                log.info("%s was removed from %s and stays out", candidate.id, out)
                kept += 1
                continue
            if writer is not None and candidate.id in writer.done:
                kept += 1
                continue
            try:
                embeddings = _checked(candidate.load(), manifest.dim)
            except (ValueError, OSError) as error:
                refused.append((candidate.id, candidate.path, _sentence(error)))
                continue
            if writer is None:  # only a usable array makes a store, and it is as wide as that
                manifest = replace(manifest, dim=embeddings.shape[1])
                writer = stack.enter_context(StoreWriter(out, manifest))
            writer.add(_record(candidate, embeddings, segment_seconds))
            added += 1
        if not seen:
            raise InputError(f"{source} holds no embeddings; give a file with at least one video")
        if writer is None or not (added or kept):
            path, reason = refused[0][1:]
            raise InputError(f"none of the {len(seen)} videos in {source} can be used; the first, {path}: {reason}")
        for id_, path, reason in refused:
            known = writer.failed.get(id_)
            if known is None or known.reason != reason:
                writer.fail(id_, path, reason)
    store = EmbeddingStore.open(out)
    return ImportSummary(added, kept, len(refused), len(store), int(store.lengths.sum()), store.dim)


def _store_at(path: str | Path) -> EmbeddingStore | None:
    try:
        return EmbeddingStore(path)
    except InputError:  # none there yet; what else may be wrong with it, the writer says
        return None


def _record(candidate: _Candidate, embeddings: np.ndarray, segment_seconds: float) -> VideoRecord:
    edges = np.arange(len(embeddings) + 1, dtype=np.float64) * segment_seconds
    return VideoRecord(
        id=candidate.id,
        source=candidate.path,
        duration=float(edges[-1]),
        starts=edges[:-1],
        ends=edges[1:],
        embeddings=embeddings,
    )


def _checked(array: np.ndarray, dim: int) -> np.ndarray:
    """The array as float16 (L, D), of any D where `dim` is 0; `ValueError` with the reason a store cannot hold it."""
    if array.ndim != 2:
        raise ValueError(f"the array has shape {array.shape}, not (segments, width)")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"the array holds {array.dtype}, not real numbers")
    length, width = array.shape
    if length == 0 or width == 0:
        raise ValueError(f"the array is empty, of shape {array.shape}")
    if dim and width != dim:
        raise ValueError(f"the embeddings are {width} wide where the store's are {dim}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {length} segments hold NaN or infinity (the first is {int(bad.argmax())})"
        )
    if np.abs(array).max() > _FLOAT16_MAX:
        raise ValueError(
            f"the values exceed {_FLOAT16_MAX:.0f}, the most a half-precision store holds; scale them down"
        )
    try:
        half = to_half(array)
    except ValueError as error:
        raise ValueError(f"the values {error}") from None
    zero = ~half.any(axis=1)
    if zero.any():
        raise ValueError(
            f"{int(zero.sum())} of {length} segments are zero in half precision (the first is {int(zero.argmax())})"
        )
    return half


def _sentence(error: Exception) -> str:
    """The first line of an error, which is what fits in a row of failures."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _candidates(source: Path, key: str | None) -> tuple[Iterator[_Candidate], int | None]:
    """The videos in `source`, and how many there are where that is cheap to know."""
    if source.is_dir():
        files = sorted(
            p for p in source.rglob("*") if p.suffix.lower() in _ARRAY_SUFFIXES and not p.name.startswith(".")
        )
        if not files:
            raise InputError(f"{source} holds no embeddings: no {', '.join(_ARRAY_SUFFIXES)} file is in it or below it")
        return (_file_candidate(p, p.relative_to(source), key) for p in files), len(files)
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder of arrays, a Parquet file or an HDF5 file")
    suffix = source.suffix.lower()
    if suffix in _ARRAY_SUFFIXES:
        return iter([_file_candidate(source, Path(source.name), key)]), 1
    if suffix in _PARQUET_SUFFIXES:
        return _parquet_candidates(source, key), None
    if suffix in _HDF5_SUFFIXES:
        return _hdf5_candidates(source, key), None
    known = ", ".join(_ARRAY_SUFFIXES + _PARQUET_SUFFIXES + _HDF5_SUFFIXES)
    raise InputError(f"{source} is of no kind that can be imported; known are {known}")


# ---------------------------------------------------------------------------------------------- one file a video


def _file_candidate(path: Path, relative: Path, key: str | None) -> _Candidate:
    return _Candidate(relative.with_suffix("").as_posix(), str(path), lambda: _read_array(path, key))


def _read_array(path: Path, key: str | None) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return _the_array({name: archive[name] for name in archive.files}, key)
    return _read_torch(path, key)


def _read_torch(path: Path, key: str | None) -> np.ndarray:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"the file holds more than tensors, or is damaged ({_sentence(error)[:120]})") from error
    if isinstance(loaded, torch.Tensor):
        return _numpy(loaded)
    if isinstance(loaded, dict):
        return _the_array({str(k): _numpy(v) for k, v in loaded.items() if isinstance(v, torch.Tensor)}, key)
    raise ValueError(f"the file holds a {type(loaded).__name__}, not a tensor or a dictionary of tensors")


def _numpy(tensor: Any) -> np.ndarray:
    """Any dense tensor as an array; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach()
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def _the_array(arrays: dict[str, np.ndarray], key: str | None) -> np.ndarray:
    if key is not None:
        if key not in arrays:
            raise ValueError(f"the file has no array '{key}'; it has {', '.join(sorted(arrays)) or 'none'}")
        return arrays[key]
    flat = [name for name, array in arrays.items() if array.ndim == 2]
    if len(flat) != 1:
        raise ValueError(
            f"the file has {len(flat)} arrays of two dimensions ({', '.join(sorted(flat))}); name one with `key`"
        )
    return arrays[flat[0]]


# ------------------------------------------------------------------------------------------------------ Parquet


def _parquet_candidates(path: Path, key: str | None) -> Iterator[_Candidate]:
    rows = read_parquet_rows(path)
    first = next(rows, None)
    if first is None:
        return
    id_column = next((c for c in _ID_COLUMNS if c in first), None)
    if id_column is None:
        raise InputError(f"{path} has no column {' or '.join(_ID_COLUMNS)}; its columns are {', '.join(first)[:200]}")
    segment_column = next((c for c in _SEGMENT_COLUMNS if c in first), None)
    vector_column = _vector_column(path, first, key)
    if vector_column is not None and _is_nested(first[vector_column]):
        for row in read_parquet_rows(path):
            yield _Candidate(str(row[id_column]), str(path), partial(_stacked, row[vector_column]))
        return
    if segment_column is None:
        wanted = " or ".join(_SEGMENT_COLUMNS)
        raise InputError(
            f"{path} has neither a column of lists of lists nor a column {wanted} that numbers a video's segments"
        )
    yield from _long_format(path, first, id_column, segment_column, vector_column)


def _long_format(
    path: Path, first: dict[str, Any], id_column: str, segment_column: str, vector_column: str | None
) -> Iterator[_Candidate]:
    """A row a segment. The ids are read once beforehand: a video in two places would be stored as half of itself."""
    finished: set[str] = set()
    for video, _ in groupby(read_parquet_rows(path), key=lambda row: str(row[id_column])):
        if video in finished:
            raise InputError(
                f"the rows of video '{video}' do not stand together in {path}; sort the file by {id_column}"
            )
        finished.add(video)
    if vector_column is not None:
        columns = [vector_column]
    else:
        columns = _numbered_columns(first)
        if not columns:
            raise InputError(
                f"{path} has no embedding: neither a column of lists nor numbered columns such as e0, e1, ..."
            )

    def array(rows: list[dict[str, Any]]) -> np.ndarray:
        rows = sorted(rows, key=lambda row: row[segment_column])
        numbers = [row[segment_column] for row in rows]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"a number in {segment_column} occurs twice")
        if numbers[-1] - numbers[0] != len(numbers) - 1:
            raise ValueError(f"{segment_column} skips numbers between {numbers[0]} and {numbers[-1]}")
        if vector_column is not None:
            return _stacked([row[vector_column] for row in rows])
        return np.array([[row[c] for c in columns] for row in rows], dtype=np.float64)

    wanted = read_parquet_rows(path)
    for video, group in groupby(wanted, key=lambda row: str(row[id_column])):
        rows = list(group)
        yield _Candidate(video, str(path), partial(array, rows))


def _numbered_columns(row: dict[str, Any]) -> list[str]:
    """The columns of one prefix and a number, in order of number; so no column of times is taken for a value."""
    found: dict[str, dict[int, str]] = {}
    for column, value in row.items():
        match = re.fullmatch(r"(.*?)(\d+)", column)
        if match and isinstance(value, float):
            found.setdefault(match[1], {})[int(match[2])] = column
    most = max(found.values(), key=len, default={})
    return [most[number] for number in sorted(most)]


def _vector_column(path: Path, row: dict[str, Any], key: str | None) -> str | None:
    if key is not None:
        if key not in row:
            raise InputError(f"{path} has no column '{key}'; its columns are {', '.join(row)[:200]}")
        return key
    lists = [c for c, v in row.items() if isinstance(v, np.ndarray | list)]
    named = [c for c in _VECTOR_COLUMNS if c in lists] or lists
    if len(named) > 1:
        raise InputError(f"{path} has several columns of lists ({', '.join(named)}); name the embeddings with `key`")
    return named[0] if named else None


def _is_nested(value: Any) -> bool:
    return np.ndim(value) == 2 or (len(value) > 0 and np.ndim(value[0]) > 0)


def _stacked(rows: Any) -> np.ndarray:
    if rows is None or any(row is None for row in rows):
        raise ValueError("a segment has no embedding")
    if isinstance(rows, np.ndarray) and rows.dtype != object:
        return rows
    vectors = [np.asarray(row) for row in rows]
    widths = sorted({vector.size for vector in vectors})
    if len(widths) > 1:
        raise ValueError(f"its segments are of different widths ({widths[0]} to {widths[-1]})")
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


# --------------------------------------------------------------------------------------------------------- HDF5


def _hdf5_candidates(path: Path, key: str | None) -> Iterator[_Candidate]:
    try:
        import h5py
    except ImportError as error:
        raise InputError("HDF5 files need h5py; install it with: pip install 'lvmae[hdf5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5: {_sentence(error)}") from error

    def read(name: str) -> np.ndarray:
        return np.asarray(file[name][()])

    with file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            parent, _, last = name.rpartition("/")
            if key is None:
                yield _Candidate(name, str(path), partial(read, name))
            elif last == key:
                yield _Candidate(parent or last, str(path), partial(read, name))
