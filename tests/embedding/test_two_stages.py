"""Decoders feed encoders: the store that one process makes, one copy of the weights a device, and what becomes of the dead."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from films import write_film
from jobs import Mean, contents, embed
from lvmae.embedding import engine, frame_memory, local_engine, pipeline, two_stages
from lvmae.embedding.frame_memory import FrameMemory
from lvmae.embedding.two_stages import _Balance
from lvmae.errors import InputError, WorkError
from lvmae.store import EmbeddingStore

HERE = Path(__file__).parent
TWO = {"devices": "cpu,cpu", "workers": 2}
WHITE = np.full((64, 64, 3), 255, np.uint8)


class Counting(Mean):
    """An encoder that notes each time its weights are loaded."""

    def __init__(self, log: str) -> None:
        super().__init__()
        self.options = {"log": log}
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of 2 to 5 segments of one second, and a file that is none."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(4):
        times = [40 * k for k in range(25 * (i + 2))]
        write_film(
            root / f"{i}.mp4",
            times,
            options={"g": "25"},
            pictures=lambda k, i=i: np.full((64, 64, 3), (40 * i + k) % 190, np.uint8),
        )
    (root / "words.mp4").write_text("no video\n" * 100)
    return root


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("plain") / "store"
    embed(folder, out)
    return contents(out)


def test_the_store_is_the_one_that_one_process_makes_with_weights_loaded_once_a_device(
    folder: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = {"encoder": f"{__name__}:Counting", "encoder_options": {"log": str(log)}}
    summary = embed(folder, tmp_path / "store", **options, devices=["cpu", "cpu"], workers=3, batch_size=4)
    assert (summary.embedded, summary.failed, summary.segments) == (4, 1, 14)
    assert contents(tmp_path / "store") == plain
    assert "not a video" in summary.failures[0].reason
    loads = Counter(log.read_text().split())
    assert loads.pop(str(os.getpid())) == 1  # to describe the store
    assert set(loads.values()) == {1}
    assert len(loads) <= 2  # one, if it had done all before the other was ready


def test_parts_of_a_long_film_and_its_broken_off_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_SHARED_BYTES", 1)
    long = tmp_path / "videos/long.mp4"
    long.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 120, (25, 64, 64, 3), np.uint8)
    flags = {"movflags": "faststart"}
    times = [40 * k for k in range(250)]
    write_film(long, times, options={"g": "25"}, pictures=lambda k: noise[k % 25] + k // 25, container_options=flags)
    data = long.read_bytes()
    (tmp_path / "videos/broken.mp4").write_bytes(data[: len(data) // 2])
    two, one = (
        embed(long.parent, tmp_path / name, keep_partial=True, **options)
        for name, options in (("two", TWO), ("one", {}))
    )
    assert (two.embedded, two.partial) == (one.embedded, one.partial) == (2, 1)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


# --- what dies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "given"), [("EncodingProcess", "take"), ("DecodingProcess", "grant")])
def test_a_process_killed_with_work_in_its_hands_costs_nothing(
    folder: Path, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, given: str
) -> None:
    killed: list[int] = []
    hand = getattr(getattr(two_stages, kind), given)

    def handed(process: Any, work: Any) -> None:
        hand(process, work)
        if not killed:
            process.process.kill()
            killed.append(process.process.pid)

    monkeypatch.setattr(getattr(two_stages, kind), given, handed)
    summary = embed(folder, tmp_path / "store", **TWO, batch_size=2)
    assert killed
    assert (summary.embedded, summary.failed, summary.segments) == (4, 1, 14)
    assert contents(tmp_path / "store") == plain


SCRIPT = """
import sys
from lvmae.embedding import embed_videos
folder, out, log = sys.argv[1:]
embed_videos(folder, out, encoder="jobs:Mean", encoder_options={"trouble": f"log={log}"}, segment_seconds=1.0, workers=2,
             batch_size=1, devices="cpu,cpu", commit_seconds=0.2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_job_that_is_stopped_leaves_no_process_and_the_same_command_continues(
    folder: Path, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.syspath_prepend(HERE.parents[1] / "benchmarks")
    family = importlib.import_module("watching").family
    out, log = tmp_path / "store", tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(out), str(log)]
    job = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    _wait(lambda: log.exists() and log.stat().st_size >= 2)
    started = family(job.pid)[0][1:]
    assert len(started) >= 3  # decoders and at least one encoder
    job.send_signal(number)
    job.wait(timeout=60)
    _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
    kept = len(EmbeddingStore(out))
    summary = embed(folder, out, **TWO, encoder_options={"trouble": f"log={log}"})
    assert (summary.skipped, summary.embedded) == (kept, 4 - kept)
    assert contents(out) == plain


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_workers_that_are_killed_while_they_start_cost_one_more_try(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(local_engine._Worker):
        starts = 0

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            Killed.starts += 1
            if Killed.starts <= 2:
                self.process.kill()

    monkeypatch.setattr(local_engine, "_Worker", Killed)
    assert embed(folder, tmp_path / "store", workers=1).embedded == 4
    Killed.starts = -10
    with pytest.raises(WorkError, match=r"A worker process ended 3 times before it could start \(signal 9\)"):
        embed(folder, tmp_path / "none", workers=1)


def test_processes_that_are_killed_while_they_start_cost_one_more_try(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(two_stages.EncodingProcess):
        starts = 0

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            Killed.starts += 1
            if Killed.starts <= 2:
                self.process.kill()

    monkeypatch.setattr(two_stages, "EncodingProcess", Killed)
    assert embed(folder, tmp_path / "store", devices="cpu", workers=1).embedded == 4
    assert Killed.starts == 3
    Killed.starts = -10
    with pytest.raises(WorkError, match=r"An encoding process ended 3 times before it could start \(signal 9\)"):
        embed(folder, tmp_path / "none", devices="cpu", workers=1)


@pytest.mark.parametrize(
    ("trouble", "timeout", "reason"),
    [
        ("die", 60.0, "its process was ended 2 times while encoding it (signal 9)"),
        ("hang", 4.0, "encoding made no progress for 4 s and was ended"),
    ],
)
def test_a_film_that_ends_encoders_is_the_only_one_that_fails(
    folder: Path, plain: dict[str, Any], tmp_path: Path, trouble: str, timeout: float, reason: str
) -> None:
    white = write_film(tmp_path / "white.mp4", [40 * k for k in range(50)], pictures=lambda k: WHITE)
    # The trouble is in batches of the white film alone: a mixed one has too little white.
    options = {"encoder_options": {"trouble": trouble}, "timeout": timeout, "batch_size": 1}
    summary = embed([folder, white], tmp_path / "store", **TWO, **options)
    assert {f.id: f.reason for f in summary.failures if f.id != "words"} == {"white": reason}
    assert {key: row[4] for key, row in contents(tmp_path / "store").items()} == {k: row[4] for k, row in plain.items()}


def test_an_encoder_that_fails_ends_the_job_and_devices_that_are_not_there_are_named(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WorkError, match="RuntimeError: out of luck"):
        embed(folder, tmp_path / "a", encoder_options={"trouble": "raise=out of luck"}, **TWO)
    with pytest.raises(InputError, match="The device 'abacus:3' is not available here"):
        embed(folder, tmp_path / "b", devices="cpu,abacus:3")
    with pytest.raises(InputError, match="`devices` applies to this machine only"):
        embed(folder, tmp_path / "b", devices="cpu", engine="ray")
    with pytest.raises(InputError, match="has no option `device`"):
        embed(folder, tmp_path / "b", devices="meta")


# --- what is shared and told ------------------------------------------------------------------------------------------------


def test_frames_need_no_room_in_dev_shm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = FrameMemory(3, (2, 4, 4, 3))
    assert "/dev/shm" not in str(Path(f"/proc/self/fd/{memory.descriptor}").readlink())
    memory[1][:] = 7
    other = FrameMemory(3, (2, 4, 4, 3), memory.descriptor)
    assert (other[1] == 7).all()
    assert not other[2].any()

    monkeypatch.delattr(os, "memfd_create")  # as on macOS
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    on_disk = FrameMemory(2, (1, 2, 2, 3))
    on_disk[0][:] = 5
    assert (FrameMemory(2, (1, 2, 2, 3), on_disk.descriptor)[0] == 5).all()
    assert not list(tmp_path.iterdir())

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frame_memory.os, "posix_fallocate", full)
    with pytest.raises(WorkError, match=r"no room for 1 MB of frames.*set TMPDIR"):
        FrameMemory(10, (8, 64, 64, 3))


def test_which_stage_limits_and_how_many_decoders_are_enough() -> None:
    balance = _Balance()
    for _ in range(500):
        balance.decoded(1.0, 0.0)  # two decoders never wait, and the encoder works a quarter of its time
        balance.encoded(1.0, 3.0)
    assert balance.note(2) == "decoding limits, 8 decoders would keep the encoder busy"
    for _ in range(2000):
        balance.decoded(0.5, 0.5)
        balance.encoded(1.0, 0.0)
    assert balance.note(16) == "encoding limits, 8 decoders keep the encoder busy"


def test_the_note_reaches_the_progress_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed(folder, tmp_path / "store", devices="cpu", workers=1, batch_size=2)
    assert "decoding limits, " in (said := capsys.readouterr().err) or "encoding limits, " in said


def test_what_is_finished_is_committed_after_seconds_sooner_in_a_young_job(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    commits: list[float] = []
    monkeypatch.setattr(engine.time, "monotonic", lambda: now)
    due = engine._Commits(SimpleNamespace(commit=lambda: commits.append(now)), 10.0)  # type: ignore[arg-type]
    while now < 1200:
        now += 0.25
        due.if_due()
    gaps = np.diff([1000.0, *commits])
    assert gaps.max() <= 10.25
    ages = np.array(commits) - 1000.0
    assert (gaps <= np.maximum(1.0, ages / 4) + 0.25).all()  # a kill after 4 s loses a second
    assert len(commits) < 40  # and an old job does not make small shards
