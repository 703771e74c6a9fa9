"""The cost of pre-training a cell, before it runs: steps, parameters and operations.

The time is not known before a cell has run on this machine; from then on the others follow by their arithmetic.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np
import torch

from lvmae.ablation.grid import Cell
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.pretraining.loop import model_config
from lvmae.recipes import Recipe
from lvmae.sequences import SegmentTimes
from lvmae.store import EmbeddingStore


@dataclass(frozen=True)
class Cost:
    """Of one pre-training.

    Attributes:
        steps: of the optimiser.
        parameters: trained, of the whole model.
        segments: seen in all, masked ones included.
        tera: 10^12 multiply-adds of the linear layers, forward and backward.
    """

    steps: int
    parameters: int
    segments: float
    tera: float


def cost(cell: Cell) -> Cost:
    """An estimate: windows of their mean length, attention and the store's too short videos left out."""
    recipe, store = cell.recipe, cell.store
    videos = max(1, round(len(store) * (1 - recipe.val_fraction)))
    segments = recipe.epochs * videos * _mean_window(store, recipe)
    encoder = _block_parameters(store.dim, recipe.mlp_ratio) * recipe.layers
    decoder = _block_parameters(recipe.decoder_width, recipe.mlp_ratio) * recipe.decoder_layers
    visible = segments * (1 - recipe.mask_ratio)
    return Cost(
        steps=recipe.epochs * -(-videos // recipe.batch_size),
        parameters=_parameters(model_config(store.manifest, recipe).to_json_string(use_diff=False)),
        segments=segments,
        tera=3 * (visible * encoder + segments * decoder) / 1e12,
    )


@functools.lru_cache
def _parameters(config: str) -> int:
    """How many numbers the model of a configuration (JSON) trains; its shapes alone are made, without memory."""
    with torch.device("meta"):
        model = LVMAEForPreTraining(LVMAEConfig.from_dict(json.loads(config)))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _block_parameters(width: int, mlp_ratio: float) -> int:
    """The matrices of one block: queries, keys, values, output, and the two of the MLP."""
    return round(width * width * (4 + 2 * mlp_ratio))


def _mean_window(store: EmbeddingStore, recipe: Recipe) -> float:
    """The expected segments of a window: a duration drawn uniformly, and no longer than its video."""
    times = SegmentTimes.of(store)
    most = float(recipe.max_segments)
    if recipe.max_seconds is not None:
        most = min(most, times.segments_in(recipe.max_seconds))
    drawn = np.linspace(min(times.segments_in(recipe.min_seconds), most), most, 64)
    return float(np.minimum(store.lengths[:, None], drawn).mean())
