"""Processes that know nothing of each other: shares of one input, merged; the command line's options for it; a full disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from films import write_film
from jobs import contents, embed
from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.store import EmbeddingStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten films of two segments, and a bad one."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(10):
        picture = np.full((64, 64, 3), 20 * i, np.uint8)
        write_film(root / f"{i}.mp4", [40 * k for k in range(50)], pictures=lambda _, p=picture: p)
    (root / "bad.mp4").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "store"
    embed(folder, out)
    return out


def test_ranks_make_the_store_of_one_job_even_if_their_number_changes(
    folder: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 of 3 is done, the rest is pre-empted; two ranks resume; the merge is what one job would have made."""
    out = tmp_path / "ranks"
    first = embed(folder, out, rank=0, world_size=3)
    assert first.store == f"{out}/rank-00000-of-00003"
    assert 0 < first.embedded < 10
    command = ["embed", folder, "--out", out, "--encoder", "jobs:Mean", "--segment-seconds", "1", "--workers", "1"]
    monkeypatch.setenv("SLURM_NTASKS", "2")
    embedded = skipped = 0
    for rank in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        code = main([*map(str, command), "--slurm"])
        said = capsys.readouterr().out
        assert said.startswith(f"{out}/rank-{rank:05d}-of-00002: ")
        assert code == int("bad.mp4: the file is empty" in said)
        embedded += int(said.split(": ")[1].split()[0])
        skipped += int(said.split(", ")[3].split()[0])
    assert (first.embedded + embedded, skipped) == (10, first.embedded)

    assert main(["merge", str(out), "--out", str(tmp_path / "store")]) == 1  # one failed
    said = capsys.readouterr().out
    assert "10 videos of 3 stores added, 0 already stored, 1 failed" in said
    assert contents(tmp_path / "store") == contents(plain)
    assert EmbeddingStore.open(tmp_path / "store").failures == EmbeddingStore.open(plain).failures


def test_ranks_that_cannot_be(folder: Path, plain: Path, tmp_path: Path) -> None:
    for out, options, says in (
        ("o", {"rank": 2, "world_size": 2}, "must lie between 0 and world size - 1, not be 2 of 2"),
        ("o", {"rank": 0}, "go together"),
        (plain, {"rank": 0, "world_size": 2}, "is a store, but ranks write their stores into a plain folder"),
    ):
        with pytest.raises(InputError, match=says):
            embed(folder, tmp_path / out, **options)
    embed(folder, tmp_path / "o", rank=0, world_size=2)
    with pytest.raises(InputError, match="segment rule"):
        embed(folder, tmp_path / "o", rank=1, world_size=2, segment_seconds=2.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--slurm"], "needs SLURM_PROCID and SLURM_NTASKS"),
        (["--slurm", "--rank", "0"], "not both"),
        (["--rank", "0"], "go together"),
        (["--engine", "spark"], "There is no engine 'spark'. Known: local, ray."),
        (["--address", "auto"], "go with the engine 'ray'"),
        (["--worker-gpus", "1"], "go with the engine 'ray'"),
        (["--timeout", "0"], "timeout must be positive, not 0.0"),
        (["--timeout", "nan"], "timeout must be positive, not nan"),
        (["--batch-size", "-1"], "batch_size must be positive, not -1"),
        (["--workers", "0"], "workers must be positive, not 0"),
        (["--segments", "scenes"], "scenes"),
        (["--segment-seconds", "0"], "at least 0.1 seconds"),
    ],
)
def test_every_wrong_option_is_one_sentence(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    says: str,
) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    command = ["embed", str(folder), "--out", str(tmp_path / "s"), "--encoder", "jobs:Mean", *options]
    assert main(command) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
    assert not (tmp_path / "s").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 KiB, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_what_was_committed(
    folder: Path, plain: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk / "store"
    assert embed([folder / f"{i}.mp4" for i in range(4)], out).embedded == 4
    before = contents(out)
    filler = small_disk / "filler"
    left = os.statvfs(small_disk)
    filler.write_bytes(b"\0" * (left.f_bavail * left.f_bsize))
    command = ["embed", str(folder), "--out", str(out), "--encoder", "jobs:Mean", "--segment-seconds", "1"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "the disk is full; what was committed is intact: rerun the same command to resume" in said
    assert "Traceback" not in said
    assert contents(out) == before
    assert not list(out.glob("**/.tmp-*"))
    filler.unlink()
    assert main(command) == 1  # the bad one
    assert contents(out) == contents(plain)
