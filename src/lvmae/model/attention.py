"""Batches without padding: how the sequences of a batch lie in one row, and who attends to whom.

A plan is made once a batch from lengths that lie on the host (Python lists) and is used by every layer, so making it
costs no synchronisation with the device, and no layer loops over the batch. Linear layers, norms and MLPs need no
plan: they run on the row as it is. Attention is confined to each sequence by one of two plans, both called as
    `attend(q, k, v)`:

- `VarlenAttention`, flash attention over cumulative lengths: CUDA, half precision.
- `GroupedAttention`, a few rows of like width with masks: everything else. Sequences of up to 64 tokens are joined
  into rows of 64 under a block-diagonal mask, longer ones keep a row of their own, and rows of about the same width
  share one call. What is padded there is attention alone, by fewer than 32 tokens a row; for d 1024 that is under 2 %
  of a layer's work.

Shapes: N tokens of a batch in one row, M = N + B with a [CLS] in front of each sequence, Q queries, K keys, H heads,
C channels a head, R rows of width W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None  # type: ignore[assignment]

Indices = NDArray[np.int64]

Function = TypeVar("Function", bound=Callable[..., Any])

# Measured on CPU: rows shorter than this are dominated by the cost of a call, longer ones by masked-out scores.
_JOINED_WIDTH = 64
_WIDTH_STEP = 32


class Attend(Protocol):
    """Attention confined to each sequence: q (Q,H,C), k and v (K,H,C) -> (Q,H,C)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def outside_graph(function: Function) -> Function:
    """Keeps a function that depends on a batch's lengths, and all it calls, out of compiled graphs.

    Lengths are host-side lists: inside a graph, each batch would be compiled anew.
    """
    return cast(Function, torch.compiler.disable(function))  # type: ignore[no-untyped-call]


def around_graphs(function: Function) -> Function:
    """Runs a function as it is under torch.compile, while the blocks it calls are compiled."""
    return cast(Function, torch.compiler.disable(function, recursive=False))  # type: ignore[no-untyped-call]


def starts_of(lengths: Sequence[int]) -> Indices:
    """Where each sequence starts in the row, and where the row ends: (B+1,)."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


def places_of(lengths: Sequence[int]) -> Indices:
    """Each token's place in its own sequence, from 0: (N,)."""
    starts = starts_of(lengths)
    return np.arange(starts[-1], dtype=np.int64) - np.repeat(starts[:-1], lengths)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A tensor on `device`, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@outside_graph
def plan_attention(
    query_lengths: Sequence[int], key_lengths: Sequence[int], *, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Attend:
    """Plans the attention of a batch: the queries of sequence b see its keys and nothing else.

    Args:
        query_lengths, key_lengths: (B) tokens of each sequence; every sequence has at least one key.
        head_dim: C. dtype: what the queries will be in. device: where they will be.
    """
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and varlen_attn is not None:
        flash = head_dim % 8 == 0 and head_dim <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)
        if flash:
            return VarlenAttention.plan(query_lengths, key_lengths, device)
    return GroupedAttention.plan(query_lengths, key_lengths, device)


@dataclass(frozen=True)
class VarlenAttention:
    """Flash attention on the row itself; nothing is padded or moved."""

    query_starts: Tensor  # (B+1,) int32
    key_starts: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def plan(cls, query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device) -> VarlenAttention:
        def cumulative(lengths: Sequence[int]) -> Tensor:
            return to_device(starts_of(lengths).astype(np.int32), device)

        def longest(lengths: Sequence[int]) -> int:
            # Rounded up, so that a compiled block sees few different values.
            return -(-max(lengths) // 256) * 256

        same = query_lengths is key_lengths
        keys = cumulative(key_lengths)
        return cls(keys if same else cumulative(query_lengths), keys, longest(query_lengths), longest(key_lengths))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Only these seven positional arguments are the same in all versions of torch that have it.
        out = varlen_attn(q, k, v, self.query_starts, self.key_starts, self.longest_query, self.longest_key)
        return cast(Tensor, out)


@dataclass(frozen=True)
class _Group:
    """Rows of about the same width, which share one call."""

    rows: int
    queries: Tensor  # (R*Wq,) index into the row of queries; what only fills up points at the row's first token
    keys: Tensor  # (R*Wk,)
    mask: Tensor | None  # True where a query may look: (R,1,Wq,Wk), (R,1,1,Wk), or None where all is real


@dataclass(frozen=True)
class GroupedAttention:
    """Scaled dot-product attention on a few groups of rows."""

    groups: tuple[_Group, ...]
    order: Tensor  # (Q,) where each query's output lies in the groups' outputs, one after the other

    @classmethod
    def plan(cls, query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device) -> GroupedAttention:
        query_starts, key_starts = starts_of(query_lengths), starts_of(key_lengths)
        order = np.zeros(query_starts[-1], dtype=np.int64)
        groups: list[_Group] = []
        offset = 0
        for rows in group_rows(key_lengths):
            queries, query_owner = _lay_out(rows, query_starts)
            keys, key_owner = _lay_out(rows, key_starts)
            if not queries.size:
                continue
            real = query_owner.ravel() >= 0
            order[queries[real]] = offset + np.flatnonzero(real)
            offset += queries.size
            mask: NDArray[np.bool_] | None
            if any(len(row) > 1 for row in rows):
                # A query that only fills up sees everything: one that saw nothing would be NaN, and so would gradients.
                same = query_owner[:, :, None] == key_owner[:, None, :]
                mask = (same | (query_owner[:, :, None] < 0))[:, None]
            else:
                mask = (key_owner >= 0)[:, None, None, :]
            groups.append(
                _Group(
                    rows=len(rows),
                    queries=to_device(queries, device),
                    keys=to_device(keys, device),
                    mask=None if mask.all() else to_device(mask, device),
                )
            )
        return cls(tuple(groups), to_device(order, device))

    @outside_graph  # the number of groups changes from batch to batch
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = q.dtype
        on_cpu = q.device.type == "cpu"
        if on_cpu:
            # The CPU kernel's backward in half precision is several times slower than in float32, and less exact.
            q, k, v = q.float(), k.float(), v.float()
        outputs = []
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            for group in self.groups:
                out_RHWC = F.scaled_dot_product_attention(
                    _gather(q, group.queries, group.rows),
                    _gather(k, group.keys, group.rows),
                    _gather(v, group.keys, group.rows),
                    attn_mask=group.mask,
                )
                outputs.append(out_RHWC.transpose(1, 2).flatten(0, 1))
        if not outputs:
            return q.new_zeros(q.shape, dtype=dtype)
        return torch.cat(outputs).index_select(0, self.order).to(dtype)


def group_rows(lengths: Sequence[int]) -> list[list[list[int]]]:
    """Which sequences share a row of keys, and which rows share a call: groups of rows of sequence numbers.

    Sequences of at most 64 tokens fill rows of 64, first fit in order of decreasing length; a longer one has its own
    row, in a group of those whose length rounds up to the same multiple of 32.
    """
    joined: list[list[int]] = []
    room: list[int] = []
    alone: dict[int, list[list[int]]] = {}
    for sequence in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        length = lengths[sequence]
        if length > _JOINED_WIDTH:
            alone.setdefault(-(-length // _WIDTH_STEP), []).append([sequence])
            continue
        row = next((r for r, free in enumerate(room) if free >= length), len(joined))
        if row == len(joined):
            joined.append([])
            room.append(_JOINED_WIDTH)
        joined[row].append(sequence)
        room[row] -= length
    return [*alone.values(), *([joined] if joined else [])]


def _lay_out(rows: list[list[int]], starts: Indices) -> tuple[Indices, Indices]:
    """Puts the tokens of the sequences of each row side by side.

    Returns:
        The index of the token in each place, (R*W,), and the sequence it belongs to, (R,W), -1 where a place only
        fills up.
    """
    width = max(sum(int(starts[b + 1] - starts[b]) for b in row) for row in rows)
    index = np.zeros((len(rows), width), dtype=np.int64)
    owner = np.full((len(rows), width), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        # Filling up with a token of the same row keeps what is wrong with one sequence (a NaN) out of the others.
        index[r] = min(int(starts[row[0]]), int(starts[-1]) - 1)
        at = 0
        for b in row:
            length = int(starts[b + 1] - starts[b])
            index[r, at : at + length] = np.arange(starts[b], starts[b + 1])
            owner[r, at : at + length] = b
            at += length
    return index.ravel(), owner


def _gather(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """(N,H,C) -> (R,H,W,C)."""
    return x.index_select(0, index).view(rows, -1, *x.shape[1:]).transpose(1, 2)
