"""The layout of a batch as tensors, made on the host next to the data and used by every layer.

    full row   [CLS] t t t t  [CLS] t t ...     M = N + S rows, a [CLS] in front of each sequence
    visible    [CLS] t   t    [CLS]   t ...     V rows of it that the encoder sees
    wanted           t   t          t ...       Q rows of it that are predicted

The sizes of a plan are those of its batch, or those of a `Capacity`: then dummy sequences, whose predictions weigh nothing, fill
up the rest, so that all batches of an epoch have one shape and one CUDA graph serves them all.

Shapes: S sequences, N tokens in one row, M = N + S, V visible tokens + S, Q predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = Sequence[int] | NDArray[np.int64]
Flags = NDArray[np.bool_]


class Plan(NamedTuple):
    """The places of a batch. All are int64 unless said otherwise."""

    places: Tensor
    """(M) 0 for a [CLS], 1 + place in its sequence for a token; float64 where positions are squeezed."""
    tokens: Tensor
    """(M) which token lies in a row; N for a [CLS]."""
    visible: Tensor
    """(V) rows that the encoder sees, in order."""
    wanted: Tensor
    """(Q) rows to predict, in order."""
    weights: Tensor
    """(Q) float32, what the prediction of each counts in the loss; 0 for a dummy and for a visible token."""
    sequence: Tensor
    """(N) the sequence of each token."""
    seen: Tensor
    """(N) bool, the real tokens that are visible."""
    row_starts: Tensor
    """(S+1) int32, where the sequences start in the full row, and its end."""
    visible_starts: Tensor
    """(S+1) int32, the same among the visible rows."""
    wanted_starts: Tensor
    """(S+1) int32, the same among the wanted rows."""
    longest: int
    """No sequence has more rows, [CLS] included."""

    def to(self, device: torch.device) -> Plan:
        """The plan on a device; from pinned memory without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def clone(self) -> Plan:
        """The same in memory of its own."""
        return self._each(torch.clone)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Plan:
        return Plan._make(function(field) if isinstance(field, Tensor) else field for field in self)

    def whole(self) -> Plan:
        """The plan of the same sequences with nothing masked."""
        every = torch.arange(len(self.places), device=self.places.device)
        return self._replace(visible=every, visible_starts=self.row_starts)


@dataclass(frozen=True)
class Capacity:
    """How much a plan holds: sequences, visible and masked tokens, and the longest sequence in tokens."""

    sequences: int
    visible: int
    masked: int
    longest: int

    @property
    def tokens(self) -> int:
        """N."""
        return self.visible + self.masked

    @classmethod
    def of(cls, batches: Sequence[tuple[int, int, int]], longest: int, step: int = 1) -> Capacity:
        """The smallest that holds each of these (sequences, visible, masked), in multiples of `step` tokens."""
        sequences, visible, masked = (max(sizes) for sizes in zip(*batches, strict=True))
        visible, masked = _up(visible, step), _up(masked, step)

        def spare(batch: tuple[int, int, int]) -> int:
            # Dummies needed to take the rest: each holds its even share of both kinds, rounded up.
            count, seen, hidden = batch
            rest = visible - seen + masked - hidden
            return count + max(1, -(-rest // max(1, longest - 2)))

        # A power of two, so that epochs differ little.
        dummies = 1 << (max(spare(batch) for batch in batches) - sequences - 1).bit_length()
        return cls(sequences + dummies, visible, masked, longest)


def make_plan(
    lengths: Integers,
    masked: Flags | None = None,
    *,
    capacity: Capacity | None = None,
    weight: float | None = None,
    everywhere: bool = False,
    longest: int | None = None,
    squeeze_to: int | None = None,
) -> Plan:
    """The plan of a batch, on the CPU.

    Args:
        lengths: (S) tokens of each sequence. masked: (N), True is masked; by default nothing is.
        capacity: sizes to fill up to. weight: what each masked token counts; by default one in their number.
        everywhere: predict visible tokens too.
        longest: a bound of the lengths, the same for many batches; by default their maximum.
        squeeze_to: longer sequences have their positions squeezed into this many places.

    Raises:
        ValueError: the batch does not fit the capacity.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    hidden = np.zeros(int(counts.sum()), dtype=bool) if masked is None else masked
    real, predicted = len(hidden), int(hidden.sum())
    if capacity is not None:
        counts, hidden = _filled_up(counts, hidden, capacity)
        longest = capacity.longest
    starts = np.concatenate([[0], np.cumsum(counts + 1)])
    places = np.arange(starts[-1]) - np.repeat(starts[:-1], counts + 1)
    is_token = places > 0
    tokens = np.where(is_token, np.cumsum(is_token) - 1, len(hidden))
    row_hidden = np.zeros(len(places), dtype=bool)
    row_hidden[is_token] = hidden
    visible = np.flatnonzero(~row_hidden)
    wanted = np.flatnonzero(is_token if everywhere else row_hidden)
    weights = np.zeros(len(wanted), dtype=np.float32)
    counted = hidden[:real].nonzero()[0] if everywhere else slice(predicted)
    weights[counted] = 1 / max(1, predicted) if weight is None else weight
    seen = ~hidden
    seen[real:] = False
    at: NDArray[np.generic] = places
    if squeeze_to is not None and (counts > squeeze_to).any():
        ratio = np.where(counts > squeeze_to, (squeeze_to - 1) / np.maximum(counts - 1, 1), 1.0)
        at = np.where(is_token, 1 + (places - 1) * np.repeat(ratio, counts + 1), 0.0)
    return Plan(
        places=torch.from_numpy(at),
        tokens=torch.from_numpy(tokens),
        visible=torch.from_numpy(visible),
        wanted=torch.from_numpy(wanted),
        weights=torch.from_numpy(weights),
        sequence=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        seen=torch.from_numpy(seen),
        row_starts=torch.from_numpy(starts.astype(np.int32)),
        visible_starts=torch.from_numpy(np.searchsorted(visible, starts).astype(np.int32)),
        wanted_starts=torch.from_numpy(np.searchsorted(wanted, starts).astype(np.int32)),
        longest=1 + (int(counts.max(initial=0)) if longest is None else longest),
    )


def _filled_up(lengths: NDArray[np.int64], masked: Flags, capacity: Capacity) -> tuple[NDArray[np.int64], Flags]:
    """The batch with dummy sequences after it, each of visible tokens, then masked ones."""
    hidden = int(masked.sum())
    spare = capacity.sequences - len(lengths)
    rest = capacity.visible - (len(masked) - hidden), capacity.masked - hidden
    if spare < 0 or min(rest) < 0 or (spare == 0 and max(rest) > 0):
        raise ValueError(f"a batch of {len(lengths)} sequences and {len(masked)} tokens does not fit {capacity}")
    shares = np.zeros((spare, 2), dtype=np.int64)
    for kind in range(2):
        shares[:, kind] = rest[kind] // max(1, spare)
        shares[: rest[kind] % max(1, spare), kind] += 1
    dummies = shares.sum(axis=1)
    if dummies.max(initial=0) > capacity.longest:
        raise ValueError(f"a batch of {len(lengths)} sequences and {len(masked)} tokens leaves too much of {capacity}")
    kinds = np.repeat(np.tile([False, True], spare), shares.ravel())
    return np.concatenate([lengths, dummies]), np.concatenate([masked, kinds])


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
