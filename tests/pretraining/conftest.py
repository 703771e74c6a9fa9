"""A store whose order is its only secret, a recipe that trains on it in a second, and processes to train in and to kill."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvmae.recipes import Recipe, named
from lvmae.store import Manifest, StoreWriter, VideoRecord

# 1 layer of width 16; 10 videos to train on in batches of 3, 3 and 3 and 1: 4 steps an epoch, 12 in all.
SMALL: dict[str, Any] = {
    "layers": 1,
    "decoder_width": 8,
    "decoder_layers": 1,
    "decoder_heads": 2,
    "loss": "mse",
    "mask_ratio": 0.5,
    "epochs": 3,
    "warmup_epochs": 1,
    "batch_size": 3,
    "order": "dealt",
    "base_lr": 0.5,
    "checkpoint_every": 3,
    "log_every": 2,
    "validate_every": 1,
    "val_fraction": 0.17,
}


def small(**settings: Any) -> Recipe:
    """The recipe of these tests."""
    return named("tiny").with_settings({**SMALL, **settings})


def write_store(
    path: Path, lengths: list[int], *, dim: int = 16, seed: int = 0, space_id: str = "planted", in_step: bool = False
) -> Path:
    """Videos that run through the same four events in the same order, from a first one of their own, or all `in_step`."""
    generator = np.random.default_rng(seed)
    events = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    manifest = Manifest(
        space_id=space_id,
        dim=dim,
        segments={"kind": "fixed", "seconds": 5.0},
        encoder={"name": "planted", "options": {}, "licence": "CC0 | `planted`"},
    )
    with StoreWriter(path, manifest, shard_bytes=8192) as writer:
        for video, length in enumerate(lengths):
            order = ((0 if in_step else generator.integers(4)) + np.arange(length)) % 4
            times = np.arange(length) * 5.0
            embeddings = events[order] + 0.02 * generator.normal(size=(length, dim))
            writer.add(VideoRecord(f"v{video:03d}", f"v{video:03d}.mp4", 5.0 * length, times, times + 5.0, embeddings))
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 videos of 6 to 28 segments."""
    return write_store(tmp_path_factory.mktemp("planted") / "store", list(range(6, 30, 2)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than these models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Processes:
    """Runs a function in processes of their own: forked from one that has imported everything and started no threads."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["lvmae.pretraining", "pandas", "matplotlib.backends.backend_agg"])

    def start(self, function: Callable[..., None], *args: Any, **kwargs: Any) -> multiprocessing.process.BaseProcess:
        process = self._context.Process(target=function, args=args, kwargs=kwargs)
        process.start()
        return process

    def run(self, function: Callable[..., None], *args: Any, **kwargs: Any) -> int | None:
        """Its exit code: 0, or minus the signal that killed it."""
        process = self.start(function, *args, **kwargs)
        process.join(120)
        assert process.exitcode is not None, "the process hangs"
        return process.exitcode


@pytest.fixture(scope="session")
def processes() -> Processes:
    os.environ["OMP_NUM_THREADS"] = "1"
    return Processes()
