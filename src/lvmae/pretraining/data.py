"""Which windows make up which step: stores -> a stream of packed micro-batches that starts at any step.

Nothing here is drawn from what ran before: the batch of a step follows from the seed and the step, the share of a process and
a micro-batch from their numbers, and a window from (seed, epoch, index). Embeddings leave as they are stored, float16, or as row
numbers of a `table`; they are widened and normalised where the model is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from lvmae.errors import InputError, LVMAEError
from lvmae.model.plan import Capacity, Plan, make_plan
from lvmae.pretraining.loading import load
from lvmae.pretraining.split import Ids, split_stores
from lvmae.recipes import Recipe
from lvmae.runs import HELD_OUT, TRAIN
from lvmae.sequences import (
    DurationSampling,
    SegmentTimes,
    Window,
    WindowDataset,
    dealt_batches,
    epoch_batches,
    parts_of,
)
from lvmae.sequences.dataset import Drawn
from lvmae.sequences.masking import count_visible, shortest_maskable
from lvmae.store import EmbeddingStore

log = logging.getLogger(__name__)

_DEVICE_SHARE = 0.4  # of the device's free memory, at most, for the embeddings
_PART_BYTES = 1 << 28  # of a store that crosses to a device at once


class MicroBatch(NamedTuple):
    """What one process gives the model at once."""

    tokens: torch.Tensor
    """(N,D) embeddings as stored, or (N) int64, their rows in the table of all segments."""
    plan: Plan
    """Where they lie, and what each masked one counts in the step's loss."""

    def to(self, device: torch.device) -> MicroBatch:
        """On a device; from pinned memory without waiting."""
        return MicroBatch(self.tokens.to(device, non_blocking=True), self.plan.to(device))

    def clone(self) -> MicroBatch:
        """The same in memory of its own."""
        return MicroBatch(self.tokens.clone(), self.plan.clone())

    def tensors(self) -> list[torch.Tensor]:
        """All of it but the number that is the same for every batch."""
        return [self.tokens, *(each for each in self.plan if isinstance(each, torch.Tensor))]


@dataclass(frozen=True)
class _Share:
    """Names a micro-batch: the windows of an epoch that it packs."""

    epoch: int
    windows: Sequence[int]
    weight: float
    """Of each masked segment in the loss: one in their number in the whole step. 0: it does not count."""
    capacity: Capacity | None = None
    """What it is filled up to."""

    @property
    def counts(self) -> bool:
        """Whether it is a part of the batch."""
        return self.weight > 0


class TrainingData:
    """The videos of a run, split into those to train on and those held out.

    Args:
        stores: open stores of one space.
        recipe: the run's.
        only, exclude: ids of videos, or files of them, that alone may be used, or that may not.

    Raises:
        InputError: no video is long enough, a list of ids names none, or the recipe's mixture does not fit the stores.
    """

    def __init__(
        self,
        stores: Sequence[EmbeddingStore],
        recipe: Recipe,
        *,
        only: Ids | None = None,
        exclude: Ids | None = None,
    ) -> None:
        if recipe.mixture and len(recipe.mixture) != len(stores):
            raise InputError(f"mixture has {len(recipe.mixture)} weights for {len(stores)} stores: give one for each.")
        self.recipe = recipe
        shortest = shortest_maskable(recipe.mask_ratio)
        self.split = split_stores(stores, recipe, shortest, only=only, exclude=exclude)
        trained, held_out = self.split.places(TRAIN), self.split.places(HELD_OUT)
        self.description: list[dict[str, Any]] = [
            {
                "path": str(store.path),
                "space_id": store.space_id,
                "fingerprint": store.fingerprint,
                "videos": len(store),
                **self.split.counts(number),
                "segments": int(store.lengths.sum()),
                "split": self.split.digest(number),
            }
            for number, store in enumerate(stores)
        ]
        dataset = functools.partial(
            WindowDataset,
            sampling=DurationSampling(recipe.min_seconds, recipe.max_segments, recipe.max_seconds),
            mask=recipe.mask,
            mask_ratio=recipe.mask_ratio,
            temperature=recipe.temperature,
            seed=recipe.seed,
            draws="epoch" if recipe.order == "dealt" else "window",
        )
        used = [number for number, places in enumerate(trained) if len(places)]
        self.windows = dataset(
            [stores[number] for number in used],
            videos=[trained[number] for number in used],
            weights=[recipe.mixture[number] for number in used] if recipe.mixture else None,
        )
        self.steps_per_epoch = -(-len(self.windows) // recipe.batch_size)
        self.validation: list[Window] = []
        self.validation_ids: list[str] = []
        """The video of each validation window."""
        checked = [number for number, held in enumerate(held_out) if len(held)]
        if checked and recipe.val_windows:
            fixed = dataset([stores[n] for n in checked], videos=[held_out[n] for n in checked])
            self.validation = fixed.fixed_windows(recipe.val_windows)
            ids = [id_ for n in checked for id_ in stores[n].ids]
            self.validation_ids = [ids[window.video] for window in self.validation]
        self._shortest = shortest
        self._rows = np.cumsum([0, *(sum(map(len, store.blocks)) for store in self.windows.stores)])

    def sample(self, most: int = 16384) -> torch.Tensor:
        """(n, D) float32: up to about `most` segments of the training windows of the first epoch, the same at every call."""
        found: list[torch.Tensor] = []
        for place in (
            np.random.default_rng([self.recipe.seed, len(self.windows)]).permutation(len(self.windows)).tolist()
        ):
            found.append(torch.from_numpy(self.windows[0, place].embeddings))
            if sum(map(len, found)) >= most:
                break
        return torch.cat(found)

    @property
    def warnings(self) -> list[str]:
        """What the user should know before the run starts."""
        found = [
            f"{store['too_short']} of {store['videos']} videos in {store['path']} have fewer than the {self._shortest} segments "
            "that leave one to see and one to predict: they are not trained on."
            for store in self.description
            if store["too_short"]
        ]
        found += [
            f"No video of {store['path']} is trained on: all are held out in another store, too short or excluded."
            for store in self.description
            if store["videos"] == store["held_out"] + store["too_short"] + store["excluded"]
        ]
        if not any(store["held_out"] for store in self.description):
            found.append("No video is held out: nothing will tell whether the model learns more than interpolation.")
        longest = SegmentTimes.of(self.windows.stores[0]).seconds_of(self.recipe.max_segments)
        return found + self.recipe.overruled(videos=len(self.windows), longest_seconds=longest)

    def videos_in(self, step: int) -> int:
        """The size of a step's batch; the last of an epoch may be smaller."""
        within = step % self.steps_per_epoch
        return min(self.recipe.batch_size, len(self.windows) - within * self.recipe.batch_size)

    def videos_until(self, step: int) -> int:
        """The sizes of all batches before a step, together."""
        epochs, within = divmod(step, self.steps_per_epoch)
        return epochs * len(self.windows) + within * self.recipe.batch_size

    def table_on(self, device: torch.device) -> torch.Tensor | None:
        """All segments on the device, `table`, where the recipe says so or there is room; None if they stay on the host."""
        if self.recipe.data != "auto":
            return self.table(device) if self.recipe.data == "device" else None
        if device.type != "cuda":
            return None
        size = int(self._rows[-1]) * self.windows.stores[0].dim * 2
        fits = size <= _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
        log.info("The embeddings, %.2f GB, stay on the %s.", size / 1e9, "GPU" if fits else "host")
        return self.table(device) if fits else None

    def table(self, device: torch.device) -> torch.Tensor:
        """All segments of all stores on a device: (segments, D) float16."""
        found = torch.empty(int(self._rows[-1]), self.windows.stores[0].dim, dtype=torch.float16, device=device)
        row = 0
        for block in (block for store in self.windows.stores for block in store.blocks):
            for part in np.array_split(block, max(1, -(-block.nbytes // _PART_BYTES))):
                found[row : row + len(part)] = torch.from_numpy(part.copy())
                row += len(part)
        return found

    def batches(
        self,
        step: int,
        rank: int,
        world: int,
        device: torch.device,
        *,
        filled_up: bool = False,
        as_rows: bool = False,
    ) -> Generator[MicroBatch, None, None]:
        """The micro-batches of a process from a step on, `accumulation` of them a step, over all epochs that remain.

        Args:
            device: where they will go; for a GPU they are in memory that it copies from without waiting.
            filled_up: all of an epoch have the same sizes. as_rows: with row numbers of the table for embeddings.

        Raises what reading a store raises. Close it, for that ends the loader's processes.
        """
        loaded = load(
            _Batches(self.windows, self._rows if as_rows else None),
            _Shares(self, step, rank, world, filled_up),
            workers=self.recipe.num_workers,
            pinned=device.type == "cuda",
        )
        with contextlib.closing(loaded):
            for found in loaded:
                if isinstance(found, LVMAEError):
                    raise found
                yield found

    def shares(self, step: int, rank: int, world: int, filled_up: bool = False) -> Iterator[_Share]:
        """Which windows those are, and what their segments count."""
        first_epoch, first_batch = divmod(step, self.steps_per_epoch)
        parts = world * self.recipe.accumulation
        for epoch in range(first_epoch, self.recipe.epochs):
            batches = self._dealt(epoch, parts)
            capacity = self._capacity(epoch, batches) if filled_up else None
            for hands in batches[first_batch if epoch == first_epoch else 0 :]:
                masked = int(self._masked(epoch, [place for hand in hands for place in hand]).sum())
                for hand in hands[rank::world]:
                    # Every process has to run every micro-batch: one that has nothing left repeats a window, uncounted.
                    yield _Share(epoch, hand or hands[0][:1], 1 / masked if hand else 0.0, capacity)

    def _dealt(self, epoch: int, parts: int) -> list[list[list[int]]]:
        """The batches of an epoch, each dealt out like cards, so that its parts are alike in length."""
        recipe = self.recipe
        if recipe.order == "shuffled":
            batches = epoch_batches(len(self.windows), epoch, recipe.seed, recipe.batch_size)
            return [[batch[part::parts] for part in range(parts)] for batch in batches]
        batches = dealt_batches(self.windows.lengths(epoch), epoch, recipe.seed, recipe.batch_size)
        return [parts_of(batch, parts) for batch in batches]

    def _masked(self, epoch: int, places: Sequence[int] | None = None) -> np.ndarray:
        """(n,) masked segments of the windows of an epoch, or of some of them: every mask hides as many as the ratio says."""
        lengths: Any = self.windows.lengths(epoch, places)
        found: np.ndarray = lengths - count_visible(lengths, self.recipe.mask_ratio)
        return found

    def _capacity(self, epoch: int, batches: list[list[list[int]]]) -> Capacity:
        """What holds every micro-batch of an epoch."""
        lengths = self.windows.lengths(epoch)
        hidden = self._masked(epoch)
        sizes = []
        for hand in (hand for hands in batches for hand in hands if hand):
            masked = int(hidden[hand].sum())
            sizes.append((len(hand), int(lengths[hand].sum()) - masked, masked))
        # Steps of half a percent: few sizes over the epochs of a run, and little to fill up.
        step = max(1, round(max(masked for *_, masked in sizes) / 200))
        return Capacity.of(sizes, self.recipe.max_segments, step)


class _Shares:
    """`TrainingData.shares` as a sampler."""

    def __init__(self, data: TrainingData, step: int, rank: int, world: int, filled_up: bool) -> None:
        self.data, self.where, self.filled_up = data, (step, rank, world), filled_up

    def __iter__(self) -> Iterator[_Share]:
        return self.data.shares(*self.where, filled_up=self.filled_up)


class _Batches(Dataset["MicroBatch | LVMAEError"]):
    """Micro-batches by `_Share`. An error is an item like any other: a worker's would arrive as the text of its traceback."""

    def __init__(self, windows: WindowDataset, rows: np.ndarray | None) -> None:
        self.windows = windows
        self.rows = rows

    def __getitem__(self, share: _Share) -> MicroBatch | LVMAEError:
        try:
            # A window's generator is that of the next one too: its mask comes first.
            drawn, masks = [], []
            for place in share.windows:
                drawn.append(self.windows.draw(share.epoch, place))
                masks.append(self.windows.masked(drawn[-1]))
            lengths = np.array([window.length for window in drawn])
            size = share.capacity.tokens if share.capacity else int(lengths.sum())
            tokens = self._read(drawn, size) if self.rows is None else self._locate(drawn, lengths, size)
        except LVMAEError as error:
            return error
        longest = self.windows.sampling.max_segments
        plan = make_plan(lengths, np.concatenate(masks), capacity=share.capacity, weight=share.weight, longest=longest)
        return MicroBatch(torch.from_numpy(tokens), plan)

    def _read(self, drawn: Sequence[Drawn], size: int) -> np.ndarray:
        """(size, D) float16, zeros after the windows."""
        tokens = np.zeros((size, self.windows.stores[0].dim), np.float16)
        row = 0
        for number, video, start, length, _ in drawn:
            tokens[row : row + length] = self.windows.stores[number].embeddings(video, start, start + length)
            row += length
        return tokens

    def _locate(self, drawn: Sequence[Drawn], lengths: np.ndarray, size: int) -> np.ndarray:
        """(size,) int64 rows of the table, the first one's after the windows."""
        assert self.rows is not None
        stores = self.windows.stores
        firsts = [self.rows[number] + stores[number].first_rows[video] + start for number, video, start, *_ in drawn]
        found = np.zeros(size, np.int64)
        ends = np.cumsum(lengths)
        found[: ends[-1]] = np.arange(ends[-1]) + np.repeat(firsts - (ends - lengths), lengths)
        return found
