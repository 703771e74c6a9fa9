"""Fixed 1-D sin-cos positions (temperature 10000, sin half then cos half), by a segment's place in its clip, from 0."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def sincos_positions(positions: Tensor, width: int) -> Tensor:
    """Position embeddings of any real-valued places: (N) -> (N,width) float32, where the places are."""
    # In float64: at place 17,280 an angle in float32 is off by a thousandth.
    at = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64)[:, None] * 10000.0 ** (-at / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


@lru_cache(maxsize=16)
def position_table(count: int, width: int, device: torch.device) -> Tensor:
    """Row 0 is the zero vector of [CLS], row 1 + t is place t: (1+count,width)."""
    # A cached function and not a buffer: non-persistent buffers are garbage after from_pretrained.
    with torch.inference_mode(False), torch.no_grad():
        table = sincos_positions(torch.arange(count), width)
        return torch.cat([table.new_zeros(1, width), table]).to(device)


def row_positions(places: Tensor, longest: int, width: int) -> Tensor:
    """Of rows at these places of a `Plan`, [CLS] first: (M) -> (M,width) float32."""
    if places.is_floating_point():  # squeezed: no table has them
        return sincos_positions(places - 1, width) * (places > 0)[:, None]
    # Powers of two, so that growing lengths make few tables.
    count = 1 << max(0, longest - 2).bit_length()
    return position_table(count, width, places.device).index_select(0, places)
