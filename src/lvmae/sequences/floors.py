"""Predictions for masked segments without a model: the baselines that a reconstruction has to beat.

Enters: (L, D) embeddings and `bool_masked_pos` (L,) with at least one visible segment. Leaves: (L, D) guesses; visible rows hold
their own embedding.
"""

from __future__ import annotations

import numpy as np


def mean_of_visible(embeddings: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Predicts the mean of the visible embeddings at every masked position."""
    guess = np.array(embeddings, dtype=np.float32)
    guess[masked] = guess[~masked].mean(axis=0)
    return guess


def interpolate_visible(embeddings: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Interpolates linearly between the nearest visible neighbours; before the first and after the last, repeats it."""
    guess = np.array(embeddings, dtype=np.float32)
    places, visible = np.flatnonzero(masked), np.flatnonzero(~masked)
    after = np.searchsorted(visible, places)
    left = visible[np.clip(after - 1, 0, None)]
    right = visible[np.clip(after, None, len(visible) - 1)]
    left = np.where(after == 0, right, left)
    weight = (places - left) / np.maximum(right - left, 1)
    weight = np.where(left == right, 0.0, weight).astype(np.float32)[:, None]
    guess[places] = (1 - weight) * guess[left] + weight * guess[right]
    return guess
