"""Evaluates features on held-out videos during training: without labels, and with those of `--watch`.

    rankme              the effective rank of the videos' mean tokens (Garrido et al., arXiv 2210.02885)
    lidar               the same of what differs between videos, in units of what differs between masks of one (Thilak et al.,
                        arXiv 2312.04000)
    alignment           mean squared distance of two masks' [visible mean, unit length] of one video; lower is better
    uniformity          log of the mean Gaussian potential between videos (Wang & Isola, arXiv 2005.10242); lower is better
    watch_knn           accuracy of the 5 nearest other videos
    watch_linear        accuracy of logistic regression, cross-validated

Price: two forward passes over the held-out windows a mask, and the probes: seconds for 256 windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import nn

from lvmae.pretraining.watch_labels import WatchLabels
from lvmae.recipes import Recipe
from lvmae.sequences import Window, collate_packed, mask_segments

Array = NDArray[np.float64]

UNLABELLED = ("rankme", "lidar", "alignment", "uniformity")
LABELLED = {"watch_knn": "nearest neighbours", "watch_linear": "linear probe"}

_VIEWS = 4  # masks of one video
_NEIGHBOURS = 5


class Watch:
    """Looks at a model's features of fixed windows.

    Args:
        windows: held-out ones. batch_size: windows in a batch. ratio: of the masks. seed: of the masks and folds.
        labels: of some of the windows.
    """

    def __init__(
        self, windows: Sequence[Window], *, batch_size: int, ratio: float, seed: int, labels: WatchLabels | None = None
    ) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.labels = labels
        self.seed = seed
        self._views = [
            [
                replace(
                    window,
                    masked=mask_segments(
                        "random", window.embeddings, ratio, np.random.default_rng([seed, view, place])
                    ),
                )
                for place, window in enumerate(windows)
            ]
            for view in range(_VIEWS)
        ]

    def figures(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """One line of the curves. Every process has to call it, and does all of it: the windows are few."""
        model.eval()
        with torch.no_grad():
            whole = np.stack([*self._means(model, self.windows, accelerator, masked=False)])
            views = np.stack([np.stack([*self._means(model, view, accelerator, masked=True)]) for view in self._views])
        model.train()
        found = {"rankme": effective_rank(whole)}
        if len(whole) > 1:
            found |= {"lidar": lidar(views), **alignment_and_uniformity(views)}
        if self.labels is not None:
            known, classes = whole[self.labels.places], self.labels.classes
            found |= {
                "watch_knn": nearest_accuracy(known, classes),
                "watch_linear": linear_accuracy(known, classes, self.seed),
            }
        return {key: round(value, 6) for key, value in found.items()}

    def _means(
        self, model: nn.Module, windows: Sequence[Window], accelerator: Accelerator, *, masked: bool
    ) -> Iterator[Array]:
        """The mean of each window's tokens, of the visible ones where some are masked: (D) each."""
        for first in range(0, len(windows), self.batch_size):
            share = windows[first : first + self.batch_size]
            batch: dict[str, Any] = send_to_device(collate_packed(share), accelerator.device)
            counts = batch["num_visible"] if masked else batch["lengths"]
            if not masked:
                batch = {key: batch[key] for key in ("inputs_embeds", "lengths")}
            rows = model(**batch).encoder_last_hidden_state[0].double().cpu().numpy()
            start = 0
            for count in counts:
                yield rows[start + 1 : start + 1 + count].mean(axis=0)  # the first is [CLS]
                start += 1 + count


def what_to_try(recipe: Recipe, width: int) -> str:
    """What helped where a model learnt nothing beyond the mean of the visible segments (docs/learning.md)."""
    found = []
    if recipe.center != "video":
        found.append("center=video")
    if recipe.embedding_scale is not None and recipe.embedding_scale < width**0.5:
        found.append("embedding_scale=none, which is the square root of the width,")
    found.append("more epochs")
    return f"Where segments of a video are alike, {' and '.join(found)} helped (docs/learning.md)."


def effective_rank(features: Array) -> float:
    """exp of the entropy of the singular values, as shares: (n,D) -> from 1 to min(n,D)."""
    values = np.linalg.svd(features, compute_uv=False)
    return _exp_entropy(values)


def lidar(views: Array, *, ridge: float = 1e-4) -> float:
    """The effective rank of the discriminant between videos: (views, n, D) -> from 1 to n - 1."""
    means = views.mean(axis=0)
    apart = means - means.mean(axis=0)
    within = (views - means).reshape(-1, views.shape[-1])
    between = apart.T @ apart / max(1, len(means) - 1)
    spread = within.T @ within / max(1, len(within) - len(means))
    scale = float(np.trace(spread)) / len(spread) or 1.0
    values, vectors = np.linalg.eigh(spread + ridge * scale * np.eye(len(spread)))
    whiten = vectors / np.sqrt(values)
    return _exp_entropy(np.clip(np.linalg.eigvalsh(whiten.T @ between @ whiten), 0, None))


def alignment_and_uniformity(views: Array) -> dict[str, float]:
    """(views, n, D) -> both, of unit vectors around the mean of all."""
    unit = views - views.mean(axis=(0, 1))
    unit = unit / np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    pairs = [(a, b) for a in range(len(unit)) for b in range(a)]
    alignment = float(np.mean([((unit[a] - unit[b]) ** 2).sum(axis=-1).mean() for a, b in pairs]))
    apart = np.triu_indices(unit.shape[1], 1)
    squares = 2 - 2 * (unit[0] @ unit[0].T)[apart]
    return {"alignment": alignment, "uniformity": float(np.log(np.exp(-2 * squares).mean()))}


def nearest_accuracy(features: Array, classes: NDArray[Any]) -> float:
    """The share of videos whose class most of the nearest others have, by cosine around the mean; ties go to the nearest."""
    unit = features - features.mean(axis=0)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    count = min(_NEIGHBOURS, len(unit) - 1)
    order = np.argsort(-near, axis=1, kind="stable")[:, :count]
    right = 0
    for row, neighbours in enumerate(order):
        votes = np.bincount(classes[neighbours], minlength=int(classes.max()) + 1)
        best = np.flatnonzero(votes == votes.max())
        right += next(classes[n] for n in neighbours if classes[n] in best) == classes[row]
    return right / len(unit)


def linear_accuracy(features: Array, classes: NDArray[Any], seed: int) -> float:
    """The share of videos that logistic regression on the others names right, standardised, in up to 5 folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(min(5, int(np.bincount(classes).min())), shuffle=True, random_state=seed)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return float((cross_val_predict(fitted, features, classes, cv=folds) == classes).mean())


def _exp_entropy(values: NDArray[Any]) -> float:
    shares = values / (values.sum() or 1.0)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
