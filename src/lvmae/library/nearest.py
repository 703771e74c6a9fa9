"""The nearest of N vectors by cosine: exactly, or through an index that faiss builds once and that lies in the cache.

The index is an inverted file over 8-bit codes. A query visits the lists nearest to it, and the best of what it finds there is
scored again exactly, from the vectors themselves: so scores are exact, and only what lies in a list not visited can be missed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch

from lvmae.files.cache import cache_folder, cached
from lvmae.process import say
from lvmae.progress import progress
from lvmae.store import l2_normalize

INDEX_FROM = 200_000
"""Vectors from which on an index is used: an exact search of fewer takes about a tenth of a second."""

_EDITION = "ivf-sq8"  # part of an index's name in the cache: changes when the index would be built differently
_TRAINED_ON = 40  # vectors a list that its centre is learned from; faiss warns of fewer than 39
_VISITED = 8  # one list in so many is visited
_SPARE = 64  # candidates scored exactly beyond those asked for
_TIED = 64  # vectors kept beyond those asked for, so that equal ones are told apart by their places
_SCORED = 1024  # vectors scored at once: as float32 they stay in a core's cache, which halves the time
_ADDED = 8192  # vectors put into an index at once

_ONE_AT_A_TIME = Lock()  # the number of torch's threads is the process's, not the caller's


class Vectors(Protocol):
    """N vectors of any norm and float type, in a fixed order."""

    dim: int

    @property
    def key(self) -> str:
        """Returns a name of the content, the key of a cached index."""

    def __len__(self) -> int: ...

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """Yields all vectors in order, (n, D) each, about `size` at a time."""

    def take(self, places: np.ndarray) -> np.ndarray:
        """Returns the vectors (n, D) at the indices (n,)."""


class Nearest:
    """Searches N vectors by cosine.

    With fewer than `INDEX_FROM` of them, with `exact`, or without faiss, every vector is read; otherwise the index of these vectors
    is taken from the cache, or built and put there.
    """

    def __init__(self, vectors: Vectors, *, exact: bool = False) -> None:
        self._vectors, self._exact_only = vectors, exact

    @cached_property
    def index(self) -> Any | None:
        """The index, or None if every vector is read."""
        if self._exact_only or len(self._vectors) < INDEX_FROM:
            return None
        try:
            import faiss
        except ImportError:
            say(
                f"note: {len(self._vectors):,} vectors are searched one by one; pip install 'lvmae[search]' builds an index"
            )
            return None
        path = cached(
            "search", index_file(self._vectors.key).name, lambda path: _write(build_index(self._vectors), path)
        )
        return _opened(faiss.read_index(str(path), faiss.IO_FLAG_MMAP))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest, best first: indices (Q, min(k, N)) int64 and cosines of the same shape, float32.

        Args:
            queries: (Q, D), of any length.
            k: how many, at least 1.
        """
        queries = l2_normalize(queries)
        k = min(k, len(self._vectors))
        if self.index is None:
            return self._exact(queries, k)
        _, found = self.index.search(
            queries, min(k + _SPARE, len(self._vectors))
        )  # (Q, k + spare), -1 if there are no more
        if (found[:, :k] < 0).any():  # more is wanted than lies in the lists that are visited
            return self._exact(queries, k)
        rows = [self._ranked(query, np.sort(row[row >= 0]), k) for query, row in zip(queries, found, strict=True)]
        return np.stack([places for places, _ in rows]), np.stack([scores for _, scores in rows])

    def _ranked(self, query: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of some vectors, in ascending places, by the cosine of each; of equal ones the first.

        One by one and in double precision: equal vectors get equal cosines, wherever they lie.
        """
        cosines = cosines_of(self._vectors.take(candidates), query)
        best = np.argsort(-cosines, kind="stable")[:k]
        return candidates[best], cosines[best]

    def _exact(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        # One thread: blocks this small gain nothing from more, and lose several times over where other work holds the cores.
        with _ONE_AT_A_TIME:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return self._scan(queries, k)
            finally:
                torch.set_num_threads(threads)

    def _scan(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked = torch.from_numpy(queries)
        scores = torch.empty(len(queries), 0, dtype=torch.float32)
        places = torch.empty(len(queries), 0, dtype=torch.int64)
        first = 0
        for block in self._vectors.blocks(_SCORED):
            wide = torch.from_numpy(np.array(block)).float()
            # Lengths are divided out of the scores rather than the vectors: a pass over the block less.
            lengths = torch.einsum("nd,nd->n", wide, wide).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
            best = (asked @ wide.T / lengths).topk(min(k + _TIED, len(block)), dim=1)
            scores, places = torch.cat([scores, best.values], 1), torch.cat([places, best.indices + first], 1)
            if scores.shape[1] > k + _TIED:
                kept = scores.topk(k + _TIED, dim=1)
                scores, places = kept.values, places.gather(1, kept.indices)
            first += len(block)
        rows = [self._ranked(query, np.sort(row), k) for query, row in zip(queries, places.numpy(), strict=True)]
        return np.stack([row for row, _ in rows]), np.stack([row for _, row in rows])


def cosines_of(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines (n,) float32 of vectors (n, D) with a unit vector (D,), within [-1, 1]; equal vectors have equal ones."""
    wide = np.asarray(vectors, np.float64)
    lengths = np.sqrt((wide * wide).sum(1))
    products = (wide * query).sum(1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    cosines: np.ndarray = np.clip(products, -1.0, 1.0).astype(np.float32)
    return cosines


def build_index(vectors: Vectors) -> Any:
    """An inverted file of 2 sqrt(N) lists of 8-bit codes. Price: a byte a value of memory while it is built."""
    import faiss

    count = len(vectors)
    lists = max(1, min(round(2 * math.sqrt(count)), count // _TRAINED_ON))
    index: Any = faiss.index_factory(vectors.dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.niter, index.cp.seed = True, 10, 1
    sample = np.random.default_rng(0).permutation(count)[: lists * _TRAINED_ON]
    index.train(l2_normalize(vectors.take(np.sort(sample))))
    with progress(desc="search index", unit="vectors", total=count) as bar:
        for block in vectors.blocks(_ADDED):
            index.add(l2_normalize(block))
            bar.update(len(block))
    return index


def index_file(key: str) -> Path:
    """Where the index of the vectors of this name is kept."""
    return cache_folder() / "search" / f"{hashlib.sha256(f'{_EDITION} {key}'.encode()).hexdigest()[:32]}.faiss"


def _opened(index: Any) -> Any:
    index.nprobe = max(16, index.nlist // _VISITED)
    return index


def _write(index: Any, path: Path) -> None:
    import faiss

    try:
        faiss.write_index(index, os.fspath(path))
    except RuntimeError as error:
        raise OSError(*error.args) from None
