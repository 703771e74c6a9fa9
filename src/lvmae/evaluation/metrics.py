"""Scores of a probe's outputs, all of them under weights on the test videos, so that a bootstrap is one call.

Shapes: n videos, K outputs, R resamples. Accuracy and mean average precision in per cent, higher is better; mean
squared error, lower is better.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = {"classification": "accuracy", "multilabel": "mAP", "regression": "MSE"}


def is_better(kind: str, value: float, than: float) -> bool:
    return value < than if kind == "regression" else value > than


def score(kind: str, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """The score of outputs (n, K) against targets (n) or (n, K)."""
    return float(weighted_scores(kind, outputs, targets, np.ones((1, len(outputs))))[0])


def weighted_scores(
    kind: str, outputs: NDArray[Any], targets: NDArray[Any], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """The scores (R) under weights (R, n): how often a resample holds each video. NaN where it holds none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "classification":
            right = outputs.argmax(axis=1) == targets
            return np.asarray(100 * (weights @ right) / weights.sum(axis=1))
        if kind == "regression":
            return np.asarray((weights @ (outputs[:, 0] - targets) ** 2) / weights.sum(axis=1))
        per_class = [_average_precision(o, t, weights) for o, t in zip(outputs.T, targets.T, strict=True)]
    known = np.isfinite(np.stack(per_class))  # a class none of whose videos are in a resample has no precision there
    total = np.where(known, np.stack(per_class), 0).sum(axis=0)
    return np.asarray(100 * total / np.where(known.any(axis=0), known.sum(axis=0), np.nan))


def _average_precision(outputs: NDArray[Any], targets: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """(n), (n) bool, (R, n) -> (R): the mean, over positive videos, of the precision at each one's rank."""
    order = np.argsort(-outputs, kind="stable")
    all_, positive = weights[:, order], weights[:, order] * targets[order]
    precision = positive.cumsum(axis=1) / np.maximum(all_.cumsum(axis=1), 1e-12)
    return np.asarray((positive * precision).sum(axis=1) / positive.sum(axis=1))


def interval(
    kind: str,
    runs: list[tuple[NDArray[Any], NDArray[np.intp]]],
    targets: NDArray[Any],
    resamples: int,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean score over runs (one a seed), resampling test videos.

    Args:
        runs: outputs (n, K) and the rows of `targets` they answer. A video that several runs test is drawn as one.
    """
    tested = np.unique(np.concatenate([rows for _, rows in runs]))
    rng = np.random.default_rng([seed, len(tested), resamples])
    drawn = rng.multinomial(len(tested), np.full(len(tested), 1 / len(tested)), size=resamples).astype(np.float64)
    scores = [
        weighted_scores(kind, outputs, targets[rows], drawn[:, np.searchsorted(tested, rows)]) for outputs, rows in runs
    ]
    mean = np.nanmean(np.stack(scores), axis=0)
    low, high = np.nanpercentile(mean, [2.5, 97.5])
    return float(low), float(high)
