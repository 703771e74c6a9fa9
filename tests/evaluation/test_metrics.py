"""Scores against values worked out by hand, and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lvmae.evaluation.metrics import ACCURACY, MEAN_AVERAGE_PRECISION, SQUARED_ERROR, Answered, bootstrap


def test_accuracy() -> None:
    outputs = np.array([[2.0, 1.0], [0.0, 1.0], [5.0, 0.0], [0.0, 3.0]])
    targets = np.array([0, 1, 1, 1])
    assert ACCURACY.score(outputs, targets) == 75.0
    weights = np.array([[1, 0, 3, 0], [0, 2, 0, 2]])
    assert ACCURACY.scores(outputs, targets, weights).tolist() == [25.0, 100.0]


def test_squared_error() -> None:
    assert SQUARED_ERROR.score(np.array([[1.0], [4.0]]), np.array([0.0, 1.0])) == 5.0
    weights = np.array([[3, 1]])
    assert SQUARED_ERROR.scores(np.array([[1.0], [4.0]]), np.array([0.0, 1.0]), weights).tolist() == [3.0]


def test_mean_average_precision() -> None:
    outputs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    targets = np.array([[True, False], [False, False], [True, False], [False, True]])
    # Class 0: hits at ranks 1 and 3, (1/1 + 2/3) / 2; class 1: a hit at rank 1.
    assert MEAN_AVERAGE_PRECISION.score(outputs, targets) == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    # Without its only video class 1 says nothing; a video drawn twice counts twice.
    without = MEAN_AVERAGE_PRECISION.scores(outputs, targets, np.array([[1, 2, 1, 0]]))
    assert without[0] == pytest.approx(100 * (1 + 2 / 4) / 2)


def test_the_interval_covers_as_a_binomial_does() -> None:
    right = np.arange(100) < 60
    outputs = np.eye(2)[right.astype(int)]
    found = bootstrap(ACCURACY, [Answered(outputs, np.arange(100))], np.ones(100, int), 4000)
    error = 100 * np.sqrt(0.6 * 0.4 / 100)
    assert found.value == 60
    assert found.stderr == pytest.approx(error, rel=0.05)
    assert found.low == pytest.approx(60 - 1.96 * error, abs=1.1)
    assert found.high == pytest.approx(60 + 1.96 * error, abs=1.1)


def test_seeds_on_the_same_videos_do_not_narrow_the_interval() -> None:
    right = np.arange(40) < 20
    run = Answered(np.eye(2)[right.astype(int)], np.arange(40))
    one = bootstrap(ACCURACY, [run], np.ones(40, int), 2000)
    assert bootstrap(ACCURACY, [run] * 5, np.ones(40, int), 2000) == one


def test_a_paired_difference_is_sharper_than_two_intervals() -> None:
    """Two probes that err on the same videos but for five: the difference is known better than either."""
    first = np.arange(200) < 120
    second = np.arange(200) < 125
    one, other = (Answered(np.eye(2)[right.astype(int)], np.arange(200)) for right in (first, second))
    targets = np.ones(200, int)
    found = bootstrap(ACCURACY, [other], targets, 4000, minus=[one])
    assert found.value == 2.5
    assert found.stderr == pytest.approx(100 * np.sqrt(0.025 * 0.975 / 200), rel=0.06)
    assert found.low > 0
    assert bootstrap(ACCURACY, [one], targets, 4000, minus=[one]).stderr == 0


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=3, max_size=40).filter(
        lambda p: any(t for _, t in p)
    )
)
def test_average_precision_with_ties_is_scikit_learns(pairs: list[tuple[int, bool]]) -> None:
    outputs, targets = np.array([[float(o)] for o, _ in pairs]), np.array([[t] for _, t in pairs])
    expected = average_precision_score(targets[:, 0], outputs[:, 0])
    assert MEAN_AVERAGE_PRECISION.score(outputs, targets) == pytest.approx(100 * expected)
    weights = np.random.default_rng(0).integers(0, 3, size=(1, len(pairs))).astype(float)
    found = MEAN_AVERAGE_PRECISION.scores(outputs, targets, weights)[0]
    if (weights[0] * targets[:, 0]).sum():
        weighted = average_precision_score(targets[:, 0], outputs[:, 0], sample_weight=weights[0])
        assert found == pytest.approx(100 * weighted)
