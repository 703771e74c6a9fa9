"""The probes of scikit-learn on pooled vectors, with their regularisation chosen on val.

- linear: standardised features, then logistic regression (one a class where labels are sets), or ridge for a regression;
- knn: the mean over the nearest training videos by cosine, of features centred on train.

Train teaches, val chooses among `STRENGTHS` or `NEIGHBOURS`, test is looked at once. The chosen pipeline is fitted on train
from nothing, so the row equals the same pipeline of scikit-learn called directly.

Shapes: V videos, D width of the pooled vector, K outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from lvmae.evaluation.metrics import loss
from lvmae.evaluation.splits import Parts
from lvmae.evaluation.task import Task

STRENGTHS = tuple(float(f"1e{power}") for power in range(-6, 5))  # C of logistic regression; ridge takes 1 / C
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
_MOST_STEPS = 3000


@dataclass(frozen=True)
class Chosen:
    """A fitted pipeline, what val chose, and its val score and loss."""

    pipeline: Pipeline
    setting: dict[str, float]
    val: float
    val_loss: float


def fit_estimator(
    probe: str, x: NDArray[np.float64], task: Task, parts: Parts, *, class_weight: str | None = None
) -> Chosen:
    """Fits "linear" or "knn" to pooled vectors x (V, D)."""
    train = parts["train"]
    name, settings = ("k", NEIGHBOURS) if probe == "knn" else ("alpha" if task.kind == "regression" else "C", STRENGTHS)
    build: Callable[[float], Pipeline]
    if probe == "knn":
        settings = tuple(k for k in NEIGHBOURS if k <= len(train)) or (1,)
        build = nearest
    else:
        build = lambda strength: linear(task.kind, strength, class_weight)  # noqa: E731
    best: tuple[tuple[float, float], float] | None = None
    with quiet():
        for setting in settings:
            fitted = build(setting).fit(x[train], learnt_from(task, probe, train))
            held_out = answers(task.kind, fitted, x[parts["val"]], len(task.classes))
            reached = _reached(task, held_out, parts["val"])
            if best is None or reached > best[0]:
                best = reached, setting
        assert best is not None
        pipeline = build(best[1]).fit(x[train], learnt_from(task, probe, train))
    shown = 1 / best[1] if name == "alpha" else best[1]
    sign = -1 if task.scored_by.lower_is_better else 1
    return Chosen(pipeline, {name: shown}, sign * best[0][0], -best[0][1])


def linear(kind: str, strength: float, class_weight: str | None = None) -> Pipeline:
    """The pipeline of one strength of regularisation (the larger, the weaker)."""
    if kind == "regression":
        return make_pipeline(StandardScaler(), Ridge(alpha=1 / strength))
    model = LogisticRegression(C=strength, max_iter=_MOST_STEPS, class_weight=class_weight)
    return make_pipeline(StandardScaler(), OneVsRestClassifier(model) if kind == "multilabel" else model)


def nearest(neighbours: float) -> Pipeline:
    """The pipeline of one number of neighbours; closer ones count more."""
    return make_pipeline(
        StandardScaler(with_std=False), Normalizer(), KNeighborsRegressor(int(neighbours), weights="distance")
    )


def learnt_from(task: Task, probe: str, rows: NDArray[np.intp]) -> NDArray[Any]:
    """The targets as the pipeline takes them."""
    if probe == "knn" and task.kind == "classification":
        return np.asarray(np.eye(len(task.classes))[task.targets[rows]])
    targets: NDArray[Any] = task.targets[rows]
    return targets.astype(np.float64 if probe == "knn" or task.kind == "regression" else np.int64)


def answers(kind: str, pipeline: Pipeline, x: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Outputs (n, K): logits, or values. Of neighbours' shares p of a class: log p, or log p / (1 - p) for sets."""
    last = pipeline[-1]
    if isinstance(last, KNeighborsRegressor):
        shares = np.asarray(pipeline.predict(x), dtype=np.float64).reshape(len(x), -1)
        if kind == "regression":
            return shares
        shares = np.clip(shares, 1e-4, 1 - 1e-4)
        return np.log(shares) if kind == "classification" else np.log(shares / (1 - shares))
    if kind == "regression":
        return np.asarray(pipeline.predict(x), dtype=np.float64).reshape(len(x), 1)
    found = np.asarray(pipeline.decision_function(x), dtype=np.float64)
    if kind == "multilabel":
        return found.reshape(len(x), -1)
    if found.ndim == 1:  # of two classes scikit-learn tells the second
        found = np.stack([-found / 2, found / 2], axis=1)
    if len(last.classes_) == classes:
        return found
    every = np.full((len(x), classes), found.min() - 20)  # a class that train lacks is never the answer
    every[:, last.classes_] = found
    return every


def standardised(pipeline: Pipeline) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A linear pipeline as weights (D, K) and bias (K) of the vectors themselves, the standardisation multiplied in."""
    scaler, model = pipeline[0], pipeline[-1]
    models: Sequence[Any] = model.estimators_ if isinstance(model, OneVsRestClassifier) else [model]
    coefficients = np.concatenate([np.atleast_2d(one.coef_) for one in models]).astype(np.float64)  # (K, D)
    intercepts = np.concatenate([np.atleast_1d(one.intercept_) for one in models]).astype(np.float64)
    if isinstance(model, LogisticRegression) and len(model.classes_) == 2:
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    weights = (coefficients / scaler.scale_).T
    return weights, intercepts - scaler.mean_ @ weights


def _reached(task: Task, outputs: NDArray[np.float64], rows: NDArray[np.intp]) -> tuple[float, float]:
    """The larger, the better: the score, and of equal scores the smaller loss."""
    value = task.scored_by.score(outputs, task.targets[rows])
    value = -np.inf if np.isnan(value) else value
    return (-value if task.scored_by.lower_is_better else value), -loss(task.kind, outputs, task.targets[rows])


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of convergence: the weakest strengths of a wide grid may stop before they converge; val then chooses another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings(
            "ignore", message="The least populated class in y"
        )  # a class with one video is in one fold
        yield
