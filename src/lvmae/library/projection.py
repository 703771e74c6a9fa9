"""A library on a plane: every segment's place in two dimensions, by UMAP where it is installed and asked for, else by PCA.

Enters: a library's unit vectors. Leaves: (N, 2) float32 around 0, the larger spread 1. Price: PCA of 100,000 segments takes a
second or two, UMAP minutes; `segment_places` keeps what it computed in the cache.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from lvmae.errors import InputError
from lvmae.files.cache import cached
from lvmae.library.search import Segments
from lvmae.store import EmbeddingStore, l2_normalize

_SAMPLE = 20_000  # vectors that the directions are learned from
METHODS = ("pca", "umap")


def segment_places(store: EmbeddingStore, method: str = "pca") -> np.ndarray:
    """(N, 2) float32: the places of all segments of a store, in the order of its videos.

    Args:
        store: embeddings or representations.
        method: "pca", or "umap" (the package umap-learn).

    Raises:
        InputError: an unknown method, or UMAP is not installed.
    """
    if method not in METHODS:
        raise InputError(f"a projection is one of {', '.join(METHODS)}, not {method!r}")
    if method == "umap" and find_spec("umap") is None:
        raise InputError("UMAP needs another package: pip install 'lvmae[umap]', or take pca")

    def compute(path: object) -> None:
        segments = Segments(store)
        unit = np.concatenate([l2_normalize(block) for block in segments.blocks(8192)])
        np.save(str(path), _scaled(_umap(unit) if method == "umap" else _pca(unit)))

    file = cached("projections", f"{method}-1-{store.fingerprint.replace(':', '-')}.npy", compute)
    places: np.ndarray = np.load(file, allow_pickle=False)
    return places


def _pca(unit: np.ndarray) -> np.ndarray:
    """(N, 2): along the two directions in which a sample varies most; signs are those of the larger side."""
    sample = unit[np.linspace(0, len(unit) - 1, min(_SAMPLE, len(unit))).astype(np.int64)].astype(np.float64)
    mean = sample.mean(axis=0)
    _, directions = np.linalg.eigh(np.atleast_2d((sample - mean).T @ (sample - mean)))
    axes = directions[:, ::-1][:, :2]
    places = (unit - mean.astype(np.float32)) @ axes.astype(np.float32)
    if places.shape[1] < 2:
        places = np.concatenate([places, np.zeros((len(places), 1), np.float32)], axis=1)
    signs = np.where(np.abs(places.max(0)) >= np.abs(places.min(0)), 1, -1)
    scaled: np.ndarray = places * signs
    return scaled


def _umap(unit: np.ndarray) -> np.ndarray:
    import umap  # type: ignore[import-not-found, unused-ignore]

    count = max(2, min(15, len(unit) - 1))
    places: np.ndarray = umap.UMAP(n_neighbors=count, metric="cosine", random_state=0).fit_transform(unit)
    return places


def _scaled(places: np.ndarray) -> np.ndarray:
    middle = (places.max(0) + places.min(0)) / 2
    spread = float((places.max(0) - places.min(0)).max()) / 2 or 1.0
    return np.asarray((places - middle) / spread, np.float32)
