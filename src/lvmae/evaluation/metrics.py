"""Scores of a probe's outputs, all of them under weights on the test videos, so that a bootstrap is one call.

Shapes: n videos, K outputs, R resamples. Accuracy and mean average precision in per cent, higher is better; mean
squared error, lower is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

Array = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A score of outputs (n, K) against targets, under weights (R, n): how often a resample holds each video.

    Attributes:
        name: shown in tables.
        scores: outputs, targets, weights -> (R), NaN where a resample holds nothing that can be scored.
        lower_is_better: of an error.
    """

    name: str
    scores: Callable[[Array, Array, Array], NDArray[np.float64]]
    lower_is_better: bool = False

    def score(self, outputs: Array, targets: Array) -> float:
        """The score of all videos, each counted once."""
        return float(self.scores(outputs, targets, np.ones((1, len(outputs))))[0])

    def is_better(self, value: float, than: float) -> bool:
        return value < than if self.lower_is_better else value > than


def _accuracy(outputs: Array, targets: Array, weights: Array) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(100 * (weights @ (outputs.argmax(axis=1) == targets)) / weights.sum(axis=1))


def _squared_error(outputs: Array, targets: Array, weights: Array) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ (outputs[:, 0] - targets) ** 2) / weights.sum(axis=1))


def _mean_average_precision(outputs: Array, targets: Array, weights: Array) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        per_class = np.stack([_average_precision(o, t, weights) for o, t in zip(outputs.T, targets.T, strict=True)])
    known = np.isfinite(per_class)  # a class none of whose videos are in a resample has no precision there
    total = np.where(known, per_class, 0).sum(axis=0)
    return np.asarray(100 * total / np.where(known.any(axis=0), known.sum(axis=0), np.nan))


def _average_precision(outputs: Array, targets: Array, weights: Array) -> NDArray[np.float64]:
    """(n), (n) bool, (R, n) -> (R): the mean, over positive videos, of the precision down to the last video of equal output."""
    order = np.argsort(-outputs, kind="stable")
    ranked = outputs[order]
    last = np.searchsorted(-ranked, -ranked, side="right") - 1  # of those that are equal, as scikit-learn has it
    all_, positive = weights[:, order], weights[:, order] * targets[order]
    precision = (positive.cumsum(axis=1) / np.maximum(all_.cumsum(axis=1), 1e-12))[:, last]
    return np.asarray((positive * precision).sum(axis=1) / positive.sum(axis=1))


ACCURACY = Metric("accuracy", _accuracy)
MEAN_AVERAGE_PRECISION = Metric("mAP", _mean_average_precision)
SQUARED_ERROR = Metric("MSE", _squared_error, lower_is_better=True)
METRIC_OF = {"classification": ACCURACY, "multilabel": MEAN_AVERAGE_PRECISION, "regression": SQUARED_ERROR}


def loss(kind: str, outputs: Array, targets: Array) -> float:
    """What decides between equal scores: cross-entropy of logits, or squared error, a mean over videos."""
    if kind == "classification":
        return float(-log_softmax(outputs, axis=1)[np.arange(len(targets)), targets].mean())
    if kind == "multilabel":
        return float(np.logaddexp(0.0, np.where(targets, -outputs, outputs)).mean())
    return float(((outputs[:, 0] - targets) ** 2).mean())


def probabilities(kind: str, outputs: Array) -> NDArray[np.float64]:
    """Logits (n, K) as probabilities, each row of a classification adding up to 1; values of a regression as they are."""
    if kind == "classification":
        return np.asarray(softmax(outputs, axis=1))
    return np.asarray(1 / (1 + np.exp(-outputs)) if kind == "multilabel" else outputs)


@dataclass(frozen=True)
class Answered:
    """What one run says of the videos it is tested on: outputs (n, K), and the rows of the task's targets they answer."""

    outputs: NDArray[np.float64]
    rows: NDArray[np.intp]


@dataclass(frozen=True)
class Uncertain:
    """A figure with its standard error and 95 % interval, both over test videos (a bootstrap)."""

    value: float
    stderr: float
    low: float
    high: float


def bootstrap(
    metric: Metric,
    runs: Sequence[Answered],
    targets: Array,
    resamples: int,
    *,
    minus: Sequence[Answered] | None = None,
    clusters: NDArray[np.intp] | None = None,
) -> Uncertain:
    """The mean score over runs (one a seed), with its uncertainty over test videos.

    Args:
        runs: a video that several runs test is drawn as one.
        clusters: (V), what is drawn together, such as the video that segments are of; None draws each by itself.
        minus: runs on the same videos, whose mean score is subtracted under the same resamples: a paired difference.
    """
    clusters = np.arange(len(targets)) if clusters is None else clusters
    tested = np.unique(np.concatenate([clusters[run.rows] for run in runs]))
    rng = np.random.default_rng([0, len(tested), resamples])
    drawn = rng.multinomial(len(tested), np.full(len(tested), 1 / len(tested)), size=resamples).astype(np.float64)

    def means(some: Sequence[Answered]) -> tuple[float, NDArray[np.float64]]:
        here = [metric.score(run.outputs, targets[run.rows]) for run in some]
        scores = [
            metric.scores(run.outputs, targets[run.rows], drawn[:, np.searchsorted(tested, clusters[run.rows])])
            for run in some
        ]
        known = np.isfinite(np.stack(scores))
        total = np.where(known, np.stack(scores), 0).sum(axis=0)
        return float(np.mean(here)), total / np.where(known.any(axis=0), known.sum(axis=0), np.nan)

    value, resampled = means(runs)
    if minus is not None:
        other, others = means(minus)
        value, resampled = value - other, resampled - others
    if not np.isfinite(resampled).any():  # no resamples were asked for, or nothing can be scored
        return Uncertain(value, float("nan"), float("nan"), float("nan"))
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Uncertain(value, float(np.nanstd(resampled)), float(low), float(high))
