"""Which segments of a sequence are hidden from the encoder (paper section 3.2).

Enters: one sequence of L2-normalised embeddings. Leaves: `bool_masked_pos` (L,), True is masked. Pure functions of their
arguments; randomness comes in as a generator.

Every strategy leaves `n_visible = int(L * (1 - ratio))` segments. The semantic ones look at the cosine similarity of each segment
with the one before; the first has none and stays visible.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from lvmae.errors import InputError


@functools.lru_cache(maxsize=64)
def _visible_share(ratio: float) -> Fraction:
    """1 - ratio as it is written: in binary fractions 10 * (1 - 0.9) is below 1."""
    return 1 - Fraction(repr(float(ratio)))


def count_visible(length: int, ratio: float) -> int:
    """Number of segments the encoder sees of a sequence of `length`: int(length * (1 - ratio)), in decimal fractions."""
    share = _visible_share(ratio)
    return length * share.numerator // share.denominator


def shortest_maskable(ratio: float) -> int:
    """The least length that leaves at least one visible and one masked segment.

    Raises:
        InputError: `ratio` is not strictly between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise InputError(f"mask ratio {ratio} is not between 0 and 1; the paper's best is 0.4")
    return max(2, math.ceil(1 / _visible_share(ratio)))


def similarity_to_previous(embeddings: np.ndarray) -> np.ndarray:
    """(L, D) unit vectors -> (L - 1,) cosine of segments 1..L-1 with the segment before."""
    cosine: np.ndarray = np.einsum("ld,ld->l", embeddings[1:], embeddings[:-1])
    return cosine


def random_mask(embeddings: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """A uniform subset."""
    length = len(embeddings)
    masked = np.ones(length, dtype=bool)
    masked[generator.permutation(length)[: count_visible(length, ratio)]] = False
    return masked


def semantic_mask(embeddings: np.ndarray, ratio: float, generator: np.random.Generator | None = None) -> np.ndarray:
    """The paper's: the segments least like the one before, the moments where something changes, are masked."""
    return _mask_highest(-similarity_to_previous(embeddings), ratio)


def redundant_mask(embeddings: np.ndarray, ratio: float, generator: np.random.Generator | None = None) -> np.ndarray:
    """What the released code does instead: the segments most like the one before are masked."""
    return _mask_highest(similarity_to_previous(embeddings), ratio)


def sampled_semantic_mask(
    embeddings: np.ndarray, ratio: float, generator: np.random.Generator, temperature: float = 0.1
) -> np.ndarray:
    """Semantic masking that differs from epoch to epoch: segments are drawn without replacement, with odds
    exp(dissimilarity / temperature).

    Towards temperature 0 it is `semantic_mask`, towards infinity a uniform subset of segments 1..L-1. Beyond the paper.
    """
    if temperature <= 0:
        raise InputError(f"mask temperature {temperature} is not positive; use the mask 'semantic' for the limit 0")
    dissimilarity = 1 - similarity_to_previous(embeddings)
    # The Gumbel-max trick: the k highest perturbed scores are a draw of k without replacement.
    return _mask_highest(dissimilarity / temperature + generator.gumbel(size=len(dissimilarity)), ratio)


def _mask_highest(scores: np.ndarray, ratio: float) -> np.ndarray:
    length = len(scores) + 1
    hidden = min(length - count_visible(length, ratio), len(scores))
    masked = np.zeros(length, dtype=bool)
    masked[1 + np.argsort(-scores, kind="stable")[:hidden]] = True
    return masked


STRATEGIES: dict[str, Callable[..., np.ndarray]] = {
    "random": random_mask,
    "semantic": semantic_mask,
    "redundant": redundant_mask,
    "semantic-sampled": sampled_semantic_mask,
}


def mask_segments(
    strategy: str,
    embeddings: np.ndarray,
    ratio: float,
    generator: np.random.Generator,
    *,
    temperature: float | None = None,
) -> np.ndarray:
    """(L, D) L2-normalised -> (L,) bool by the strategy's name.

    Raises:
        InputError: there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"there is no mask {strategy!r}; choose one of {', '.join(STRATEGIES)}")
    if strategy == "semantic-sampled" and temperature is not None:
        return sampled_semantic_mask(embeddings, ratio, generator, temperature)
    return STRATEGIES[strategy](embeddings, ratio, generator)
