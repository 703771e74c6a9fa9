"""Rows of a Parquet file, of whatever kind: written whole, read one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lvmae.errors import InputError, WorkError
from lvmae.files.urls import without_secrets
from lvmae.files.writing import reason, replacing

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
    try:
        with replacing(path) as beside:
            pq.write_table(table, beside)
    except OSError as error:
        raise WorkError(
            f"{os.fspath(path)} could not be written ({reason(error)}); make room there and try again"
        ) from None


def read_parquet_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of any Parquet file, by path or URL, a dict each, lists as numpy arrays (nested ones of equal length as 2-D arrays).

    Raises:
        InputError: the file is not Parquet.
    """
    said = without_secrets(os.fspath(path))
    try:
        file = pq.ParquetFile(fsspec.open(path).open() if "://" in os.fspath(path) else path)
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        raise InputError(f"{said} cannot be read as Parquet: {without_secrets(str(error))}") from None
    _check_claims(said, file.metadata)
    batches = file.iter_batches(batch_size=64, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{said} is damaged: {without_secrets(str(error))}") from None
        if batch is None:
            return
        for row in range(batch.num_rows):
            yield {name: _plain(batch.column(name)[row]) for name in batch.schema.names}


_FREE_BYTES = 256 << 20  # a claim below this is never too much
_MOST_RATIO = 100  # of claimed bytes to bytes in the file, above that


def _check_claims(said: str, metadata: Any) -> None:
    """Raises InputError if a column claims far more values than its bytes can hold, before any is read."""
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            claimed = max(column.num_values * 4, column.total_uncompressed_size)
            if claimed > max(_FREE_BYTES, _MOST_RATIO * column.total_compressed_size):
                raise InputError(
                    f"{said} claims {claimed / 2**30:,.1f} GiB in the column '{column.path_in_schema}', in "
                    f"{column.total_compressed_size / 2**20:,.1f} MiB of the file; it is not read"
                )


def _plain(scalar: Any) -> Any:
    if not isinstance(scalar, pa.ListScalar | pa.FixedSizeListScalar | pa.LargeListScalar) or scalar.values is None:
        return scalar.as_py()
    values = scalar.values
    if isinstance(values, pa.FixedSizeListArray):
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    if isinstance(values, pa.ListArray | pa.LargeListArray):
        widths = set(np.diff(values.offsets.to_numpy()).tolist())
        if len(widths) == 1:
            return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
        return [np.asarray(item) for item in values.to_pylist()]
    return values.to_numpy(zero_copy_only=False)
