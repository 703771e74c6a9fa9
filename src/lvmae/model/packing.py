"""Converts padded or packed input to one row of real tokens, and results back to the shape of the input.

    padded (B,S,D) + attention_mask ──┐
    packed (1,N,D) + lengths ─────────┴► Batch: (N,D), and what a `Plan` is made from

Masks come to the host, for a plan is made there: on a GPU that is one wait a batch, and none where a `Plan` is given instead.

Shapes: B sequences, S places padded, N real tokens of a batch in one row, M = N + B with a [CLS] in front of each, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .attention import Indices
from .configuration_lvmae import LVMAEConfig
from .plan import Flags, Plan, make_plan


@dataclass(frozen=True)
class Batch:
    """A batch in one row, and how to give results the shape the batch came in."""

    tokens: Tensor  # (N,D)
    lengths: list[int]  # (B)
    masked: Flags | None  # (N)
    shape: tuple[int, int] | None  # (B,S) if it came padded
    slots: Indices  # (N) index into (B*S), or into the packed row

    @classmethod
    def of(
        cls,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        num_visible: Sequence[int] | None = None,
        config: LVMAEConfig,
    ) -> Batch:
        """Takes the arguments of the models' `forward`; raises ValueError if they do not fit together."""
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != config.hidden_size:
            raise ValueError(
                f"inputs_embeds has the shape {tuple(inputs_embeds.shape)}; it should be (batch, segments, "
                f"{config.hidden_size}), for the model takes embeddings of {config.hidden_size} dimensions"
            )
        for name, mask in (("attention_mask", attention_mask), ("bool_masked_pos", bool_masked_pos)):
            if mask is not None and mask.shape != inputs_embeds.shape[:2]:
                raise ValueError(
                    f"{name} has the shape {tuple(mask.shape)} and inputs_embeds {tuple(inputs_embeds.shape)}; "
                    f"give one value a segment, {tuple(inputs_embeds.shape[:2])}"
                )
        rows, columns, width = inputs_embeds.shape
        shape: tuple[int, int] | None = (rows, columns)
        tokens = inputs_embeds.reshape(rows * columns, width)
        masked = None if bool_masked_pos is None else bool_masked_pos.bool().cpu().numpy().ravel()
        slots = np.arange(rows * columns)
        if lengths is not None:
            shape = None
            lengths = [int(length) for length in lengths]
            if attention_mask is not None:
                raise ValueError(
                    "lengths and attention_mask both say what is real; give lengths for a packed batch alone"
                )
            if rows != 1 or sum(lengths) != columns or min(lengths, default=0) < 0:
                raise ValueError(
                    f"lengths sum to {sum(lengths)} and inputs_embeds has the shape {tuple(inputs_embeds.shape)}; "
                    f"a packed batch is one row (1, {sum(lengths)}, {width})"
                )
        elif attention_mask is None:
            lengths = [columns] * rows
        else:
            real = attention_mask.bool().cpu().numpy()
            lengths = [int(count) for count in real.sum(axis=1)]
            slots = np.flatnonzero(real)
            tokens = tokens.index_select(0, torch.from_numpy(slots).to(tokens.device))
            masked = None if masked is None else masked[slots]
        _check_mask(masked, lengths, num_visible)
        return cls(tokens, list(lengths), masked, shape, slots)

    def plan(self, config: LVMAEConfig, *, everywhere: bool = False, windows: bool = True) -> Plan:
        """Where everything lies, on the device of the tokens.

        Raises ValueError if a sequence would have to be cut into windows, and `windows` says that it cannot be.
        """
        if not windows and config.long_sequences == "windows" and max(self.lengths, default=0) > config.max_segments:
            raise ValueError(
                f"a sequence has {max(self.lengths)} segments and max_segments is {config.max_segments}; cut it into "
                f"windows, or set long_sequences to extrapolate or interpolate"
            )
        # Powers of two, so that growing lengths are few numbers.
        longest = max(config.max_segments, 1 << (max(self.lengths, default=1) - 1).bit_length())
        squeeze_to = config.max_segments if config.long_sequences == "interpolate" else None
        plan = make_plan(self.lengths, self.masked, everywhere=everywhere, longest=longest, squeeze_to=squeeze_to)
        return plan.to(self.tokens.device)

    def with_cls(self, row: Tensor) -> Tensor:
        """(M,D) -> (B,S+1,D) or packed (1,M,D)."""
        if self.shape is None:
            return row[None]
        batch, places = self.shape
        counts = np.asarray(self.lengths)
        cls_rows = np.concatenate([[0], np.cumsum(counts + 1)[:-1]])
        target = np.empty(len(row), dtype=np.int64)
        target[cls_rows] = np.arange(batch) * (places + 1)
        target[np.delete(np.arange(len(row)), cls_rows)] = self.slots + self.slots // places + 1
        out = row.new_zeros(batch * (places + 1), row.shape[1])
        return out.index_copy(0, torch.from_numpy(target).to(row.device), row).view(batch, places + 1, -1)

    def without_cls(self, predicted: Tensor, tokens: Tensor) -> Tensor:
        """Predictions (Q,D) of the tokens with these indices (Q) -> (B,S,D) or packed (1,N,D), zeros elsewhere."""
        batch, places = self.shape or (1, len(self.slots))
        slots = torch.from_numpy(self.slots).to(tokens.device).index_select(0, tokens)
        out = predicted.new_zeros(batch * places, predicted.shape[1])
        return out.index_copy(0, slots, predicted).view(batch, places, -1)


def _check_mask(masked: Flags | None, lengths: Sequence[int], num_visible: Sequence[int] | None) -> None:
    if masked is None:
        return
    ends = np.cumsum(lengths)
    totals = np.concatenate([[0], np.cumsum(~masked)])
    counted = (totals[ends] - totals[ends - np.asarray(lengths)]).tolist()
    if num_visible is not None and list(num_visible) != counted:
        raise ValueError(f"num_visible is {list(num_visible)} and bool_masked_pos leaves {counted} segments visible")
    if not masked.any():
        raise ValueError(
            "bool_masked_pos masks nothing, so there is nothing to predict; mask at least one segment a batch"
        )


def _starts_of(lengths: Sequence[int]) -> Indices:
    """Where each sequence starts in the row, and where the row ends: (B+1,)."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """The windows of a packed batch, one after the other, each with its [CLS]."""

    sizes: list[int]  # tokens of each window
    source: Indices  # index of each window token in the packed tokens
    target: Indices  # row each window row is added to in the full row
    weight: NDArray[np.float32]  # how much of it; the weights of a row sum to 1

    @classmethod
    def of(cls, lengths: Sequence[int], size: int) -> Windows:
        """Windows of `size` that overlap by half, the last one aligned with a sequence's end."""
        sizes: list[int] = []
        source: list[Indices] = []
        target: list[Indices] = []
        weight: list[NDArray[np.float64]] = []
        token_starts, row_starts = _starts_of(lengths), _starts_of([length + 1 for length in lengths])
        step = max(1, size // 2)
        for b, length in enumerate(lengths):
            starts = [0] if length <= size else [*range(0, length - size, step), length - size]
            width = min(length, size)
            fade = np.minimum(np.arange(1, width + 1), np.arange(width, 0, -1)).astype(np.float64)
            total = np.zeros(length)
            for start in starts:
                total[start : start + width] += fade
            for start in starts:
                place = np.arange(start, start + width)
                sizes.append(width)
                source.append(token_starts[b] + place)
                target.append(row_starts[b] + np.concatenate([[0], 1 + place]))
                weight.append(np.concatenate([[1 / len(starts)], fade / total[place]]))
        return cls(sizes, np.concatenate(source), np.concatenate(target), np.concatenate(weight).astype(np.float32))

    def slices(self, tokens: int) -> Iterator[Windows]:
        """Runs of windows of at most `tokens` tokens, or of one window."""
        starts = _starts_of(self.sizes)
        first = 0
        while first < len(self.sizes):
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + tokens, side="right")) - 1)
            rows = slice(int(starts[first]) + first, int(starts[last]) + last)
            yield Windows(
                self.sizes[first:last], self.source[starts[first] : starts[last]], self.target[rows], self.weight[rows]
            )
            first = last
