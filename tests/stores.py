"""Stores for tests: made by the real writer, from arrays; and as an older version would have left them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord

SEGMENTS = {"kind": "fixed", "seconds": 5.0}


def video(name: str, embeddings: np.ndarray, *, seconds: float = 5.0, **fields: Any) -> VideoRecord:
    """A video of these embeddings (L, D), whose segments follow each other."""
    starts = np.arange(len(embeddings)) * seconds
    given = {"source": f"/films/{name}.mp4", "duration": len(embeddings) * seconds, **fields}
    return VideoRecord(id=name, starts=starts, ends=starts + seconds, embeddings=embeddings, **given)


def random_videos(count: int, *, dim: int = 4, length: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Ids v000, v001, ... and their embeddings (length, dim)."""
    generator = np.random.default_rng(seed)
    return {f"v{number:03d}": generator.normal(size=(length, dim)) for number in range(count)}


def write_store(
    path: Path,
    videos: Mapping[str, np.ndarray],
    *,
    space: str = "test-space",
    shard_bytes: int = 64 << 20,
    failed: Mapping[str, str] | None = None,
    **manifest: Any,
) -> EmbeddingStore:
    """Adds videos, by id, to the store at `path`, new or begun; and failures, by id, with their reasons.

    With `shard_bytes=1` every video has a shard of its own.
    """
    dim = next(iter(videos.values())).shape[1]
    described = {"segments": SEGMENTS, "encoder": {"name": "none"}, **manifest}
    with StoreWriter(path, Manifest(space, dim, **described), shard_bytes=shard_bytes) as writer:
        for name, embeddings in videos.items():
            writer.add(video(name, np.asarray(embeddings)))
        for name, reason in (failed or {}).items():
            writer.fail(name, f"/films/{name}.mp4", reason)
    return EmbeddingStore(path)


def as_version_0_1(path: Path) -> None:
    """Takes away what version 0.1 did not write: index, page checksums, the shards' metadata, and the later columns."""
    for shard in path.glob("*/part-*.parquet"):
        table = pq.read_table(shard)
        later = [name for name in table.column_names if name.startswith("source_") or name == "made_from"]
        pq.write_table(table.drop_columns(later).replace_schema_metadata(None), shard, use_dictionary=False)
    shutil.rmtree(path / "index", ignore_errors=True)
