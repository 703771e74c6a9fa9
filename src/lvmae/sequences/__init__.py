"""Store -> seeded, masked, packed windows. Each name is loaded when it is first used: help texts list masks without numpy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "DurationSampling": "dataset",
    "STRATEGIES": "masks",
    "SegmentTimes": "dataset",
    "Window": "dataset",
    "WindowDataset": "dataset",
    "collate_packed": "batches",
    "dealt_batches": "batches",
    "epoch_batches": "batches",
    "interpolate_visible": "floors",
    "mask_names": "masks",
    "mask_segments": "masking",
    "mean_of_visible": "floors",
    "pad": "batches",
    "parts_of": "batches",
    "shortest_maskable": "masking",
    "split_videos": "dataset",
    "token_batches": "batches",
    "unpad": "batches",
}

if TYPE_CHECKING:
    from lvmae.sequences.batches import (
        collate_packed,
        dealt_batches,
        epoch_batches,
        pad,
        parts_of,
        token_batches,
        unpad,
    )
    from lvmae.sequences.dataset import DurationSampling, SegmentTimes, Window, WindowDataset, split_videos
    from lvmae.sequences.floors import interpolate_visible, mean_of_visible
    from lvmae.sequences.masking import mask_segments, shortest_maskable
    from lvmae.sequences.masks import STRATEGIES, mask_names

__all__ = [
    "STRATEGIES",
    "DurationSampling",
    "SegmentTimes",
    "Window",
    "WindowDataset",
    "collate_packed",
    "dealt_batches",
    "epoch_batches",
    "interpolate_visible",
    "mask_names",
    "mask_segments",
    "mean_of_visible",
    "pad",
    "parts_of",
    "shortest_maskable",
    "split_videos",
    "token_batches",
    "unpad",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
