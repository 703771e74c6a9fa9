"""How a batch becomes one row of its real tokens, and how results get back the shape the batch came in.

    padded (B,S,D) + attention_mask ──┐
    packed (1,N,D) + lengths ─────────┴► Batch: (N,D) ──► Layout: (M,D), a [CLS] in front of each sequence

Lengths are host-side lists: all shapes are known before the device has done anything. Masks stay on the device and are
turned into indices by sorting, whose result has a known shape, so a packed batch costs no synchronisation.

Shapes: B sequences, S places padded, N real tokens of a batch in one row, M = N + B, V visible tokens + B, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attention import Indices, outside_graph, places_of, starts_of, to_device
from .configuration_lvmae import LVMAEConfig
from .positions import position_table, sincos_positions


@dataclass(frozen=True)
class Layout:
    """A full row: the tokens of each sequence with a [CLS] in front of them."""

    lengths: Sequence[int]  # (B) without [CLS]
    row_lengths: Sequence[int]  # (B) with it
    size: int  # M
    cls_rows: Tensor  # (B)
    token_rows: Tensor  # (N)
    places: Tensor  # (M) 0 for [CLS], 1 + place for a token
    token_index: Tensor  # (M) which token lies in a row; means nothing for [CLS]

    @classmethod
    @outside_graph
    def of(cls, lengths: Sequence[int], device: torch.device) -> Layout:
        row_lengths = [length + 1 for length in lengths]
        starts = starts_of(row_lengths)
        places = places_of(row_lengths)
        return cls(
            lengths=lengths,
            row_lengths=row_lengths,
            size=int(starts[-1]),
            cls_rows=to_device(starts[:-1], device),
            token_rows=to_device(np.flatnonzero(places > 0), device),
            places=to_device(places, device),
            token_index=to_device(np.cumsum(places > 0) - 1, device),
        )

    @outside_graph
    def token_of(self, rows: Tensor) -> Tensor:
        """Which of the N tokens lie in these rows of the full row."""
        return self.token_index.index_select(0, rows)

    @outside_graph
    def positions(self, width: int, config: LVMAEConfig) -> Tensor:
        """Position embeddings of the row: (M,width) float32."""
        longest = max(self.lengths, default=0)
        if longest <= config.max_segments or config.long_sequences != "interpolate":
            # Powers of two, so that growing lengths make few tables.
            count = config.max_segments if longest <= config.max_segments else 1 << (longest - 1).bit_length()
            return position_table(count, width, self.places.device).index_select(0, self.places)
        last = config.max_segments - 1
        squeeze = [last / (length - 1) if length > config.max_segments else 1.0 for length in self.lengths]
        places = places_of(self.row_lengths)
        at = (places - 1) * np.repeat(squeeze, self.row_lengths)
        table = sincos_positions(torch.from_numpy(at), width)
        table[torch.from_numpy(places == 0)] = 0
        return table.to(self.places.device)


@dataclass(frozen=True)
class Batch:
    """A batch in one row, and how to give results the shape the batch came in."""

    tokens: Tensor  # (N,D)
    lengths: list[int]  # (B)
    masked: Tensor | None  # (N) bool
    num_visible: list[int]  # (B)
    shape: tuple[int, int] | None  # (B,S) if it came padded
    slots: Tensor | None  # (N) index into (B*S) if it came padded

    @property
    def num_masked(self) -> list[int]:
        return [length - visible for length, visible in zip(self.lengths, self.num_visible, strict=True)]

    @classmethod
    @outside_graph
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
        """Takes the arguments of the models' `forward`; raises ValueError where they do not fit together."""
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
        places, width = inputs_embeds.shape[0] * inputs_embeds.shape[1], inputs_embeds.shape[2]
        flat = inputs_embeds.reshape(places, width)
        masked = None if bool_masked_pos is None else bool_masked_pos.reshape(-1).bool()

        shape: tuple[int, int] | None = None
        slots: Tensor | None = None
        if lengths is not None:
            lengths = [int(length) for length in lengths]
            if attention_mask is not None:
                raise ValueError(
                    "lengths and attention_mask both say what is real; give lengths for a packed batch alone"
                )
            if inputs_embeds.shape[0] != 1 or sum(lengths) != places or min(lengths, default=0) < 0:
                raise ValueError(
                    f"lengths sum to {sum(lengths)} and inputs_embeds has the shape {tuple(inputs_embeds.shape)}; "
                    f"a packed batch is one row (1, {sum(lengths)}, {width})"
                )
        else:
            shape = (inputs_embeds.shape[0], inputs_embeds.shape[1])
            if attention_mask is None:
                lengths = [shape[1]] * shape[0]
            else:
                real = attention_mask.bool()
                host = (
                    real
                    if masked is None or num_visible is not None
                    else torch.stack([real, real & ~masked.view(shape)])
                )
                counts = host.sum(-1).tolist()  # the one wait for the device of a padded batch
                lengths = counts if host.ndim == 2 else counts[0]
                if host.ndim == 3:
                    num_visible = counts[1]
                slots = _true_first(real.reshape(-1))[: sum(lengths)]
                flat = flat.index_select(0, slots)
                masked = None if masked is None else masked.index_select(0, slots)
        return cls(flat, lengths, masked, _visible_counts(masked, lengths, num_visible), shape, slots)

    @outside_graph
    def split(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """The rows of the full row that the encoder sees, [CLS] included, (V), and the masked ones, in order."""
        hidden = torch.zeros(layout.size, dtype=torch.bool, device=self.tokens.device)
        if self.masked is not None:
            hidden = hidden.index_copy(0, layout.token_rows, self.masked)
        # Sorting has a shape that is known beforehand; torch.nonzero would wait for the device.
        rows = _true_first(~hidden)
        kept = sum(self.num_visible) + len(self.lengths)
        return rows[:kept], rows[kept:]

    @outside_graph
    def with_cls(self, row: Tensor, layout: Layout) -> Tensor:
        """(M,D) -> (B,S+1,D) or packed (1,M,D)."""
        if self.shape is None:
            return row[None]
        batch, places = self.shape
        if self.slots is None:
            return row.view(batch, places + 1, -1)
        out = row.new_zeros(batch, places + 1, row.shape[1])
        out[:, 0] = row.index_select(0, layout.cls_rows)
        sequence = torch.div(self.slots, places, rounding_mode="floor")
        flat = out.view(batch * (places + 1), -1)
        flat = flat.index_copy(0, self.slots + sequence + 1, row.index_select(0, layout.token_rows))
        return flat.view(batch, places + 1, -1)

    @outside_graph
    def without_cls(self, predicted: Tensor, tokens: Tensor) -> Tensor:
        """Predictions (Q,D) of the tokens with these indices (Q) -> (B,S,D) or packed (1,N,D), zeros elsewhere."""
        batch, places = self.shape or (1, len(self.tokens))
        slots = tokens if self.slots is None else self.slots.index_select(0, tokens)
        out = predicted.new_zeros(batch * places, predicted.shape[1])
        return out.index_copy(0, slots, predicted).view(batch, places, -1)


def _true_first(flags: Tensor) -> Tensor:
    """Indices of the True values, in order, then of the False ones, in order."""
    return torch.argsort(flags.logical_not().to(torch.uint8), stable=True)


def _visible_counts(masked: Tensor | None, lengths: list[int], num_visible: Sequence[int] | None) -> list[int]:
    """Visible segments of each sequence (B), on the host, checked against the mask."""
    if masked is None:
        return list(lengths)
    if num_visible is None or masked.device.type == "cpu":
        totals = np.concatenate([[0], np.cumsum((~masked).cpu().numpy())])
        starts = starts_of(lengths)
        counted: list[int] = (totals[starts[1:]] - totals[starts[:-1]]).tolist()
        if num_visible is not None and list(num_visible) != counted:
            raise ValueError(
                f"num_visible is {list(num_visible)} and bool_masked_pos leaves {counted} segments visible"
            )
    else:
        counted = [int(count) for count in num_visible]
        # Checked on the device without waiting for it: a wrong count would let sequences see each other.
        sequence = to_device(np.repeat(np.arange(len(lengths)), lengths), masked.device)
        found = torch.zeros(len(lengths), dtype=torch.int64, device=masked.device)
        found = found.index_add_(0, sequence, (~masked).long())
        given = to_device(np.asarray(counted, dtype=np.int64), masked.device)
        torch._assert_async((found == given).all(), "num_visible does not fit bool_masked_pos")
    if sum(counted) == sum(lengths):
        raise ValueError(
            "bool_masked_pos masks nothing, so there is nothing to predict; mask at least one segment a batch"
        )
    return counted


@dataclass(frozen=True)
class Windows:
    """The windows of a packed batch, one after the other, each with its [CLS]."""

    sizes: list[int]  # tokens of each window
    source: Indices  # index of each window token in the packed tokens
    target: Indices  # row each window row is added to in the full row
    weight: np.ndarray[Any, np.dtype[np.float32]]  # how much of it; the weights of a row sum to 1

    @classmethod
    def of(cls, lengths: Sequence[int], size: int) -> Windows:
        """Windows of `size` that overlap by half, the last one aligned with a sequence's end."""
        sizes: list[int] = []
        source: list[Indices] = []
        target: list[Indices] = []
        weight: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        token_starts, row_starts = starts_of(lengths), starts_of([length + 1 for length in lengths])
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
        starts = starts_of(self.sizes)
        first = 0
        while first < len(self.sizes):
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + tokens, side="right")) - 1)
            rows = slice(int(starts[first]) + first, int(starts[last]) + last)
            yield Windows(
                self.sizes[first:last], self.source[starts[first] : starts[last]], self.target[rows], self.weight[rows]
            )
            first = last
