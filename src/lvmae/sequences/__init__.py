"""Store -> seeded, masked, packed windows."""

from lvmae.sequences.batches import collate_packed, epoch_batches, pad, token_batches, unpad
from lvmae.sequences.dataset import DurationSampling, SegmentTimes, Window, WindowDataset, split_videos
from lvmae.sequences.floors import interpolate_visible, mean_of_visible
from lvmae.sequences.masking import STRATEGIES, mask_segments, shortest_maskable

__all__ = [
    "STRATEGIES",
    "DurationSampling",
    "SegmentTimes",
    "Window",
    "WindowDataset",
    "collate_packed",
    "epoch_batches",
    "interpolate_visible",
    "mask_segments",
    "mean_of_visible",
    "pad",
    "shortest_maskable",
    "split_videos",
    "token_batches",
    "unpad",
]
