"""What a store's rows mean and where its files lie: the format, shared by the writer and the reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lvmae.errors import InputError
from lvmae.files.identity import UNKNOWN, FileIdentity
from lvmae.store.index import row_digest

SCHEMA_VERSION = 1
_LEAST_COSINE = 0.999  # between a segment's embedding as it was given and in half precision
_LEAST_NORM = 1e-15  # of a float32 vector whose squares are exact enough
METADATA = b"lvmae"  # of a shard's schema: {"table", "number", "manifest"} as JSON
TABLES = ("data", "failures")
EMBEDDINGS = "embeddings"
REPRESENTATIONS = "representations"

CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
tags:
- lvmae
---

# {kind} of long videos

A row a video: `id`, `source`, `duration` and the segments' `starts` and `ends` in seconds, and `embeddings`, a list of
{dim} float16 values a segment, in the space `{space_id}`. Written by lvmae;
`datasets.load_dataset("parquet", data_files="data/*.parquet")` opens it without.
"""


@dataclass(frozen=True)
class Manifest:
    """The description of a store's rows. Stores can be used together only if their `space_id` is the same."""

    space_id: str
    """Names the embedding space: model, revision, frames, pooling, preprocessing, segment length."""
    dim: int
    """Returns the width D of one embedding."""
    segments: dict[str, Any]
    """The segment rule, such as `{"kind": "fixed", "seconds": 5.0}`."""
    encoder: dict[str, Any]
    """Name, options and licence of the encoder: enough to rebuild its text side."""
    kind: str = EMBEDDINGS
    run: dict[str, Any] | None = None
    """Representations only: path and fingerprint of the run they come from, and the store they were computed on."""
    schema_version: int = SCHEMA_VERSION

    def wrong(self) -> str:
        """Returns what is wrong with the manifest, in words; empty if nothing is."""
        if not isinstance(self.space_id, str) or not self.space_id:
            return f"its space_id is {self.space_id!r}"
        if type(self.dim) is not int or self.dim < 1:
            return f"its dim is {self.dim!r}"
        if self.kind not in (EMBEDDINGS, REPRESENTATIONS):
            return f"its kind is {self.kind!r}"
        for name in ("segments", "encoder", "run"):
            value = getattr(self, name)
            if not isinstance(value, dict) and not (name == "run" and value is None):
                return f"its {name} is {value!r}"
        return ""


@dataclass
class VideoRecord:
    """One video: L segments with their times in seconds and their embeddings."""

    id: str
    source: str
    duration: float
    starts: np.ndarray
    """(L,) seconds."""
    ends: np.ndarray
    """(L,) seconds."""
    embeddings: np.ndarray
    """(L, D); float16 once stored."""
    cls: np.ndarray | None = None
    """(D,) float32; representations only."""
    mean: np.ndarray | None = None
    """(D,) float32; representations only."""
    center: np.ndarray | None = None
    """(D,) float32, the mean of the embeddings, which a run with center=video takes off; representations by such a run only."""
    layers: np.ndarray | None = None
    """(K, D) float32, the mean of the tokens after each of K blocks of the encoder; where representations were made with them."""
    shortened: str = ""
    """Why the end of the video is missing here, if it is; then `duration` is that of what was kept."""
    identity: FileIdentity = UNKNOWN
    """What the source was when it was embedded."""
    made_from: str = ""
    """Representations only: the digest of the embeddings that they were made from; empty if nobody noted it."""


@dataclass(frozen=True)
class Failure:
    """An input that could not be embedded, or only in part, with a readable reason."""

    id: str
    path: str
    reason: str
    kept: float = 0.0
    """Seconds of it that are in the store all the same."""
    identity: FileIdentity = UNKNOWN
    """What the source was when it failed."""


def check_alike(here: Manifest, wanted: Manifest, where: str) -> None:
    """Raises InputError if two manifests' rows must not be in one store; `where` names the one of `here`."""
    for name, what in (
        ("kind", "kind"),
        ("space_id", "embedding space"),
        ("dim", "width"),
        ("segments", "segment rule"),
        ("run", "run"),
    ):
        ours, theirs = getattr(here, name), getattr(wanted, name)
        if ours != theirs:
            raise InputError(f"{where} holds {what} {ours!r}, not {theirs!r}; two never mix: choose another store")


def wrong_with(schema: pa.Schema, table: str) -> str:
    """Why a shard of this schema cannot be read, in words; empty if it can. Shards of older versions lack later columns."""
    needed: dict[str, Any] = {"id": pa.string(), "path": pa.string(), "reason": pa.string()}
    if table == "data":
        times = pa.list_(pa.float64())
        needed = {"id": pa.string(), "source": pa.string(), "duration": pa.float64(), "starts": times, "ends": times}
        column = schema.field("embeddings").type if "embeddings" in schema.names else None
        if column is None or not pa.types.is_list(column):
            return "it lacks embeddings"
        if not pa.types.is_fixed_size_list(column.value_type) or not pa.types.is_float16(column.value_type.value_type):
            return f"its embeddings are {column}"
    for name, kind in needed.items():
        if name not in schema.names:
            return f"it lacks {name}"
        if schema.field(name).type != kind:
            return f"its {name} are {schema.field(name).type}, not {kind}"
    return ""


# These came later: shards without them are read as if all were null.
IDENTITY_COLUMNS = [
    ("source_bytes", pa.int64()),
    ("source_changed", pa.float64()),
    ("source_digest", pa.string()),
]


def identity_columns(identities: Iterable[FileIdentity]) -> dict[str, pa.Array]:
    """The identities of rows as columns."""
    values = [(one.bytes, one.changed, one.digest) for one in identities]
    return {name: pa.array([row[place] for row in values], kind) for place, (name, kind) in enumerate(IDENTITY_COLUMNS)}


def identity_in(row: Mapping[str, Any]) -> FileIdentity:
    """The identity that a row tells, of any age."""
    return FileIdentity(*(row.get(name) for name, _ in IDENTITY_COLUMNS))


def data_schema(manifest: Manifest) -> pa.Schema:
    columns = [
        ("id", pa.string()),
        ("source", pa.string()),
        ("duration", pa.float64()),
        ("starts", pa.list_(pa.float64())),
        ("ends", pa.list_(pa.float64())),
        ("embeddings", pa.list_(pa.list_(pa.float16(), manifest.dim))),
        *IDENTITY_COLUMNS,
    ]
    if manifest.kind == REPRESENTATIONS:
        columns += [(name, pa.list_(pa.float32())) for name in ("cls", "mean", "center")] + [("made_from", pa.string())]
        if layers_of(manifest):
            columns.append(("layers", pa.list_(pa.float32())))
    return pa.schema(columns)


def layers_of(manifest: Manifest) -> tuple[int, ...]:
    """The blocks of the encoder, from 1, whose tokens' means a store of representations has; none by default."""
    return tuple((manifest.run or {}).get("layers", ()))


# `kept` came later: stores without it are read as if it were 0.
FAILURE_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("reason", pa.string()), ("kept", pa.float64()), *IDENTITY_COLUMNS]
)


def as_float32(embeddings: np.ndarray) -> np.ndarray:
    """Returns a copy in float32. numpy widens float16 in software, seven times slower than torch does."""
    if embeddings.dtype != np.float16:
        return np.array(embeddings, dtype=np.float32)
    import torch

    wide: np.ndarray = torch.from_numpy(embeddings.copy()).float().numpy()
    return wide


def l2_normalize(embeddings: np.ndarray) -> np.ndarray:
    """Normalises vectors (…, D) of any float type to unit length, float32; a zero vector stays zero."""
    given = np.asarray(embeddings)
    values = as_float32(given)
    with np.errstate(over="ignore"):
        norm = np.sqrt(np.einsum("...d,...d->...", values, values))
    if (
        given.dtype != np.float16 and not ((norm > _LEAST_NORM) & (norm < np.inf)).all()
    ):  # squares leave what float32 holds
        values = _scaled(given)
        norm = np.sqrt(np.einsum("...d,...d->...", values, values))
    values *= np.reciprocal(np.maximum(norm, np.finfo(np.float32).tiny))[..., None]
    return values


def to_half(values: np.ndarray) -> np.ndarray:
    """Converts embeddings (L, D) to half precision, as a store holds them.

    Raises ValueError if that loses something: values that are not finite or above 65504, or so small that a segment's direction
    is another.
    """
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, dtype=np.float16)
    if not np.isfinite(half).all():
        raise ValueError("do not fit float16 (65504 at most)" if np.isfinite(values).all() else "are not finite")
    if values.dtype != np.float16:
        rows = np.flatnonzero(np.abs(values).max(axis=1) > 0)  # zeros have no direction
        cosines = np.einsum("ld,ld->l", l2_normalize(values[rows]), l2_normalize(half[rows]))
        if len(rows) and cosines.min() < _LEAST_COSINE:
            worst = rows[cosines.argmin()]
            raise ValueError(
                f"are so small in segment {worst} (up to {np.abs(values[worst]).max():.1g}) that half precision turns it (cosine "
                f"{cosines.min():.3f}); multiply all features by a power of 2 first"
            )
    return half


def _scaled(values: np.ndarray) -> np.ndarray:
    """Every vector divided by its largest value, float32; vectors of zeros, and those that are not finite, as they are."""
    wide = values.astype(np.float64)
    largest = np.abs(wide).max(axis=-1, keepdims=True)
    usable = (largest > 0) & np.isfinite(largest)
    return np.asarray(wide / np.where(usable, largest, 1.0), np.float32)


def shard_number(name: str) -> int | None:
    digits = name.removeprefix("part-").removesuffix(".parquet")
    return int(digits) if digits.isdigit() else None


def row_digests(table: pa.Table) -> list[str]:
    """Of every row of `data`, a digest of its content: times, embeddings and pooled features, not its id and source."""
    batches = table.combine_chunks().to_batches()
    return [digest for batch in batches for digest in _batch_digests(batch)]


def _batch_digests(batch: pa.RecordBatch) -> Iterator[str]:
    parts = []
    for name in ("starts", "ends", "embeddings", "cls", "mean", "center", "layers"):
        if name in ("center", "layers") and name not in batch.schema.names:
            continue  # they came later
        if name in batch.schema.names:
            column = batch.column(name)
            values = column.values
            while hasattr(values, "values"):
                values = values.values
            flat = np.from_dlpack(values)
            width = column.type.value_type.list_size if name == "embeddings" else 1
            parts.append((flat, np.from_dlpack(column.offsets).astype(np.int64) * width))
        else:
            parts.append((np.empty(0), np.zeros(batch.num_rows + 1, np.int64)))
    for row, duration in enumerate(batch.column("duration").to_pylist()):
        yield row_digest(duration, *(flat[offsets[row] : offsets[row + 1]] for flat, offsets in parts))
