"""Lists of videos' ids, as people and commands pass them on: one id a line, or a table with a column of ids."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lvmae.errors import InputError
from lvmae.files.table_files import TABLE_SUFFIXES, cell_text, column_of, read_table, read_text
from lvmae.files.writing import write_text

_COLUMNS = ("id", "video", "video_id")


def read_ids(path: str | os.PathLike[str]) -> list[str]:
    """The ids of a list, each once, in its order.

    Args:
        path: a text with one id a line (lines that are empty or begin with `# ` are left out), or a table (CSV, TSV, JSONL,
            Parquet) with a column `id`, `video` or `video_id`.

    Raises:
        InputError: the file cannot be read, or holds no ids.
    """
    name = os.fspath(path)
    found: list[str] | None = None
    if Path(name).suffix.lower() in TABLE_SUFFIXES:
        table = read_table(name)
        column = column_of(table.columns, _COLUMNS)
        if column is not None:
            found = [cell_text(row.values.get(column)) for row in table.rows]
        elif len(table.columns) != 1:
            raise InputError(f"{name} has no column of ids: name one of its columns id.")
    if found is None:
        lines = read_text(name).splitlines()
        found = [line.strip() for line in lines if not line.startswith("# ")]
    found = list(dict.fromkeys(identity for identity in found if identity))
    if not found:
        raise InputError(f"{name} holds no ids: give one a line, or a table with a column id.")
    return found


def write_ids(path: str | os.PathLike[str], ids: Iterable[str]) -> None:
    """Writes one id a line. Raises WorkError if that fails, ValueError for an id with a line break in it."""
    lines = list(ids)
    for line in lines:
        if line.splitlines() != [line]:
            raise ValueError(f"the id {line!r} does not fit on one line")
    write_text(path, "".join(f"{line}\n" for line in lines))
