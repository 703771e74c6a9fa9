"""Store -> seeded, masked, packed windows."""

from lvmae.sequences.batches import collate_packed, epoch_batches, pad, token_batches, unpad
from lvmae.sequences.dataset import DurationSampling, Window, WindowDataset, segment_seconds, split_videos
from lvmae.sequences.floors import interpolate_visible, mean_of_visible
from lvmae.sequences.masking import STRATEGIES, mask_segments, shortest_maskable

__all__ = [
    "STRATEGIES",
    "DurationSampling",
    "Window",
    "WindowDataset",
    "collate_packed",
    "epoch_batches",
    "interpolate_visible",
    "mask_segments",
    "mean_of_visible",
    "pad",
    "segment_seconds",
    "shortest_maskable",
    "split_videos",
    "token_batches",
    "unpad",
]
