"""Which segments of a sequence are hidden from the encoder (paper section 3.2).

Enters: one sequence of L2-normalised embeddings. Leaves: `bool_masked_pos` (L,), True is masked. Pure functions of their
arguments; randomness comes in as a generator.

Every strategy leaves `n_visible = int(L * (1 - ratio))` segments. The semantic ones look at the cosine similarity of each segment
with the one before; the first has none and stays visible.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lvmae.errors import InputError
from lvmae.sequences.masks import mask_function, takes_temperature

_BLOCK = 4  # segments


@functools.lru_cache(maxsize=64)
def _visible_share(ratio: float) -> Fraction:
    """1 - ratio as it is written: in binary fractions 10 * (1 - 0.9) is below 1."""
    return 1 - Fraction(repr(float(ratio)))


def count_visible(length: int, ratio: float) -> int:
    """Number of segments the encoder sees of a sequence of `length`: int(length * (1 - ratio)), in decimal fractions."""
    share = _visible_share(ratio)
    return length * share.numerator // share.denominator


def shortest_maskable(ratio: float) -> int:
    """Returns the minimum length that leaves at least one visible and one masked segment.

    Raises:
        InputError: `ratio` is not strictly between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise InputError(f"mask ratio {ratio} is not between 0 and 1; the paper's best is 0.4")
    return max(2, math.ceil(1 / _visible_share(ratio)))


@dataclass(frozen=True)
class Unread:
    """All that the masks here look at of embeddings, so that these need not be read: how many, and their similarities."""

    similarity_to_previous: np.ndarray
    """(L - 1,)"""

    def __len__(self) -> int:
        return len(self.similarity_to_previous) + 1


def similarity_to_previous(embeddings: np.ndarray | Unread) -> np.ndarray:
    """(L, D) unit vectors -> (L - 1,) cosine of segments 1..L-1 with the segment before."""
    if isinstance(embeddings, Unread):
        return embeddings.similarity_to_previous
    cosine: np.ndarray = np.einsum("ld,ld->l", embeddings[1:], embeddings[:-1])
    return cosine


def random_mask(embeddings: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """A uniform subset."""
    length = len(embeddings)
    masked = np.ones(length, dtype=bool)
    masked[generator.permutation(length)[: count_visible(length, ratio)]] = False
    return masked


def semantic_mask(
    embeddings: np.ndarray, ratio: float, generator: np.random.Generator, *, temperature: float | None = None
) -> np.ndarray:
    """The paper's: the segments least like the one before, the moments where something changes, are masked.

    With a `temperature`, which is beyond the paper, masks differ from epoch to epoch: segments are drawn without replacement,
    with odds exp(dissimilarity / temperature). Towards 0 that is the paper's mask, towards infinity a uniform subset of
    segments 1..L-1.
    """
    dissimilarity = 1 - similarity_to_previous(embeddings)
    if temperature is None:
        return _mask_highest(dissimilarity, ratio)
    if temperature <= 0:
        raise InputError(f"mask temperature {temperature} is not positive; leave it out for the limit 0")
    # The Gumbel-max trick: the k highest perturbed scores are a draw of k without replacement.
    return _mask_highest(dissimilarity / temperature + generator.gumbel(size=len(dissimilarity)), ratio)


def redundant_mask(embeddings: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """What the released code does instead: the segments most like the one before are masked."""
    return _mask_highest(similarity_to_previous(embeddings), ratio)


def blocks_mask(embeddings: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Runs of neighbours, so that what is hidden cannot be read from the segments beside it. Beyond the paper.

    The sequence is cut into blocks of `_BLOCK` segments from a random place on; blocks drawn at random are masked, the last of
    them in part. At least one segment stays visible.
    """
    length = len(embeddings)
    blocks = (np.arange(length) + generator.integers(_BLOCK)) // _BLOCK
    rank = generator.permutation(blocks[-1] + 1)[blocks]  # of each segment's block, in a random order
    hidden = length - max(1, count_visible(length, ratio))
    masked = np.zeros(length, dtype=bool)
    masked[np.argsort(rank, kind="stable")[:hidden]] = True
    return masked


def _mask_highest(scores: np.ndarray, ratio: float) -> np.ndarray:
    length = len(scores) + 1
    hidden = min(length - count_visible(length, ratio), len(scores))
    masked = np.zeros(length, dtype=bool)
    masked[1 + np.argsort(-scores, kind="stable")[:hidden]] = True
    return masked


def sampled_semantic_mask(
    embeddings: np.ndarray, ratio: float, generator: np.random.Generator, *, temperature: float = 0.1
) -> np.ndarray:
    """`semantic_mask` with a temperature, under the name of older versions."""
    return semantic_mask(embeddings, ratio, generator, temperature=temperature)


def mask_segments(
    strategy: str,
    embeddings: np.ndarray | Unread,
    ratio: float,
    generator: np.random.Generator,
    *,
    temperature: float | None = None,
) -> np.ndarray:
    """Returns a mask (L,) bool by a strategy's name, for embeddings (L, D), L2-normalised (`STRATEGIES` may not read them).

    Raises:
        InputError: there is no such strategy, it takes no temperature and is given one, or what it gives is no mask.
    """
    function = mask_function(strategy)
    if temperature is None:
        masked = function(embeddings, ratio, generator)
    elif takes_temperature(strategy):
        masked = function(embeddings, ratio, generator, temperature=temperature)
    else:
        raise InputError(f"the mask {strategy!r} takes no temperature; leave it out")
    if not (isinstance(masked, np.ndarray) and masked.dtype == bool and masked.shape == (len(embeddings),)):
        raise InputError(f"the mask {strategy!r} has to give one bool a segment, ({len(embeddings)},)")
    return masked
