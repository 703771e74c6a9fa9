"""Prepares items of a data set ahead of time in separate processes, on any machine.

torch hands tensors from a worker to its process through /dev/shm. Docker gives that 64 MB, and where it is full the hand-over
fails in a thread that nobody waits for: the process then waits for ever. So items cross here through the pipe, as arrays.
Price: one more copy of a batch, 10 ms for 30 MB.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils.operations import recursively_apply
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from lvmae.errors import WorkError


class _Parcel:
    """An item on its way: its tensors as arrays."""

    def __init__(self, item: Any) -> None:
        self.item = recursively_apply(lambda tensor: tensor.numpy(), item)

    def open(self) -> Any:
        return recursively_apply(torch.from_numpy, self.item, test_type=lambda value: isinstance(value, np.ndarray))

    def pin_memory(self) -> Any:
        """Called by torch's own thread for pinning."""
        return recursively_apply(torch.Tensor.pin_memory, self.open())


class _Sent(Dataset[_Parcel]):
    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, key: Any) -> _Parcel:
        return _Parcel(self.items[key])


def load(items: Dataset[Any], order: Iterable[Any], *, workers: int, pinned: bool) -> Generator[Any, None, None]:
    """The items in that order, made by `workers` processes (0: by this one). Close it, for that ends the processes.

    Args:
        items: pickles small; its tensors, in tuples, lists and dictionaries, are on the CPU.
        order: keys of `items`.
        workers: how many processes.
        pinned: the tensors are in memory that a GPU copies from without waiting.

    Raises:
        WorkError: a worker was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        _Sent(items) if workers else items,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        worker_init_fn=_leave_stopping_to_the_loop if workers else None,
        pin_memory=pinned,
        collate_fn=_as_it_is,
    )
    with _torchs_handler_for_a_while(), dead_workers_in_a_sentence(workers):
        for item in loader:
            yield item.open() if isinstance(item, _Parcel) else item


@contextlib.contextmanager
def dead_workers_in_a_sentence(workers: int) -> Iterator[None]:
    """A worker's death, which torch reports as a RuntimeError wherever its process is just then, as a WorkError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, WorkError) or "DataLoader worker" not in str(error):
            raise
        raise WorkError(
            f"One of the {workers} processes that load the data was killed, most likely for lack of memory: rerun the same "
            "command to resume from the last checkpoint, if need be with a smaller num_workers."
        ) from error


@contextlib.contextmanager
def _torchs_handler_for_a_while() -> Iterator[None]:
    """torch watches its workers by a handler of SIGCHLD, which it would leave to the process for good."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)
            signal_handling._SIGCHLD_handler_set = False


def _as_it_is(item: Any) -> Any:
    return item


def _leave_stopping_to_the_loop(_worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, and the loop still needs its workers to finish the step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
