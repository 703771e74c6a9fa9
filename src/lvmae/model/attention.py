"""Attention confined to each sequence of a batch that lies in one row.

Where the sequences start says everything: the queries of sequence s are rows `query_starts[s]` to `query_starts[s+1]`, its
keys likewise. One call a layer, one of three ways, by the device alone:

- CUDA in half precision: flash attention over those starts; nothing is padded or moved.
- CPU: one custom operator, so that compiled blocks hold it as one node. It lays the sequences out in a few groups of rows:
  those of up to 64 keys are joined into rows of 64 under a block-diagonal mask, longer ones keep a row of their own, and
  rows of about the same width share one call. For d 1024 what is padded so is under 2 % of a layer's work. The layout is made
  once a batch and kept for the other layers.
- elsewhere: every sequence is padded to the longest. Slow, but without a look at the values, so a CUDA graph can hold it.

Shapes: S sequences, Q queries, K keys, H heads, C channels a head, R rows of width W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

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

# Measured on CPU: rows shorter than this are dominated by the cost of a call, longer ones by masked-out scores.
_JOINED_WIDTH = 64
_WIDTH_STEP = 32


class Spans(NamedTuple):
    """Where the sequences lie in a row of M tokens, and which of these look at them."""

    starts: Tensor
    """(S+1) int32, where the sequences start, and the row's end."""
    longest: int
    """No sequence is longer."""
    wanted: Tensor | None = None
    """(Q) the tokens that look; None: all."""
    wanted_starts: Tensor | None = None
    """(S+1) int32, where the sequences start among them."""


def attend(q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, key_starts: Tensor, longest: int) -> Tensor:
    """The queries of each sequence see its keys and nothing else: q (Q,H,C), k and v (K,H,C) -> (Q,H,C).

    Args:
        query_starts, key_starts: (S+1) int32, from 0 to Q and to K. Every sequence that has queries has keys.
        longest: no sequence has more queries or keys.
    """
    if q.device.type == "cpu":
        out, _ = torch.ops.lvmae.grouped_attention(q, k, v, query_starts, key_starts)
        return cast(Tensor, out)
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.device.type == "cuda" and half and varlen_attn is not None and q.shape[2] % 8 == 0 and q.shape[2] <= 256:
        # Only these seven positional arguments are the same in all versions of torch that have it.
        return cast(Tensor, varlen_attn(q, k, v, query_starts, key_starts, longest, longest))
    return padded_attention(q, k, v, query_starts, key_starts, longest)


def padded_attention(q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, key_starts: Tensor, longest: int) -> Tensor:
    """The same as `attend`, each sequence in a row of `longest` places."""

    def padded(x: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        index = starts[:-1, None] + torch.arange(longest, device=x.device)  # (S,W)
        real = index < starts[1:, None]
        index = index.clamp(max=len(x) - 1).flatten()
        return x.index_select(0, index).view(*real.shape, *x.shape[1:]).transpose(1, 2), real  # (S,H,W,C)

    rows, _ = padded(q, query_starts)
    (keys, real), (values, _) = padded(k, key_starts), padded(v, key_starts)
    # A sequence without keys has no queries, but its row must not be NaN: its gradients would be.
    mask = (real | ~real[:, :1])[:, None, None]
    out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask).transpose(1, 2).flatten(0, 1)
    place = torch.arange(len(q), device=q.device)
    sequence = torch.searchsorted(query_starts, place, right=True) - 1
    return out.index_select(0, sequence * longest + place - query_starts.index_select(0, sequence))


# -- on the CPU


@torch.library.custom_op("lvmae::grouped_attention", mutates_args=(), device_types="cpu")
def grouped_attention(
    q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, key_starts: Tensor
) -> tuple[Tensor, Tensor]:
    """-> (Q,H,C), and what the backward pass needs: the logarithms of the softmax's sums, (Q,H) float32."""
    outputs, sums = [q.new_zeros(0, *q.shape[1:])], [q.new_zeros(0, q.shape[1], dtype=torch.float32)]
    layout = _layout(query_starts, key_starts)
    q, k, v = _exact(q), _exact(k), _exact(v)
    with torch.autocast("cpu", enabled=False):
        for group in layout.groups:
            out, sum_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                group.take(q, group.queries), group.take(k, group.keys), group.take(v, group.keys), attn_mask=group.mask
            )
            outputs.append(out.transpose(1, 2).flatten(0, 1).to(outputs[0].dtype))
            sums.append(sum_.transpose(1, 2).flatten(0, 1).to(sums[0].dtype))
    return torch.cat(outputs).index_select(0, layout.order), torch.cat(sums).index_select(0, layout.order)


@torch.library.custom_op("lvmae::grouped_attention_backward", mutates_args=(), device_types="cpu")
def grouped_attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> the gradients of q, k and v."""
    dtype = q.dtype
    layout = _layout(query_starts, key_starts)
    gradient, q, k, v, out = (_exact(x) for x in (gradient, q, k, v, out))
    found: list[list[Tensor]] = [[], [], []]
    with torch.autocast("cpu", enabled=False):
        for group in layout.groups:
            # What only fills up has no gradient, and an infinite sum: it looks at nothing.
            real = group.real.view(group.rows, 1, -1, 1)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                group.take(gradient, group.queries) * real,
                group.take(q, group.queries),
                group.take(k, group.keys),
                group.take(v, group.keys),
                group.take(out, group.queries),
                group.take(sums[..., None], group.queries).masked_fill(~real, torch.inf)[..., 0],
                0.0,
                False,
                attn_mask=group.mask,
            )
            for collected, part in zip(found, parts, strict=True):
                collected.append(part.transpose(1, 2).flatten(0, 1))
    nothing = [x.new_zeros(1, *x.shape[1:]) for x in (q, k, v)]  # of keys that no query sees
    orders = (layout.order, layout.key_order, layout.key_order)
    dq, dk, dv = (
        torch.cat([*parts, zero]).index_select(0, order).to(dtype)
        for parts, zero, order in zip(found, nothing, orders, strict=True)
    )
    return dq, dk, dv


@grouped_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, query_starts: Tensor, key_starts: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@grouped_attention_backward.register_fake
def _(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, query_starts, key_starts, out, sums = ctx.saved_tensors
    found = torch.ops.lvmae.grouped_attention_backward(gradient, q, k, v, out, sums, query_starts, key_starts)
    return (*found, None, None)


grouped_attention.register_autograd(_backward, setup_context=_remember)


def _exact(x: Tensor) -> Tensor:
    # The CPU kernel's backward in half precision is several times slower than in float32, and less exact.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True)
class _Group:
    """Rows of about the same width, which share one call."""

    rows: int
    queries: Tensor  # (R*Wq) index into the row of queries; what only fills up points at a token of the same row
    keys: Tensor  # (R*Wk)
    real: Tensor  # (R*Wq) False where a query only fills up
    mask: Tensor | None  # 0 if a query may look, else -inf: (R,1,Wq,Wk), (R,1,1,Wk), or None if all is real

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        """(N,H,C) -> (R,H,W,C)."""
        return x.index_select(0, index).view(self.rows, -1, *x.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class _Layout:
    """How the sequences of a batch lie in groups of rows."""

    groups: tuple[_Group, ...]
    order: Tensor  # (Q) where each query's output lies in the groups' outputs, one after the other
    key_order: Tensor  # (K) the same of keys; one past the end for a key that no query sees


def _layout(query_starts: Tensor, key_starts: Tensor) -> _Layout:
    return _lay_out(query_starts.numpy().tobytes(), key_starts.numpy().tobytes())


@lru_cache(maxsize=8)  # a batch needs three; its layers ask for them one after the other
def _lay_out(queries: bytes, keys: bytes) -> _Layout:
    starts = [np.frombuffer(each, dtype=np.int32).astype(np.int64) for each in (queries, keys)]
    orders = [np.full(each[-1], -1, dtype=np.int64) for each in starts]
    groups: list[_Group] = []
    offsets = [0, 0]
    for rows in group_rows(np.diff(starts[1]).tolist()):
        (index, owner), (key_index, key_owner) = (_side_by_side(rows, each) for each in starts)
        if not index.size:
            continue
        for which, (places, owners) in enumerate(((index, owner), (key_index, key_owner))):
            real = owners.ravel() >= 0
            orders[which][places[real]] = offsets[which] + np.flatnonzero(real)
            offsets[which] += places.size
        if any(len(row) > 1 for row in rows):
            # A query that only fills up sees everything: one that saw nothing would be NaN.
            seen = ((owner[:, :, None] == key_owner[:, None, :]) | (owner[:, :, None] < 0))[:, None]
        else:
            seen = (key_owner >= 0)[:, None, None, :]
        groups.append(
            _Group(
                rows=len(rows),
                queries=torch.from_numpy(index),
                keys=torch.from_numpy(key_index),
                real=torch.from_numpy(owner.ravel() >= 0),
                mask=None if seen.all() else torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf))),
            )
        )
    key_order = np.where(orders[1] < 0, offsets[1], orders[1])
    return _Layout(tuple(groups), torch.from_numpy(orders[0]), torch.from_numpy(key_order))


def group_rows(lengths: Sequence[int]) -> list[list[list[int]]]:
    """Which sequences share a row of keys, and which rows share a call: groups of rows of sequence numbers.

    Sequences of at most 64 tokens fill rows of 64, first fit in order of decreasing length; a longer one has its own
    row, in a group of those whose length rounds up to the same multiple of 32.
    """
    joined: list[list[int]] = []
    room: list[int] = []
    alone: dict[int, list[list[int]]] = {}
    for sequence in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
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


def _side_by_side(rows: list[list[int]], starts: Indices) -> tuple[Indices, Indices]:
    """Puts the tokens of the sequences of each row side by side.

    Returns:
        The index of the token in each place, (R*W,), and the sequence it belongs to, (R,W), -1 where a place only
        fills up.
    """
    width = max(sum(int(starts[s + 1] - starts[s]) for s in row) for row in rows)
    index = np.zeros((len(rows), width), dtype=np.int64)
    owner = np.full((len(rows), width), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        # Filling up with a token of the same row keeps what is wrong with one sequence (a NaN) out of the others.
        index[r] = min(int(starts[row[0]]), int(starts[-1]) - 1)
        at = 0
        for s in row:
            length = int(starts[s + 1] - starts[s])
            index[r, at : at + length] = np.arange(starts[s], starts[s + 1])
            owner[r, at : at + length] = s
            at += length
    return index.ravel(), owner
