"""Two stores of the same videos compared: do their encoders agree on which videos are alike?

Enters: two stores, or representations, that share ids. Leaves: a `Comparison`. Price: every vector is read once, and each video in
both is compared with all others.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lvmae.errors import InputError
from lvmae.library.nearest import Nearest
from lvmae.library.search import Features
from lvmae.process import own_state
from lvmae.store import EmbeddingStore

_LEAST = 3  # videos: of two, each is the other's nearest in any store
_ASKED_AT_ONCE = 512  # videos
_SAME = 1e-6  # of the length of features, below which their scatter is rounding


@dataclass(frozen=True)
class Comparison:
    """How far two stores agree, over the videos that both hold."""

    videos: int
    """Videos that both hold."""
    only_first: int
    only_second: int
    k: int
    """Nearest videos that were compared, for each video."""
    overlap: float
    """Mean share of the k nearest videos that are the same in both stores, 0 to 1."""
    chance: float
    """The overlap of stores that have nothing to do with each other."""
    cka: float
    """Linear centred kernel alignment of the videos' mean features, 0 to 1. Of few videos in a wide space it is high by itself."""
    cka_debiased: float | None
    """The same without this bias: around 0 for independent features. None if it is undefined, as for fewer than 4 videos."""

    def to_json(self) -> str:
        """Returns all fields as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """Returns the figures as text, one per line."""
        debiased = "undefined" if self.cka_debiased is None else f"{self.cka_debiased:.3f}"
        return (
            f"videos in both       {self.videos:,} (only in the first {self.only_first:,}, in the second {self.only_second:,})\n"
            f"neighbour overlap    {self.overlap:.3f} of the {self.k} nearest (by chance {self.chance:.3f})\n"
            f"linear CKA           {self.cka:.3f} (debiased: {debiased})\n"
        )


@own_state()
def compare(first: str | Path | EmbeddingStore, second: str | Path | EmbeddingStore, *, k: int = 10) -> Comparison:
    """Returns how far two stores agree on which videos are alike, over the ids that both hold.

    Args:
        first: embeddings or representations; the widths of the two may differ.
        second: the other one.
        k: nearest videos to compare; fewer where the stores share fewer than k + 2 videos.

    Raises:
        InputError: fewer than three videos in both, or features that are all the same.
    """
    stores = EmbeddingStore.open(first), EmbeddingStore.open(second)
    if k < 1:
        raise InputError(f"at least one neighbour must be compared, not {k}")
    places = [{video: place for place, video in enumerate(store.ids)} for store in stores]
    shared = sorted(places[0].keys() & places[1].keys())
    if len(shared) < _LEAST:
        many = f"only {len(shared)} video id" + "s" * (len(shared) > 1) if shared else "no video id"
        raise InputError(
            f"{stores[0].path} and {stores[1].path} share {many}: to compare them, both must hold at least {_LEAST} "
            "of the same videos under the same ids"
        )
    x, y = (
        store.mean_features[[of[video] for video in shared]] for store, of in zip(stores, places, strict=True)
    )  # (V, D), (V, E)
    for store, rows in zip(stores, (x, y), strict=True):
        if np.linalg.norm(rows - rows.mean(axis=0), axis=1).max() <= _SAME * np.linalg.norm(rows, axis=1).max():
            raise InputError(
                f"all {len(shared)} videos in both stores have the same features in {store.path}: there is nothing to compare"
            )
    k = min(k, len(shared) - 2)
    cka, debiased = linear_cka(x, y)
    return Comparison(
        videos=len(shared),
        only_first=len(stores[0]) - len(shared),
        only_second=len(stores[1]) - len(shared),
        k=k,
        overlap=neighbour_overlap(x, y, k),
        chance=k / (len(shared) - 1),
        cka=cka,
        cka_debiased=debiased,
    )


def neighbour_overlap(first: np.ndarray, second: np.ndarray, k: int) -> float:
    """Returns the mean share of the k nearest rows that are the same in (V, D) and (V, E), by cosine around the mean; k < V."""
    pairs = zip(_neighbours(first, k), _neighbours(second, k), strict=True)
    return sum(len(one & other) for one, other in pairs) / (k * len(first))


def _neighbours(values: np.ndarray, k: int) -> list[set[int]]:
    rows = Features(values, "not kept")
    nearest = Nearest(rows, exact=True)
    found = []
    for begin in range(0, len(rows), _ASKED_AT_ONCE):
        asked = np.arange(begin, min(begin + _ASKED_AT_ONCE, len(rows)))
        places, _ = nearest.search(rows.take(asked), k + 1)
        # Itself is not always among them: of equal rows the first come first.
        found += [
            {p for p in row if p != own} if own in row else set(row[:k])
            for own, row in enumerate(places.tolist(), begin)
        ]
    return found


def linear_cka(first: np.ndarray, second: np.ndarray) -> tuple[float, float | None]:
    """Returns linear CKA of (V, D) and (V, E), and its debiased form: None for fewer than 4 rows or where it has no value.

    From products of features, so that no (V, V) matrix is made. Kornblith et al. 2019, eq. 5; debiased by the estimator of HSIC
    of Song et al. 2012, eq. 5.
    """
    rows = [np.asarray(values, np.float64) for values in (first, second)]
    rows = [values - values.mean(axis=0) for values in rows]
    # Scaled to a mean square of 1: neither form depends on it, and nothing underflows.
    x, y = (values / np.sqrt((values * values).sum(axis=1).mean()) for values in rows)
    products = [float(((a.T @ b) ** 2).sum()) for a, b in ((x, y), (x, x), (y, y))]
    cka = _ratio(*products)
    assert cka is not None
    if len(x) <= _LEAST:
        return cka, None
    of_x, of_y = (x * x).sum(axis=1), (y * y).sum(axis=1)  # (V,) the diagonals of the Gram matrices
    pairs = zip(products, ((of_x, of_y), (of_x, of_x), (of_y, of_y)), strict=True)
    return cka, _ratio(*(_debiased(product, *diagonals) for product, diagonals in pairs))


def _debiased(product: float, a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased HSIC times V (V - 3). Rows are centred, so a Gram matrix without its diagonal has the row sums -diagonal."""
    count, both = len(a), float(a @ b)
    return product - both + float(a.sum() * b.sum()) / ((count - 1) * (count - 2)) - 2 / (count - 2) * both


def _ratio(both: float, first: float, second: float) -> float | None:
    below = first * second
    if first <= 0 or second <= 0 or below**0.5 < 1e-12:
        return None
    return float(np.clip(both / below**0.5, -1.0, 1.0))
