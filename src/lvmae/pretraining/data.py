"""Which windows make up which step: stores -> a stream of packed micro-batches that starts at any step.

Nothing here is drawn from what ran before: the batch of a step follows from the seed and the step, the share of a process and
a micro-batch from their numbers, and a window from (seed, epoch, index).
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lvmae.errors import InputError, LVMAEError
from lvmae.pretraining.split import HELD_OUT, TRAIN, Ids, split_stores
from lvmae.recipes import Recipe
from lvmae.sequences import (
    DurationSampling,
    SegmentTimes,
    Window,
    WindowDataset,
    collate_packed,
    epoch_batches,
)
from lvmae.sequences.masking import shortest_maskable
from lvmae.store import EmbeddingStore


class MicroBatch(NamedTuple):
    """What one process gives the model at once."""

    inputs: dict[str, Any]
    """What `collate_packed` makes."""
    masked: int
    """The masked tokens of it that count."""


@dataclass(frozen=True)
class _Share:
    """Names a micro-batch: the windows of an epoch that it packs."""

    epoch: int
    windows: Sequence[int]
    counts: bool


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

    def batches(self, step: int, rank: int, world: int, device: torch.device) -> Generator[MicroBatch, None, None]:
        """The micro-batches of a process from a step on, `accumulation` of them a step, over all epochs that remain.

        Raises what reading a store raises. Close it, for that ends the loader's processes.
        """
        workers = self.recipe.num_workers
        loader: DataLoader[MicroBatch | LVMAEError] = DataLoader(
            _Batches(self.windows),
            batch_size=None,
            sampler=_Shares(self, step, rank, world),
            num_workers=workers,
            worker_init_fn=_leave_stopping_to_the_loop if workers else None,
            pin_memory=device.type == "cuda",
            collate_fn=_as_it_is,
        )
        for found in loader:
            if isinstance(found, LVMAEError):
                raise found
            yield found

    def shares(self, step: int, rank: int, world: int) -> Iterator[_Share]:
        """Which windows those are. The batch of a step is dealt out like cards, so that its parts are alike in length."""
        first_epoch, first_batch = divmod(step, self.steps_per_epoch)
        parts = world * self.recipe.accumulation
        for epoch in range(first_epoch, self.recipe.epochs):
            batches = epoch_batches(len(self.windows), epoch, self.recipe.seed, self.recipe.batch_size)
            for batch in batches[first_batch if epoch == first_epoch else 0 :]:
                for part in range(rank, parts, world):
                    dealt = batch[part::parts]
                    # Every process has to run every micro-batch: one that has nothing left repeats a window, uncounted.
                    yield _Share(epoch, dealt or batch[:1], counts=bool(dealt))


class _Shares:
    """`TrainingData.shares` as a sampler."""

    def __init__(self, data: TrainingData, *where: int) -> None:
        self.data, self.where = data, where

    def __iter__(self) -> Iterator[_Share]:
        return self.data.shares(*self.where)


class _Batches(Dataset["MicroBatch | LVMAEError"]):
    """Micro-batches by `_Share`. An error is an item like any other: a worker's would arrive as the text of its traceback."""

    def __init__(self, windows: WindowDataset) -> None:
        self.windows = windows

    def __getitem__(self, share: _Share) -> MicroBatch | LVMAEError:
        try:
            windows = [self.windows[share.epoch, place] for place in share.windows]
        except LVMAEError as error:
            return error
        inputs = collate_packed(windows)
        return MicroBatch(inputs, sum(inputs["lengths"]) - sum(inputs["num_visible"]) if share.counts else 0)


def _as_it_is(item: Any) -> Any:
    return item


def _leave_stopping_to_the_loop(_worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, and the loop still needs its workers to finish the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
