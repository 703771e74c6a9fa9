"""The nearest of a million vectors: the index against exact search, in time and in what it finds. Prints JSON.

    python benchmarks/search.py --out benchmarks/results/search.json

The library is made up, but shaped like real ones: a segment's vector is a mixture of a few of 1,000 concepts, scenes last several
segments, and each segment adds noise of its own. Three kinds of queries: segments with noise added (more like this), single
concepts with noise added (texts, which lie apart from all segments), and random directions, which nothing matches and the index
finds hardest. Times are of one query at a time, the whole way from the query to exact scores read from the store; `captions` is the
search among a million texts that `lvmae interpret` does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from lvmae.interpretation import CaptionIndex
from lvmae.library import Library, Nearest, nearest
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

CONCEPTS, MIXED, RANK = 1000, 5, 64
K = 10


def make_concepts(dim: int) -> np.ndarray:
    """(CONCEPTS, dim) unit vectors that share `RANK` directions more than others, as the names of things do."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((CONCEPTS, RANK)) @ rng.standard_normal((RANK, dim)) / RANK**0.5
    return l2_normalize(shared + 0.5 * rng.standard_normal((CONCEPTS, dim)))


def write_store(path: Path, concepts: np.ndarray, videos: int, segments: int) -> EmbeddingStore:
    """`videos` videos of `segments` segments each."""
    dim = concepts.shape[1]
    starts = np.arange(segments) * 5.0
    with StoreWriter(path, Manifest("benchmark", dim, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        for number in range(videos):
            rng = np.random.default_rng([1, number])
            scene = np.cumsum(rng.random(segments) < 0.15)  # a scene lasts 7 segments on average
            mixed = rng.integers(CONCEPTS, size=(scene[-1] + 1, MIXED))
            weights = rng.dirichlet(np.full(MIXED, 0.5), size=len(mixed)).astype(np.float32)
            scenes = l2_normalize(np.einsum("sm,smd->sd", weights, concepts[mixed]))
            noise = rng.standard_normal((segments, dim), dtype=np.float32) * (0.4 / dim**0.5)
            rows = l2_normalize(scenes[scene] + noise).astype(np.float16)
            writer.add(VideoRecord(f"v{number:06d}", "", segments * 5.0, starts, starts + 5, rows))
    return EmbeddingStore.open(path)


def noisy(rows: np.ndarray, share: float) -> np.ndarray:
    """Unit vectors with noise of length `share` added."""
    rng = np.random.default_rng(2)
    return l2_normalize(l2_normalize(rows) + rng.standard_normal(rows.shape) * (share / rows.shape[1] ** 0.5))


def milliseconds(call: Callable[[np.ndarray], Any], queries: np.ndarray) -> dict[str, float]:
    """Median and 95th percentile of one query at a time, after a warm-up."""
    call(queries[:1])
    times = []
    for query in queries:
        began = time.perf_counter()
        call(query[None])
        times.append((time.perf_counter() - began) * 1000)
    return {"median_ms": round(float(np.median(times)), 1), "p95_ms": round(float(np.quantile(times, 0.95)), 1)}


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of the exact K that the index finds."""
    return round(float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, expected, strict=True)])), 4)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--segments", type=int, default=500)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    concepts = make_concepts(arguments.dim)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LVMAE_CACHE"] = f"{folder}/cache"
        store = write_store(Path(folder) / "store", concepts, arguments.videos, arguments.segments)
        library = Library(store)
        vectors = library._segments
        rng = np.random.default_rng(3)
        kinds = {
            "segments": noisy(vectors.take(np.sort(rng.integers(len(vectors), size=arguments.queries))), 0.4),
            "texts": noisy(concepts[rng.integers(CONCEPTS, size=arguments.queries)], 0.4),
            "random": l2_normalize(rng.standard_normal((arguments.queries, arguments.dim))),
        }
        exact = Nearest(vectors, exact=True)
        nearest.INDEX_FROM = 0
        indexed = Nearest(vectors)
        began = time.perf_counter()
        index = indexed.index
        built = time.perf_counter() - began
        assert index is not None
        size = nearest.index_file(vectors.key).stat().st_size
        began = time.perf_counter()
        assert Nearest(vectors).index is not None
        opened = time.perf_counter() - began
        found: dict[str, Any] = {}
        for kind, queries in kinds.items():
            expected, _ = exact.search(queries, K)
            found[kind] = {
                **milliseconds(lambda query: indexed.search(query, K), queries),
                "recall_at_10": recall(indexed.search(queries, K)[0], expected),
                "moments": milliseconds(lambda query: library.moments(query[0], K), queries),
            }
        found["exact"] = milliseconds(lambda query: exact.search(query, K), kinds["texts"][:10])
        captions = CaptionIndex(np.concatenate(list(vectors.blocks(1 << 16))))
        found["captions"] = milliseconds(lambda query: captions.search(query, K), kinds["texts"][:20])
    result = {
        "benchmark": "search",
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1),
            "torch": torch.__version__,
            "faiss": faiss.__version__,
        },
        "vectors": len(vectors),
        "dim": arguments.dim,
        "index": {
            "lists": index.nlist,
            "visited": index.nprobe,
            "build_seconds": round(built, 1),
            "open_seconds": round(opened, 3),
            "mebibytes": size >> 20,
        },
        **found,
        "peak_resident_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
