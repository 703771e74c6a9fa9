"""Masks on short sequences, by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmae.errors import InputError
from lvmae.sequences import STRATEGIES, mask_segments, shortest_maskable
from lvmae.sequences.masking import count_visible
from lvmae.store import l2_normalize

RNG = np.random.default_rng(0)


def on_circle(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# Steps to the segment before: 10, 80, 5, 40, 1 degrees.
WALK = on_circle(0, 10, 90, 95, 135, 136)


def test_semantic_masks_the_moments_of_change() -> None:
    assert mask_segments("semantic", WALK, 0.5, RNG).tolist() == [False, True, True, False, True, False]
    assert mask_segments("semantic", WALK, 0.2, RNG).tolist() == [False, False, True, False, True, False]
    assert mask_segments("semantic", WALK, 0.1, RNG).tolist() == [False, False, True, False, False, False]


def test_redundant_masks_what_stays_the_same() -> None:
    assert mask_segments("redundant", WALK, 0.5, RNG).tolist() == [False, True, False, True, False, True]


def test_the_first_segment_stays_visible_at_any_ratio() -> None:
    for strategy in ("semantic", "redundant", "semantic-sampled"):  # the last is a name of older versions
        assert mask_segments(strategy, WALK, 0.95, RNG).tolist() == [False] + [True] * 5


def test_ties_go_to_the_earlier() -> None:
    square = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    assert mask_segments("semantic", square, 0.5, RNG).tolist() == [False, True, True, False]


@given(
    length=st.integers(2, 300),
    ratio=st.floats(0.01, 0.99),
    strategy=st.sampled_from(sorted(STRATEGIES)),
    seed=st.integers(0, 99),
)
def test_the_count_is_the_papers(length: int, ratio: float, strategy: str, seed: int) -> None:
    embeddings = l2_normalize(np.random.default_rng(seed).normal(size=(length, 3)))
    masked = mask_segments(strategy, embeddings, ratio, np.random.default_rng(seed))
    visible = int(length * (1 - Fraction(repr(ratio))))
    if strategy != "random":
        visible = max(visible, 1)
    assert (~masked).sum() == visible
    assert masked.dtype == bool


def test_random_masks_are_uniform_and_seeded() -> None:
    generator = np.random.default_rng(1)
    share = np.mean([mask_segments("random", WALK, 0.4, generator) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(share, 3 / 6, atol=0.03)
    again = [mask_segments("random", WALK, 0.4, np.random.default_rng(5)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_temperature_goes_from_semantic_to_uniform() -> None:
    generator = np.random.default_rng(2)

    def share(temperature: float) -> np.ndarray:
        draws = [mask_segments("semantic-sampled", WALK, 0.5, generator, temperature=temperature) for _ in range(3000)]
        return np.mean(draws, axis=0)

    np.testing.assert_array_equal(share(1e-6), mask_segments("semantic", WALK, 0.5, generator))
    np.testing.assert_allclose(share(1e6), [0, 0.6, 0.6, 0.6, 0.6, 0.6], atol=0.03)
    middle = share(0.5)
    assert middle[2] > middle[4] > middle[5]


def test_unknown_names_and_ratios() -> None:
    with pytest.raises(InputError, match="no mask 'tubes'; choose one of random, semantic"):
        mask_segments("tubes", WALK, 0.5, RNG)
    with pytest.raises(InputError, match="not between 0 and 1"):
        shortest_maskable(1.0)
    with pytest.raises(InputError, match="not positive"):
        mask_segments("semantic-sampled", WALK, 0.5, RNG, temperature=0.0)


def test_the_count_is_that_of_decimal_fractions() -> None:
    # In binary ones 10 * (1 - 0.9), 5 * (1 - 0.8) and 25 * (1 - 0.56) are a little less than 1, 1 and 11.
    assert [count_visible(*pair) for pair in ((10, 0.9), (5, 0.8), (25, 0.56), (20, 0.4), (7, 1e-12))] == [
        1,
        1,
        11,
        12,
        6,
    ]


@pytest.mark.parametrize(
    ("ratio", "shortest"),
    [(0.4, 2), (0.5, 2), (0.6, 3), (0.75, 4), (0.1, 2), (0.9, 10), (0.8, 5), (1e-300, 2), (0.999999999, 10**9)],
)
def test_shortest_sequence_worth_masking(ratio: float, shortest: int) -> None:
    assert shortest_maskable(ratio) == shortest


def test_a_temperature_draws_other_masks_and_none_is_the_papers() -> None:
    def drawn(temperature: float | None) -> list[bool]:
        return mask_segments("semantic", WALK, 0.5, np.random.default_rng(7), temperature=temperature).tolist()

    paper = mask_segments("semantic", WALK, 0.5, RNG).tolist()
    assert drawn(None) == paper
    assert drawn(1e-6) == paper
    assert (
        drawn(10.0) == mask_segments("semantic-sampled", WALK, 0.5, np.random.default_rng(7), temperature=10.0).tolist()
    )
    many = {temperature: np.random.default_rng(0) for temperature in (0.05, 5.0)}
    share = {
        t: np.mean([mask_segments("semantic", WALK, 0.5, g, temperature=t) for _ in range(500)], axis=0)
        for t, g in many.items()
    }
    assert abs(share[0.05] - share[5.0]).max() > 0.2
    with pytest.raises(InputError, match="'random' takes no temperature"):
        mask_segments("random", WALK, 0.5, RNG, temperature=1.0)


def test_blocks_hide_neighbours() -> None:
    """Of 40 segments half are hidden: in 5 runs of 4, cut at most at both ends, where single ones would be about 10 runs."""
    embeddings = l2_normalize(np.random.default_rng(0).normal(size=(40, 3)))
    places = np.zeros(40)
    for seed in range(300):
        masked = mask_segments("blocks", embeddings, 0.5, np.random.default_rng(seed))
        assert masked.sum() == 20
        assert np.diff(np.concatenate([[0], masked.astype(int)]), axis=0).clip(0).sum() <= 7
        places += masked
    np.testing.assert_allclose(places / 300, 0.5, atol=0.12)


def every_other(embeddings: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """A stranger's mask."""
    return np.arange(len(embeddings)) % 2 == 1


def too_long(embeddings: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    return np.ones(len(embeddings) + 1, dtype=bool)


def test_a_mask_of_ones_own() -> None:
    assert mask_segments(f"{__name__}:every_other", WALK, 0.5, RNG).tolist() == [False, True] * 3
    with pytest.raises(InputError, match=r"one bool a segment, \(6,\)"):
        mask_segments(f"{__name__}:too_long", WALK, 0.5, RNG)
    for name, said in (
        ("no_module:x", "cannot be imported"),
        (f"{__name__}:WALK", "is no function"),
        ("a-b:c", "no mask"),
    ):
        with pytest.raises(InputError, match=said):
            mask_segments(name, WALK, 0.5, RNG)
