"""One command from a folder of videos to the open page, and what it says it would cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from films import Filmer
from lvmae.cli import main
from lvmae.estimation import EmbeddingEstimate, estimate_embedding, estimate_pretraining
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord


@pytest.fixture
def folder(film: Filmer, tmp_path: Path) -> Path:
    """Two films, of 12 and of 24 seconds."""
    (tmp_path / "films").mkdir()
    for name, seconds in (("short", 12), ("long", 24)):
        film(f"films/{name}.mp4", range(0, seconds * 1000, 250), last_milliseconds=250)
    return tmp_path / "films"


def test_from_a_folder_to_an_open_page_and_again(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lvmae", "quickstart", str(folder), "--out", str(tmp_path / "out"), "--no-open"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as job:
        assert job.stdout is not None
        said = []
        for line in job.stdout:
            said.append(line.strip())
            if line.startswith("The page: "):
                with urllib.request.urlopen(line.split()[-1]) as page:
                    assert page.status == 200
            if line.startswith("The page stays open"):
                job.send_signal(signal.SIGINT)
    assert job.returncode == 0
    text = "\n".join(said)
    assert "2 videos are too few to learn from" in text
    assert f"$ lvmae embed {folder} --out {tmp_path / 'out' / 'store'}" in text  # what it ran is what one would type
    store = EmbeddingStore.open(tmp_path / "out" / "store")
    assert dict(zip(store.ids, store.lengths.tolist(), strict=True)) == {"long": 5, "short": 2}
    chapters = tmp_path / "out" / "chapters"
    assert {path.name: path.read_text().splitlines()[0] for path in chapters.iterdir()} == {
        "long.vtt": "WEBVTT",
        "short.vtt": "WEBVTT",
    }
    before = store.fingerprint
    assert main(["quickstart", str(folder), "--out", str(tmp_path / "out"), "--no-serve"]) == 0
    assert EmbeddingStore.open(tmp_path / "out" / "store").fingerprint == before


def test_a_dry_run_counts_and_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.mp4").write_bytes(b"no film")
    assert main(["embed", str(folder), "--out", str(tmp_path / "store"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 videos to embed, 0 already stored" in said
    assert "1 of 3 opened videos cannot be read" in said
    assert not (tmp_path / "store").exists()


def test_an_estimate_follows_from_its_rates(folder: Path) -> None:
    estimate = estimate_embedding(folder, segment_seconds=4.0, workers=1)
    assert (estimate.videos, estimate.segments, estimate.opened, estimate.unreadable) == (2, 9, 2, 0)
    assert estimate.hours == pytest.approx(36 / 3600, rel=0.02)
    assert estimate.bytes == 9 * (384 * 2 + 16)
    working = 9 * (1 / estimate.decode_rate + 1 / estimate.encode_rate)
    assert estimate.seconds > working > 0
    assert isinstance(estimate, EmbeddingEstimate)


def test_an_estimate_of_pretraining_takes_real_steps_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest(space_id="made", dim=16, segments={"kind": "fixed", "seconds": 5.0}, encoder={"name": "made"})
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", manifest) as writer:
        for number in range(10):
            starts = 5.0 * np.arange(20)
            writer.add(
                VideoRecord(f"v{number}", f"v{number}.mp4", 100.0, starts, starts + 5, rng.normal(size=(20, 16)))
            )
    settings = {
        "epochs": 3,
        "batch_size": 4,
        "val_fraction": 0.2,
        "layers": 1,
        "min_seconds": 1000,
        "precision": "fp32",
    }
    estimate = estimate_pretraining(tmp_path / "store", recipe="tiny", settings=settings)
    # 8 videos are trained on, in 2 steps an epoch; windows are as long as the videos.
    assert (estimate.videos, estimate.steps, estimate.segments) == (8, 6, 3 * 8 * 20)
    assert estimate.seconds > 0
    argv = ["pretrain", str(tmp_path / "store"), "--out", str(tmp_path / "run"), "--recipe", "tiny", "--dry-run"]
    assert main([*argv, *(part for item in settings.items() for part in ("--set", "{}={}".format(*item)))]) == 0
    assert "8 videos, 480 segments, 6 steps" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
