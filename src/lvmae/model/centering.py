"""Centring of embeddings before training: subtract nothing, the mean of the video, or the mean of the corpus.

Segments of one video are alike, so that whoever predicts the mean of the visible ones is nearly right. Without that mean the
differences between segments are all there is to predict.

Shapes: N segments of a batch in one row, B sequences, D width.
"""

from __future__ import annotations

from torch import Tensor

CENTERS = ("none", "video", "store")


def means_by_sequence(values: Tensor, sequence: Tensor, counted: Tensor, sequences: int) -> Tensor:
    """The mean of what counts of each sequence, in float32; zeros where nothing does.

    Args:
        values: (N,D). sequence: (N) int64, 0..B-1. counted: (N) bool. sequences: B.

    Returns:
        (B,D)
    """
    values, weights = values.float(), counted.float()
    sums = values.new_zeros(sequences, values.shape[1]).index_add(0, sequence, values * weights[:, None])
    counts = weights.new_zeros(sequences).index_add(0, sequence, weights)
    return sums / counts.clamp(min=1)[:, None]
