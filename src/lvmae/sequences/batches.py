"""Windows -> batches with no padding, and the order of an epoch's batches.

A packed batch holds all real tokens of its sequences in one row, (1, N, D), with the sequences' lengths beside it. Lengths stay
Python integers: what is planned from them needs no copy from the device. Price: nothing is padded; one concatenation a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lvmae.sequences.dataset import Window


def collate_packed(windows: Sequence[Window]) -> dict[str, Any]:
    """Packs B windows into keyword arguments of `LVMAEForPreTraining`: inputs_embeds (1, N, D) float32, lengths (B ints),
    bool_masked_pos (1, N), num_visible (B ints)."""
    return {
        "inputs_embeds": torch.from_numpy(np.concatenate([window.embeddings for window in windows]))[None],
        "lengths": [len(window.masked) for window in windows],
        "bool_masked_pos": torch.from_numpy(np.concatenate([window.masked for window in windows]))[None],
        "num_visible": [int(len(window.masked) - window.masked.sum()) for window in windows],
    }


def pad(sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads B tensors (L, …) with trailing zeros to (B, S, …); returns also attention_mask (B, S), where 1 is real."""
    padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()


def unpad(padded: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Packs the real tokens of (B, S, …), by attention_mask (B, S), into one row (N, …); returns also the lengths."""
    real = attention_mask.bool()
    return padded[real], real.sum(dim=1).tolist()


def epoch_batches(count: int, epoch: int, seed: int, batch_size: int) -> list[list[int]]:
    """Returns an epoch's items in batches, in an order drawn from (seed, epoch); the last batch may be smaller.

    Nothing is dropped: every item comes once.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def dealt_batches(lengths: np.ndarray, epoch: int, seed: int, batch_size: int) -> list[list[int]]:
    """Returns an epoch's items, each once, in batches of nearly equal token counts, drawn from (seed, epoch).

    The items, by length, are cut into `batch_size` bands; each batch has one of each band. Most bands are dealt at random. The
    last few give their longest to the batches that have the fewest tokens so far, which evens out what chance has left. What
    does not fill a batch, drawn evenly over the lengths, is a smaller last one. Items of a batch come longest first.

    Args:
        lengths: (n,) tokens of each item.
    """
    generator = np.random.default_rng([seed, epoch])
    count = len(lengths) // batch_size
    # Items of one length in random order, or the same would always meet.
    order = np.lexsort((generator.permutation(len(lengths)), -lengths))
    last = len(lengths) - count * batch_size
    left = np.array(
        [generator.choice(part) for part in np.array_split(np.arange(len(lengths)), last)] if last else [], int
    )
    bands = np.delete(order, left).reshape(batch_size, count)
    dealt = np.empty((count, batch_size), dtype=np.int64)
    tokens = np.zeros(count, dtype=np.int64)
    even = math.ceil(math.sqrt(batch_size))
    for turn, band in enumerate(generator.permutation(batch_size).tolist()):
        items = bands[band]
        if turn < batch_size - even:
            items = generator.permutation(items)
        else:
            items = items[np.argsort(np.argsort(tokens, kind="stable"), kind="stable")]
        dealt[:, band] = items
        tokens += lengths[items]
    batches: list[list[int]] = generator.permutation(dealt).tolist()
    return [*batches, order[left].tolist()] if last else batches


def parts_of(batch: Sequence[int], parts: int) -> list[list[int]]:
    """Splits a batch into parts with nearly equal numbers of items and of tokens."""
    rounds = [batch[i : i + parts] for i in range(0, len(batch), parts)]
    hands: list[list[int]] = [[] for _ in range(parts)]
    for number, cards in enumerate(rounds):
        for card, hand in zip(cards, hands if number % 2 == 0 else reversed(hands), strict=False):
            hand.append(card)
    return hands


def token_batches(lengths: Sequence[int] | np.ndarray, max_tokens: int) -> list[list[int]]:
    """Groups sequences by length, longest first, into batches of at most `max_tokens` tokens, for inference.

    A sequence longer than `max_tokens` is a batch of its own.
    """
    batches: list[list[int]] = []
    held = max_tokens
    for place in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[place])
        if not batches or held + length > max_tokens:
            batches.append([])
            held = 0
        batches[-1].append(place)
        held += length
    return batches
