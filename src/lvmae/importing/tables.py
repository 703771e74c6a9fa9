"""Tables of features, and tables that say whose the rows or files of features are: Parquet, CSV, clip-retrieval's pairs."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError
from lvmae.files.table_files import cell_text, column_of, read_table
from lvmae.files.tables import read_parquet_rows
from lvmae.importing.arrays import npy_shape, read_arrays, sentence, the_array

_ID_COLUMNS = ("id", "video_id", "video")
_OTHER_ID_COLUMNS = ("vid", "video_name", "name", "key", "__key__", "filename", "image_path", "url")
_SEGMENT_COLUMNS = ("segment", "segment_index", "index")
_VECTOR_COLUMNS = ("embeddings", "embedding")
_PATH_COLUMNS = ("path", "file", "file_path", "embedding_path", "features")
_LONGEST_LIST = 64 << 20  # characters of a list of files


@dataclass(frozen=True)
class Video:
    """One video's array, not yet made of its rows or files."""

    id: str
    path: str
    load: Callable[[], np.ndarray]
    within: str = ""


# --- Parquet and CSV ---------------------------------------------------------------------------------------------------------


def names_videos(path: Path) -> bool:
    """Whether a CSV is a table about several videos, and not one video's numbers."""
    columns = read_table(path, default=".csv").columns
    rows = read_table(path).rows
    lists = any(_lists_files(value) for value in rows[0].values.values()) if rows else False
    return lists or column_of(columns, _ID_COLUMNS) is not None


def videos_in(path: Path, key: str | None) -> Iterator[Video]:
    """The videos of a table with a row a video or a row a segment. InputError if it is no such table."""
    rows = _rows_of(path)
    first = next(rows(), None)
    if first is None:
        return
    lists = [name for name, value in first.items() if _lists_files(value)]
    if lists and (key is None or key in lists):
        yield from _of_files(path, rows(), key or lists[0])
        return
    id_column = _id_column(path, first)
    segment_column = column_of(list(first), _SEGMENT_COLUMNS)
    vector_column = _vector_column(path, first, key)
    path_column = column_of(list(first), _PATH_COLUMNS)
    if vector_column is not None and _is_nested(first[vector_column]):
        for row in rows():
            id = cell_text(row[id_column])
            yield Video(id, str(path), partial(_stacked, row[vector_column]), id)
        return
    if segment_column is None and (path_column is None or vector_column is not None):
        wanted = " or ".join(_SEGMENT_COLUMNS)
        raise InputError(
            f"{path} has neither a column of lists of lists nor a column {wanted} that numbers a video's segments"
        )
    columns = [] if vector_column is not None else _numbered_columns(first)
    if vector_column is None and path_column is None and not columns:
        raise InputError(f"{path} has no embedding: neither a column of lists nor numbered columns such as e0, e1, ...")
    _check_together(path, rows(), id_column)
    for id, group in groupby(rows(), key=lambda row: cell_text(row[id_column])):
        make = _Segments(path, segment_column, vector_column, columns, path_column)
        yield Video(id, str(path), partial(make, list(group)), id)


def _rows_of(path: Path) -> Callable[[], Iterator[dict[str, Any]]]:
    if path.suffix.lower() == ".parquet":
        return lambda: read_parquet_rows(path)
    table = read_table(path)
    return lambda: (row.values for row in table.rows)


def _id_column(path: Path, row: Mapping[str, Any], *others: str) -> str:
    column = column_of(list(row), (*_ID_COLUMNS, *others))
    if column is None:
        raise InputError(f"{path} has no column {' or '.join(_ID_COLUMNS)}; its columns are {', '.join(row)[:200]}")
    return column


def _check_together(path: Path, rows: Iterable[dict[str, Any]], id_column: str) -> None:
    """The ids are read once beforehand: a video in two places would be stored as half of itself."""
    finished: set[str] = set()
    for video, _ in groupby(rows, key=lambda row: cell_text(row[id_column])):
        if video in finished:
            raise InputError(
                f"the rows of video '{video}' do not stand together in {path}; sort the file by {id_column}"
            )
        finished.add(video)


@dataclass(frozen=True)
class _Segments:
    """A row a segment: what the rows of one video make."""

    table: Path
    segment_column: str | None
    vector_column: str | None
    columns: list[str]
    path_column: str | None

    def __call__(self, rows: list[dict[str, Any]]) -> np.ndarray:
        if self.segment_column is not None:
            numbers = [_number(row[self.segment_column], self.segment_column) for row in rows]
            rows = [rows[place] for place in _in_order(numbers, self.segment_column)]
        if self.vector_column is not None:
            return _stacked([row[self.vector_column] for row in rows])
        if self.columns:
            return np.array([[_value(row[c], c) for c in self.columns] for row in rows], dtype=np.float64)
        return _of_segment_files(self.table, [cell_text(row[self.path_column or ""]) for row in rows])


def _in_order(numbers: list[int], what: str) -> list[int]:
    """The places of segments in the order of their numbers. ValueError if these do not count on."""
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"a number in {what} occurs twice")
    if max(numbers) - min(numbers) != len(numbers) - 1:
        raise ValueError(f"{what} skips numbers between {min(numbers)} and {max(numbers)}")
    return sorted(range(len(numbers)), key=numbers.__getitem__)


def _number(value: Any, column: str) -> int:
    text = cell_text(value)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"the column {column} holds {text[:40]!r}, which is no number of a segment") from None


def _value(value: Any, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the column {column} holds {cell_text(value)[:40]!r}, which is no number") from None


def _numbered_columns(row: dict[str, Any]) -> list[str]:
    """The columns of one prefix and a number, in order of number; so no column of times is taken for a value."""
    found: dict[str, dict[int, str]] = {}
    for column, value in row.items():
        match = re.fullmatch(r"(.*?)(\d+)", column)
        if match and (isinstance(value, float) or (isinstance(value, str) and _is_float(value))):
            found.setdefault(match[1], {})[int(match[2])] = column
    most = max(found.values(), key=len, default={})
    return [most[number] for number in sorted(most)]


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
    return np.ndim(value) == 2 or (np.ndim(value) > 0 and len(value) > 0 and np.ndim(value[0]) > 0)


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


# --- a file a segment --------------------------------------------------------------------------------------------------------


def _lists_files(value: Any) -> bool:
    """Whether a cell lists files, as a list or as a list that was written as text."""
    if isinstance(value, str):
        return value.lstrip()[:1] in "[(" and bool(re.match(r"\s*[\[(]\s*['\"]", value))
    return isinstance(value, np.ndarray | list) and len(value) > 0 and isinstance(value[0], str)


def _listed(value: Any) -> list[str]:
    """The files that a cell lists. A literal is parsed and nothing else: no code of it runs."""
    if isinstance(value, str):
        if len(value) > _LONGEST_LIST:
            raise ValueError("its list of files is too long to be one")
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError("its list of files cannot be read") from None
    files = list(value)
    if not files or not all(isinstance(file, str) and file for file in files):
        raise ValueError("it lists no files")
    return files


def _of_files(path: Path, rows: Iterable[dict[str, Any]], column: str) -> Iterator[Video]:
    for number, row in enumerate(rows, start=1):
        id_column = column_of(list(row), _ID_COLUMNS + _OTHER_ID_COLUMNS)
        id = cell_text(row[id_column]) if id_column is not None else ""
        if not id:
            try:
                id = Path(_listed(row[column])[0]).parent.name
            except ValueError:
                id = ""
        value = row[column]
        yield Video(id or f"row {number}", str(path), partial(_of_listed, path, value), id or f"row {number}")


def _of_listed(table: Path, value: Any) -> np.ndarray:
    return _of_segment_files(table, _listed(value))


def _of_segment_files(table: Path, files: list[str]) -> np.ndarray:
    """The vectors of a video's files, one a segment, in the order given."""
    vectors = []
    for name in files:
        try:
            array = the_array(read_arrays(table.parent / name), None)  # an absolute path stays what it is
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: {sentence(error)}") from None
        if array.size == 0 or array.size != max(array.shape, default=1):
            raise ValueError(f"{name} has shape {array.shape}, not that of one segment's vector")
        vectors.append(array.reshape(-1))
    return _stacked(vectors)


# --- an array of all segments, and whose they are ------------------------------------------------------------------------------


def arrays_with_ids(folder: Path) -> list[Path]:
    """The arrays of a folder as clip-retrieval writes it, or of one where each `.npy` has a `.parquet` of ids beside it."""
    for name in ("video_emb", "img_emb", "emb"):
        arrays = sorted((folder / name).glob("*.npy"), key=_trailing_number)
        if arrays and (folder / "metadata").is_dir():
            return arrays
    arrays = sorted(folder.glob("*.npy"), key=_trailing_number)
    return arrays if arrays and all(ids_beside(path) is not None for path in arrays) else []


def ids_beside(path: Path) -> Path | None:
    """The Parquet that says whose the rows of an `.npy` are."""
    number = _trailing_number(path)[0]
    names = [path.with_suffix(".parquet")]
    if number >= 0:
        name = f"metadata_{re.findall(r'[0-9]+', path.stem)[-1]}.parquet"
        names += [path.parent / name, path.parent.parent / "metadata" / name]
    return next((name for name in names if name.is_file()), None)


def _trailing_number(path: Path) -> tuple[int, str]:
    found = re.findall(r"[0-9]+", path.stem)
    return (int(found[-1]) if found else -1), path.name


def rows_with_ids(arrays: list[Path]) -> Iterator[Video]:
    """The videos of arrays whose rows belong to them by a Parquet of ids. InputError if the two do not fit together."""
    places: dict[str, list[tuple[Any, int, int]]] = {}
    for which, path in enumerate(arrays):
        beside = ids_beside(path)
        if beside is None:
            raise InputError(f"{path} has no Parquet of ids beside it, as the others have")
        rows = list(read_parquet_rows(beside))
        try:
            shape = npy_shape(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path} cannot be used: {sentence(error)}") from None
        if len(shape) != 2 or shape[0] != len(rows):
            raise InputError(f"{path} has shape {shape}, which does not fit the {len(rows)} rows of {beside}")
        id_column = _id_column(beside, rows[0], *_OTHER_ID_COLUMNS) if rows else ""
        segment_column = column_of(list(rows[0]), _SEGMENT_COLUMNS) if rows else None
        for place, row in enumerate(rows):
            number = row[segment_column] if segment_column else len(places.get(cell_text(row[id_column]), ()))
            places.setdefault(cell_text(row[id_column]), []).append((number, which, place))

    def array(of: list[tuple[Any, int, int]]) -> np.ndarray:
        maps = {which: np.load(arrays[which], mmap_mode="r", allow_pickle=False) for _, which, _ in of}
        order = _in_order([_number(number, "segment") for number, _, _ in of], "segment")
        return np.stack([maps[of[place][1]][of[place][2]] for place in order])

    for video, of in places.items():
        yield Video(video, str(arrays[of[0][1]]), partial(array, of), video)
