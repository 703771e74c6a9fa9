"""Scores against values worked out by hand, and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from lvmae.evaluation.metrics import interval, score, weighted_scores


def test_accuracy() -> None:
    outputs = np.array([[2.0, 1.0], [0.0, 1.0], [5.0, 0.0], [0.0, 3.0]])
    targets = np.array([0, 1, 1, 1])
    assert score("classification", outputs, targets) == 75.0
    weights = np.array([[1, 0, 3, 0], [0, 2, 0, 2]])
    assert weighted_scores("classification", outputs, targets, weights).tolist() == [25.0, 100.0]


def test_squared_error() -> None:
    assert score("regression", np.array([[1.0], [4.0]]), np.array([0.0, 1.0])) == 5.0
    weights = np.array([[3, 1]])
    assert weighted_scores("regression", np.array([[1.0], [4.0]]), np.array([0.0, 1.0]), weights).tolist() == [3.0]


def test_mean_average_precision() -> None:
    outputs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    targets = np.array([[True, False], [False, False], [True, False], [False, True]])
    # Class 0: hits at ranks 1 and 3, (1/1 + 2/3) / 2; class 1: a hit at rank 1.
    assert score("multilabel", outputs, targets) == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    # Without its only video class 1 says nothing; a video drawn twice counts twice.
    without = weighted_scores("multilabel", outputs, targets, np.array([[1, 2, 1, 0]]))
    assert without[0] == pytest.approx(100 * (1 + 2 / 4) / 2)


def test_the_interval_covers_as_a_binomial_does() -> None:
    right = np.arange(100) < 60
    outputs = np.eye(2)[right.astype(int)]
    low, high = interval("classification", [(outputs, np.arange(100))], np.ones(100, int), 4000)
    spread = 1.96 * 100 * np.sqrt(0.6 * 0.4 / 100)
    assert low == pytest.approx(60 - spread, abs=1.1)
    assert high == pytest.approx(60 + spread, abs=1.1)


def test_seeds_on_the_same_videos_do_not_narrow_the_interval() -> None:
    right = np.arange(40) < 20
    run = (np.eye(2)[right.astype(int)], np.arange(40))
    one = interval("classification", [run], np.ones(40, int), 2000)
    five = interval("classification", [run] * 5, np.ones(40, int), 2000)
    assert one == five
