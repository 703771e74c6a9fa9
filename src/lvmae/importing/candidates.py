"""The contents of a source: its videos, each with a way to read its array, and the files left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError
from lvmae.files.urls import in_utf8
from lvmae.importing import hdf5, tables
from lvmae.importing.arrays import ARRAY_SUFFIXES, TEXT_SUFFIXES, npy_shape, read_arrays, the_array

_PARQUET_SUFFIXES = (".parquet",)
_HDF5_SUFFIXES = (".h5", ".hdf5")
_ONE_ARRAY = (".npy", *TEXT_SUFFIXES)


@dataclass(frozen=True)
class Candidate:
    """One video's array, not yet read. `load` raises `ValueError` or `OSError` with the reason it cannot be used."""

    id: str
    path: str
    load: Callable[[], np.ndarray]
    shape: Callable[[], tuple[int, ...]] | None = None
    """The array's shape, where that costs less than reading it."""
    within: str = ""
    """Which part of the file it is, where the file holds several videos."""
    keeps_id: bool = False
    """Whether the id stands in the file, rather than being made of its path."""

    @property
    def where(self) -> str:
        """The file, and the part of it, as failures name it."""
        return f"{self.path}/{self.within}" if self.within else self.path


@dataclass
class Source:
    """The videos of a source, how many there are where that is cheap to know, and the files that are left out, by suffix."""

    videos: Iterator[Candidate]
    total: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)


def open_source(source: Path, key: str | None, stack: ExitStack) -> Source:
    """The videos in `source`; what is opened for them, `stack` closes. Raises InputError if it is of no kind that is known."""
    if source.is_dir():
        return _in_folder(source, key)
    if key is not None and source.suffix.lower() in _ONE_ARRAY and source.exists() and _holds_one(source):
        raise _nameless(source)
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder of arrays, a table, a Parquet file or an HDF5 file")
    suffix = source.suffix.lower()
    if suffix == ".npy" and tables.ids_beside(source) is not None:
        return Source(_of_rows(tables.rows_with_ids([source])))
    if suffix in ARRAY_SUFFIXES:
        return _in_file(source, key)
    if suffix in TEXT_SUFFIXES and not tables.names_videos(source):
        return Source(iter([_of_file(source, Path(source.name), None)]), 1)
    if suffix in _PARQUET_SUFFIXES + TEXT_SUFFIXES:
        return Source(_of_rows(tables.videos_in(source, key)))
    if suffix in _HDF5_SUFFIXES:
        return Source(
            Candidate(id, str(source), load, shape, within=name, keeps_id=True)
            for id, name, load, shape in hdf5.data_sets(source, key, stack)
        )
    known = ", ".join(ARRAY_SUFFIXES + TEXT_SUFFIXES + _PARQUET_SUFFIXES + _HDF5_SUFFIXES)
    raise InputError(f"{source} is of no kind that can be imported; known are {known}")


def _holds_one(path: Path) -> bool:
    return path.suffix.lower() == ".npy" or not tables.names_videos(path)


def _nameless(source: Path) -> InputError:
    return InputError(
        f"{source} holds arrays without names ({', '.join(_ONE_ARRAY)}), so `key` chooses nothing; leave it out"
    )


def _in_folder(folder: Path, key: str | None) -> Source:
    embedded = tables.arrays_with_ids(folder)
    if embedded and key is not None:
        raise _nameless(folder)
    if embedded:
        return Source(_of_rows(tables.rows_with_ids(embedded)))
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    shown = [path for path in files if not path.name.startswith(".")]
    wanted = [path for path in shown if path.suffix.lower() in ARRAY_SUFFIXES]
    if not wanted:
        wanted = [path for path in shown if path.suffix.lower() in TEXT_SUFFIXES]
    if not wanted:
        known = ", ".join(ARRAY_SUFFIXES + TEXT_SUFFIXES)
        raise InputError(f"{folder} holds no embeddings: no {known} file is in it or below it")
    if key is not None and all(path.suffix.lower() in _ONE_ARRAY for path in wanted):
        raise _nameless(folder)
    taken = set(wanted)
    left_out = Counter(path.suffix.lower() or "without suffix" for path in files if path not in taken)
    return Source((_of_file(p, p.relative_to(folder), key) for p in wanted), len(wanted), left_out)


def _of_file(path: Path, relative: Path, key: str | None) -> Candidate:
    name = relative.with_suffix("").as_posix()
    shown = in_utf8(name)
    if shown != name:
        return Candidate(shown, in_utf8(str(path)), _refuse("its name is not UTF-8; rename it"))
    shape = partial(npy_shape, path) if path.suffix.lower() == ".npy" else None
    return Candidate(name, str(path), lambda: the_array(read_arrays(path), key), shape)


def _refuse(reason: str) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        raise ValueError(reason)

    return load


def _in_file(path: Path, key: str | None) -> Source:
    """One file of arrays: a video, or several by their names."""
    if key is not None or path.suffix.lower() == ".npy":
        return Source(iter([_of_file(path, Path(path.name), key)]), 1)
    try:
        arrays = read_arrays(path)
    except (ValueError, OSError):
        arrays = {}
    several = {name: array for name, array in arrays.items() if array.ndim >= 2}
    if len(several) < 2:
        return Source(iter([_of_file(path, Path(path.name), key)]), 1)
    return Source(
        (
            Candidate(name, str(path), partial(_part, array), within=name, keeps_id=True)
            for name, array in several.items()
        ),
        len(several),
    )


def _part(array: Any) -> np.ndarray:
    return the_array({"": array}, None)


def _of_rows(videos: Iterator[tables.Video]) -> Iterator[Candidate]:
    for video in videos:
        yield Candidate(video.id, video.path, video.load, within=video.within, keeps_id=True)
