"""Two stores of the same films in segments of two lengths, labels that only order tells, and a recipe that takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvmae.store import Manifest, StoreWriter, VideoRecord


def write_store(path: Path, seconds: float, *, videos: int = 20, frames: int = 8) -> Path:
    """Films that run through four events forwards or backwards, from any of them."""
    generator = np.random.default_rng(0)
    events = np.linalg.qr(generator.normal(size=(16, 16)))[0]
    encoder = {"name": "planted", "options": {"num_frames": frames}, "licence": "CC0"}
    manifest = Manifest(f"planted-{seconds:g}-{frames}", 16, {"kind": "fixed", "seconds": seconds}, encoder)
    length = int(60 / seconds)
    times = np.arange(length) * seconds
    with StoreWriter(path, manifest) as writer:
        for video in range(videos):
            order = (np.arange(length) * (1 if video % 2 else -1) + int(generator.integers(4))) % 4
            rows = events[order] + 0.02 * generator.normal(size=(length, 16))
            writer.add(VideoRecord(f"v{video:03d}", "", 60.0, times, times + seconds, rows))
    return path


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Settings of all cells. 17 videos to train on in batches of 5: 4 steps an epoch, 24 in all."""
    return {
        "layers": 1,
        "decoder_width": 8,
        "decoder_layers": 1,
        "decoder_heads": 2,
        "epochs": 6,
        "warmup_epochs": 1,
        "batch_size": 5,
        "checkpoint_every": 4,
    }


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores by name, and `labels`."""
    root = tmp_path_factory.mktemp("films")
    labels = root / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"v{v:03d},{'on' if v % 2 else 'back'}\n" for v in range(20)))
    more = write_store(root / "more", 5.0, videos=25)  # of the same space as 5s
    return {"5s": write_store(root / "5s", 5.0), "10s": write_store(root / "10s", 10.0), "more": more, "labels": labels}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than these models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
