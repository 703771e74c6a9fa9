"""Tables that people write: CSV, TSV, JSONL and Parquet, read row by row or refused with the line's number.

`read_table` is the one reader of labels, captions, manifests and splits. A table is read whole or not at all: what would
lose a row or move a value to another row (a quote that is never closed, a field beyond the header, a column that is named
twice, bytes that are no text) is an `InputError` that names the line.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from lvmae.errors import InputError
from lvmae.files.tables import read_parquet_rows

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_field_limit = threading.Lock()  # csv's longest field is one number for the whole process


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        where: how a person finds it: "line 7", or "row 7" of a Parquet file.
        values: by the name of the column, as the header has it but for white space around it. Text of a CSV or TSV is as
            written; a field that a short row lacks is None.
    """

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """The columns that a table names, and its rows, in the order of the file."""

    columns: tuple[str, ...]
    rows: list[Row]


def read_table(path: str | os.PathLike[str], *, default: str = ".csv") -> Table:
    """All of a table, by path or URL; rows without any value are left out.

    Args:
        path: the file. Its suffix says what it is.
        default: what a file of any other suffix is read as.

    Raises:
        InputError: the file cannot be read, or a row of it could not be read as it was meant.
    """
    name = os.fspath(path)
    suffix = posixpath.splitext(name)[1].lower()
    suffix = suffix if suffix in TABLE_SUFFIXES else default
    if suffix == ".parquet":
        rows = [Row(f"row {number}", row) for number, row in enumerate(read_parquet_rows(name), start=1)]
    elif suffix in _JSON_SUFFIXES:
        rows = list(_json_rows(name, read_text(name)))
    else:
        columns, rows = _delimited_rows(name, read_text(name), _DELIMITERS[suffix])
    if suffix not in _DELIMITERS:
        columns = list(dict.fromkeys(column for row in rows for column in row.values))
    return Table(tuple(columns), [row for row in rows if any(map(_says_something, row.values.values()))])


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, UTF-8 or, where its first bytes say so, UTF-16; line ends are as they are.

    Raises:
        InputError: it cannot be read, or is no text; the line is named.
    """
    name = os.fspath(path)
    try:
        with fsspec.open(name, "rb") as file:
            data: bytes = file.read()
    except FileNotFoundError:
        raise InputError(f"There is no file {name}.") from None
    except (OSError, ImportError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{name} cannot be read: {said}.") from None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}, line {line}: it is not UTF-8 text; save the file in UTF-8.") from None
    if "\0" in text:
        raise InputError(
            f"{name}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: it holds a NUL, which no text has."
        )
    return text


def cell_text(value: Any) -> str:
    """A cell as text without white space around it; "" for null and NaN. A whole number of type float is written as an integer."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return ""
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
    return str(value).strip()


def column_of(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that has one of `names`, the first of them first, whatever its case; None if there is none."""
    folded = {str(column).strip().lower(): column for column in columns}
    return next((folded[name] for name in names if name in folded), None)


def _says_something(value: Any) -> bool:
    return value is not None and (not isinstance(value, str | float) or bool(cell_text(value)))


def _delimited_rows(name: str, text: str, delimiter: str) -> tuple[list[str], list[Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    lines = _Lines(text)
    with _fields_of_any_length():
        first = 1
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise InputError(f"{name}, {_broken(error, first, reader.line_num)}.") from None
            if fields is None:
                return header or [], rows
            if not fields:
                first = reader.line_num + 1
                continue
            if header is None:
                header = _header(name, fields, delimiter)
            else:
                if reader.line_num > first:
                    _refuse_swallowed(name, lines.between(first, reader.line_num), first, len(header), delimiter)
                if any(field.strip() for field in fields[len(header) :]):
                    raise InputError(
                        f"{name}, line {first}: it has {len(fields)} fields and the header names {len(header)} columns; "
                        "put a field that holds a separator between quotes."
                    )
                kept = [*fields[: len(header)], *[None] * (len(header) - len(fields))]
                rows.append(Row(f"line {first}", dict(zip(header, kept, strict=True))))
            first = reader.line_num + 1


def _header(name: str, fields: list[str], delimiter: str) -> list[str]:
    header = [field.strip() for field in fields]
    while header and not header[-1]:  # a separator at the end of each line
        header.pop()
    other = (
        next((mark for mark in ";\t," if mark != delimiter and mark in header[0]), None) if len(header) == 1 else None
    )
    if other:
        shown = {";": "semicolons", "\t": "tabs", ",": "commas"}
        raise InputError(
            f"{name}, line 1: its columns are separated by {shown[other]} and not by {shown[delimiter]}; "
            "save it as CSV with commas, or as TSV with tabs."
        )
    seen: set[str] = set()
    for column in header:
        if column and column.lower() in seen:
            raise InputError(f"{name}, line 1: it names the column {column!r} twice.")
        seen.add(column.lower())
    return header


def _broken(error: csv.Error, first: int, last: int) -> str:
    """What is wrong with the row that begins on line `first`, where the parser gave up on line `last`."""
    if "unexpected end" in str(error) or "expected after" in str(error):
        upto = f" up to line {last}" if last > first else ""
        return f"line {first}: a quote in it is not closed{upto}; write a quote inside a field twice, or remove it"
    return f"line {first}: it is no row of a table ({error})"


def _refuse_swallowed(name: str, lines: list[str], first: int, columns: int, delimiter: str) -> None:
    """A field that spans lines is refused where these look like rows of their own: its quote was not meant as one."""
    counts = [line.count(delimiter) + 1 for line in lines]
    if all(count == columns for count in counts) or (columns > 2 and columns in counts[1:-1]):
        raise InputError(
            f"{name}, line {first}: a quote in it is closed on line {first + len(lines) - 1} only, and the lines between "
            "look like rows; write a quote inside a field twice, or remove it."
        )


class _Lines:
    """The lines of a text as the csv module counts them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines: list[str] | None = None

    def between(self, first: int, last: int) -> list[str]:
        """Lines `first` to `last`, counted from 1."""
        if self._lines is None:
            self._lines = list(io.StringIO(self._text, newline=""))
        return self._lines[first - 1 : last]


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    with _field_limit:
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _json_rows(name: str, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):  # a string may hold every other separator of lines
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}, line {number}: this is no JSON ({error.msg}).") from None
        except _TwiceError as error:
            raise InputError(f"{name}, line {number}: it names {error} twice.") from None
        if not isinstance(row, dict):
            raise InputError(f'{name}, line {number}: each line must be an object, such as {{"id": ...}}.')
        yield Row(f"line {number}", {str(key).strip(): value for key, value in row.items()})


class _TwiceError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _TwiceError(repr(key))
        seen[key] = value
    return seen
