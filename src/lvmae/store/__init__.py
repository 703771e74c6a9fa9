"""The embedding store: one row a video, its segments' times and embeddings. The seam between video and learning.

Enters: `VideoRecord`s from an encoder, an import or a model. Leaves: the same records, in any order and any window, as
views on a memory map. On disk it is plain Parquet that `datasets`, DuckDB or pandas read without this module. Price:
2 bytes a value, and as much again in the local cache once a shard is read, because Parquet itself cannot be mapped.

    store/manifest.json              what the rows mean: space, width, segment rule, encoder
    store/README.md                  a dataset card, so that `datasets.load_dataset("store")` finds the right files
    store/data/part-XXXXXXXX.parquet a row a video
    store/failures/part-….parquet    a row an input that could not be embedded, or not to its end, and why

Shards are written beside their place and renamed into it, so a shard is there whole or not at all.
"""

from lvmae.store.folder import TAGS_FILE
from lvmae.store.format import (
    EMBEDDINGS,
    REPRESENTATIONS,
    SCHEMA_VERSION,
    Failure,
    Manifest,
    VideoRecord,
    as_float32,
    l2_normalize,
    to_half,
)
from lvmae.store.locations import Relocation, located, relocate, remember_folder, why_missing
from lvmae.store.merging import MergeSummary, ids_of_other_ranks, in_share, merge_stores, rank_store, rank_stores
from lvmae.store.reader import EmbeddingStore
from lvmae.store.removal import Removal, remove_videos
from lvmae.store.sources import StoredSource, StoredSources, path_names, source_key, stored_sources
from lvmae.store.verifying import Problem, Verification, migrate_store, repair_store, verify_store
from lvmae.store.writer import StoreWriter

__all__ = [
    "EMBEDDINGS",
    "REPRESENTATIONS",
    "SCHEMA_VERSION",
    "TAGS_FILE",
    "EmbeddingStore",
    "Failure",
    "Manifest",
    "MergeSummary",
    "Problem",
    "Relocation",
    "Removal",
    "StoreWriter",
    "StoredSource",
    "StoredSources",
    "Verification",
    "VideoRecord",
    "as_float32",
    "ids_of_other_ranks",
    "in_share",
    "l2_normalize",
    "located",
    "merge_stores",
    "migrate_store",
    "path_names",
    "rank_store",
    "rank_stores",
    "relocate",
    "remember_folder",
    "remove_videos",
    "repair_store",
    "source_key",
    "stored_sources",
    "to_half",
    "verify_store",
    "why_missing",
]
