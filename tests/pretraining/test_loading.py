"""Batches made by processes: the same tensors, none of them in /dev/shm, and a process that dies is a sentence."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import Dataset

from conftest import small, write_store
from lvmae.errors import InputError, WorkError
from lvmae.pretraining import pretrain
from lvmae.pretraining.data import TrainingData
from lvmae.pretraining.loading import load


class Item(NamedTuple):
    tensor: torch.Tensor
    parts: dict[str, Any]
    error: Exception | None


class Items(Dataset[Item]):
    def __getitem__(self, key: int) -> Item:
        if key < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        values = torch.arange(key, key + 6, dtype=torch.float16).reshape(2, 3)
        return Item(values, {"mask": values > 2, "lengths": [key, torch.tensor(key)]}, InputError(f"key {key}"))


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_order_and_as_they_were(workers: int) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    for key, item in enumerate(load(Items(), range(5), workers=workers, pinned=False)):
        wanted = Items()[key]
        assert isinstance(item, Item)
        assert item.tensor.dtype == torch.float16
        assert torch.equal(item.tensor, wanted.tensor)
        assert torch.equal(item.parts["mask"], wanted.parts["mask"])
        assert item.parts["lengths"] == wanted.parts["lengths"]
        assert str(item.error) == f"key {key}"
        assert not item.tensor.is_shared()  # nothing went through /dev/shm
    assert signal.getsignal(signal.SIGCHLD) is before


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    with pytest.raises(
        WorkError, match=r"One of the 1 processes that load the data was killed.* rerun the same command"
    ):
        list(load(Items(), [0, 1, -1, 2], workers=1, pinned=False))


def test_the_same_call_resumes_after_a_worker_was_killed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path / "s", [6] * 8)
    recipe = small(epochs=3, num_workers=1, checkpoint_every=1)
    whole = pretrain(store, tmp_path / "whole", recipe=recipe)
    made = TrainingData.batches

    def killed(self: TrainingData, *args: Any, **more: Any) -> Iterator[Any]:
        for number, batch in enumerate(made(self, *args, **more)):
            if number == 4:
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")
            yield batch

    monkeypatch.setattr(TrainingData, "batches", killed)
    with pytest.raises(WorkError, match="resume from the last checkpoint"):
        pretrain(store, tmp_path / "run", recipe=recipe)
    monkeypatch.undo()
    run = pretrain(store, tmp_path / "run", recipe=recipe)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
