"""Plain rows as one Parquet file: results of whatever kind, for any tool that reads Parquet.

Enters: dictionaries, and what each column holds. Leaves: a file that appears whole. Reading is `read_parquet_rows`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lvmae.errors import WorkError

COLUMN_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[str]: pa.list_(pa.string()),
    list[int]: pa.list_(pa.int64()),
    list[float]: pa.list_(pa.float64()),
}


def write_parquet_rows(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]
) -> None:
    """Writes rows as a Parquet file, replacing it in one step.

    Args:
        path: the file, in a folder that exists.
        rows: a mapping each; a column that a row lacks is null there.
        columns: name -> one of `COLUMN_TYPES`, in the order they are to have.

    Raises:
        ValueError: a row has a column that is not among `columns`, or a value of another type.
        WorkError: the file cannot be written.
    """
    unknown = {name for row in rows for name in row} - set(columns)
    if unknown:
        raise ValueError(f"rows have columns that were not named: {', '.join(sorted(unknown))}")
    schema = pa.schema([(name, COLUMN_TYPES[kind]) for name, kind in columns.items()])
    try:
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"a value is not what its column holds: {error}") from None
    target = Path(path)
    beside = target.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        pq.write_table(table, beside)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise WorkError(
            f"{target} could not be written ({error.strerror or error}); make room there and try again"
        ) from None
