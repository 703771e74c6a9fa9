"""Videos -> store: what is in it, that nothing is lost or done twice, and what becomes of bad files and dead workers."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from films import write_film
from jobs import MEAN, Mean, contents, embed
from lvmae.embedding import embed_videos
from lvmae.errors import InputError, WorkError
from lvmae.store import EmbeddingStore, merge_stores, remove_videos
from lvmae.video.decoding import decode_segments

HERE = Path(__file__).parent


WHITE = np.full((64, 64, 3), 255, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of 1 to 6 segments of one second, in two folders."""
    root = tmp_path_factory.mktemp("videos")
    (root / "sub").mkdir()
    for i in range(6):
        name = f"sub/{i}.mp4" if i % 2 else f"{i}.mp4"
        times = [40 * k for k in range(25 * (i + 1))]
        write_film(
            root / name,
            times,
            options={"g": "25"},
            pictures=lambda k, i=i: np.full((64, 64, 3), (40 * i + k) % 256, np.uint8),
        )
    return root


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "store"
    embed(folder, out)
    return out


def test_what_is_in_the_store(folder: Path, plain: Path) -> None:
    store = EmbeddingStore.open(plain)
    assert sorted(store.ids) == ["0", "2", "4", "sub/1", "sub/3", "sub/5"]
    assert store.manifest.segments == {"kind": "fixed", "seconds": 1.0}
    assert store.manifest.encoder == {"name": MEAN, "options": {}, "licence": "CC0"}
    record = store[store.index("sub/3")]
    assert (record.source, record.duration) == (str(folder / "sub/3.mp4"), pytest.approx(4.0))
    assert record.starts.tolist() == [0, 1, 2, 3]
    frames = np.stack(
        list(decode_segments(folder / "sub/3.mp4", record.starts, record.ends, num_frames=2, image_size=32))
    )
    np.testing.assert_array_equal(record.embeddings, Mean().encode_video(frames).astype(np.float16))


def test_workers_and_batches_change_nothing(folder: Path, plain: Path, tmp_path: Path) -> None:
    summary = embed(folder, tmp_path / "two", workers=2, batch_size=3)
    assert (summary.embedded, summary.skipped, summary.failed, summary.segments) == (6, 0, 0, 21)
    assert summary.seconds_of_video == pytest.approx(21.0)
    assert contents(tmp_path / "two") == contents(plain)


def test_what_is_done_is_not_done_again(folder: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    embed([folder / "0.mp4", folder / "4.mp4"], out)
    before = {p: p.stat().st_mtime_ns for p in (out / "data").iterdir()}
    summary = embed(folder, out)
    assert (summary.embedded, summary.skipped) == (4, 2)
    assert contents(out) == contents(plain)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    again = embed(folder, out)
    assert (again.embedded, again.skipped, again.segments) == (0, 6, 0)


def test_bad_files_are_failures_with_reasons(folder: Path, plain: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    good = (folder / "sub/5.mp4").read_bytes()
    (videos / "good.mp4").write_bytes(good)
    (videos / "empty.mp4").touch()
    (videos / "half.mp4").write_bytes(good[: len(good) // 2])
    (videos / "words.mp4").write_text("no video\n" * 100)
    (videos / "folder.mp4").mkdir()
    os.mkfifo(videos / "pipe.mp4")
    summary = embed(videos, tmp_path / "store", workers=2)
    assert (summary.embedded, summary.failed) == (1, 5)
    reasons = {f.id: f.reason for f in summary.failures}
    assert reasons == {f.id: f.reason for f in EmbeddingStore.open(tmp_path / "store").failures}
    assert reasons["empty"] == "the file is empty"
    assert "index is missing" in reasons["half"]
    assert "not a video" in reasons["words"]
    assert reasons["pipe"] == "it is a pipe or a device, not a file"
    assert contents(tmp_path / "store")["good"][4] == contents(plain)["sub/5"][4]

    (videos / "more.mp4").write_bytes(good)
    assert embed(videos, tmp_path / "store").embedded == 1  # known failures are left alone
    (videos / "empty.mp4").write_bytes(good)
    mended = embed(videos, tmp_path / "store")  # unless the file is another one now
    assert (mended.embedded, mended.failed) == (1, 4)
    assert embed(videos, tmp_path / "store", retry_failures=True).failed == 4


def test_a_film_that_breaks_off_takes_nothing_else_along(folder: Path, plain: Path, tmp_path: Path) -> None:
    """Truncated in the middle of a batch that holds segments of a good film too."""
    videos = tmp_path / "videos"
    videos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (150, 64, 64, 3), np.uint8)
    times = [40 * k for k in range(150)]
    options = {"g": "10"}
    whole = write_film(
        tmp_path / "w.mp4",
        times,
        options=options,
        pictures=lambda k: noise[k],
        container_options={"movflags": "faststart"},
    )
    (videos / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (videos / "good.mp4").write_bytes((folder / "sub/5.mp4").read_bytes())
    summary = embed(videos, tmp_path / "store", batch_size=4)
    assert (summary.embedded, summary.failed, summary.segments) == (1, 1, 6)
    assert summary.failures[0].reason.startswith("truncated: it says it lasts 6.0 s")
    assert contents(tmp_path / "store")["good"][4] == contents(plain)["sub/5"][4]


@pytest.fixture
def with_a_white_film(folder: Path, tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(3):
        (videos / f"{i}.mp4").write_bytes((folder / "2.mp4").read_bytes())
    write_film(videos / "white.mp4", [40 * k for k in range(100)], pictures=lambda k: WHITE)
    return videos


@pytest.mark.parametrize(
    ("trouble", "timeout", "reason"),
    [("die", 60.0, "its process was ended 2 times while decoding it (signal 9)"), ("hang", 2.0, "no progress for 2 s")],
)
def test_workers_that_die_or_hang(
    with_a_white_film: Path, tmp_path: Path, trouble: str, timeout: float, reason: str
) -> None:
    began = time.monotonic()
    summary = embed(
        with_a_white_film,
        tmp_path / "store",
        workers=2,
        batch_size=1,
        timeout=timeout,
        encoder_options={"trouble": trouble},
    )
    assert (summary.embedded, summary.failed) == (3, 1)
    assert summary.failures[0].id == "white"
    assert reason in summary.failures[0].reason
    assert time.monotonic() - began < 60


def test_an_encoder_that_fails_ends_the_job(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="RuntimeError: out of luck"):
        embed(folder, tmp_path / "a", encoder_options={"trouble": "raise=out of luck"})
    with pytest.raises(WorkError, match="FileNotFoundError: weights"):
        embed(folder, tmp_path / "a", encoder_options={"trouble": "miss=weights"})
    with pytest.raises(WorkError, match="failed its self-test"):
        embed(folder, tmp_path / "b", encoder_options={"trouble": "self-test"})


SCRIPT = """
import sys
from lvmae.embedding import embed_videos
folder, out, trouble = sys.argv[1:]
try:
    embed_videos(folder, out, encoder="jobs:Mean", encoder_options={"trouble": trouble}, segment_seconds=1.0, workers=2,
                 batch_size=1, commit_seconds=0.2)
except KeyboardInterrupt as stop:
    print(stop)
    sys.exit(130)
"""


def _start(folder: Path, out: Path, trouble: str = "log") -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(out), f"{trouble}={out.with_suffix('.log')}"]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait(job: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.02)


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small version of benchmarks/crashes.py."""
    monkeypatch.syspath_prepend(HERE.parents[1] / "benchmarks")
    found = importlib.import_module("crashes").crashes(3, tmp_path, seed=2)
    assert found["kills"] == 3
    assert found["last_exit_code"] == 0
    assert found["equal_to_an_undisturbed_store"]
    assert (
        found["encoded"] == found["segments"] + found["lost_in_flight"]
    )  # so nothing that was committed is done again
    assert found["encoded_though_committed_before"] == found["committed_shards_changed"] == found["orphans"] == 0


def test_a_worker_that_hangs_ends_when_its_job_is_killed(
    with_a_white_film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE.parents[1] / "benchmarks")
    family = importlib.import_module("watching").family
    job = _start(with_a_white_film, tmp_path / "store", trouble="hang")
    _wait(job, (tmp_path / "store.log").exists)
    workers = family(job.pid)[0][1:]
    assert workers
    job.kill()
    job.wait()  # its pipes are still held by the workers
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_job_on_the_same_store_is_refused(folder: Path, tmp_path: Path) -> None:
    job = _start(folder, tmp_path / "store")
    _wait(job, (tmp_path / "store.log").exists)
    with pytest.raises(InputError, match="another process is writing to"):
        embed(folder, tmp_path / "store", encoder_options={"trouble": f"log={tmp_path / 'store.log'}"})
    assert job.wait(timeout=120) == 0
    assert len(EmbeddingStore.open(tmp_path / "store")) == 6


def test_interrupted_it_finishes_what_is_in_hand_and_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "store.log"
    job = _start(folder, tmp_path / "store")
    _wait(
        job, lambda: log.exists() and log.stat().st_size >= 3
    )  # the two longest videos, of 6 and 5 segments, are in hand
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    said, warned = job.communicate(timeout=60)
    assert job.returncode == 130
    store = EmbeddingStore.open(tmp_path / "store")
    assert {"4", "sub/5"} <= set(store.ids) < {"0", "2", "4", "sub/1", "sub/3", "sub/5"}
    assert log.stat().st_size == store.lengths.sum()  # nothing was begun and not finished
    assert "Finishing the current files; press Ctrl-C again to stop at once." in warned
    assert f"Stopped. {len(store)} of 6 videos are in" in said
    assert "rerun the same command to resume" in said


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_stopped_at_once_it_keeps_what_is_finished(
    folder: Path, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    log = tmp_path / "store.log"
    job = _start(folder, tmp_path / "store")
    _wait(job, lambda: log.exists() and log.stat().st_size >= 13)  # so that the longest one is finished
    began = time.monotonic()
    for number in numbers:
        os.kill(job.pid, number)
        time.sleep(0.05)
    job.communicate(timeout=60)
    assert job.returncode == 130
    assert time.monotonic() - began < 5
    stored = len(EmbeddingStore.open(tmp_path / "store"))
    assert 1 <= stored < 6


def test_wrong_requests(folder: Path, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for videos, options, says in (
        (tmp_path / "missing", {}, "no file or folder"),
        (tmp_path / "none", {}, "There is no video in"),
        (folder, {"encoder": "nonsense"}, "There is no encoder"),
        (folder, {"workers": 0}, "must be positive"),
        (folder, {"segment_seconds": 0.0}, "at least 0.1 seconds"),
    ):
        with pytest.raises(InputError, match=says):
            embed(videos, tmp_path / "store", **options)
    with pytest.raises(InputError, match="segment rule"):
        embed(folder, plain, segment_seconds=2.0)
    with pytest.raises(InputError, match="space"):
        embed(folder, plain, encoder="conse")


def test_real_films_with_the_offline_encoder(shared: Path, tmp_path: Path) -> None:
    """The default path: 5-second segments of two films, the same whether one process works or two."""
    one = embed_videos(shared / "videos", tmp_path / "one", workers=1)
    two = embed_videos(shared / "videos", tmp_path / "two", workers=2, batch_size=5)
    assert (one.embedded, one.segments, two.segments) == (2, 22, 22)
    assert one.seconds_of_video == pytest.approx(112.17, abs=0.1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    store = EmbeddingStore.open(tmp_path / "one")
    bunny = store.embeddings(store.index("big_buck_bunny_60s")).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(bunny, axis=1), 1, atol=2e-3)
    neighbours = (bunny[1:] * bunny[:-1]).sum(1).mean()
    assert neighbours > (bunny @ bunny.T)[~np.eye(len(bunny), dtype=bool)].mean() + 0.05  # time is in it


def test_a_video_is_stored_once_under_one_id_whatever_else_is_asked_for(folder: Path, tmp_path: Path) -> None:
    """Two folders with files of one name, in one call or several, in every order, from above and through links."""
    for number, name in enumerate(("dog", "cat")):
        (tmp_path / "lib" / name).mkdir(parents=True)
        shutil.copy(folder / f"{number * 2}.mp4", tmp_path / "lib" / name / "000.mp4")
    dog, cat = tmp_path / "lib/dog", tmp_path / "lib/cat"
    sources = {str(dog / "000.mp4"), str(cat / "000.mp4")}

    def stored(out: Path) -> dict[str, str]:
        return {record.id: record.source for record in EmbeddingStore.open(out)}

    assert embed(dog, tmp_path / "one by one").embedded == 1
    assert embed(cat, tmp_path / "one by one").embedded == 1
    assert stored(tmp_path / "one by one") == {"000": str(dog / "000.mp4"), "cat/000": str(cat / "000.mp4")}
    embed([dog, cat], tmp_path / "both")
    embed([cat, dog], tmp_path / "both turned")
    assert stored(tmp_path / "both") == stored(tmp_path / "both turned")
    assert set(stored(tmp_path / "both").values()) == sources
    (tmp_path / "linked").symlink_to(dog)
    for out in ("one by one", "both"):
        before = stored(tmp_path / out)
        for videos in (dog, cat, [cat, dog], tmp_path / "lib", tmp_path / "linked", cat / "000.mp4"):
            assert embed(videos, tmp_path / out).embedded == 0
        assert stored(tmp_path / out) == before


def test_a_folder_that_was_moved_is_known(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "here")
    embed(tmp_path / "here", tmp_path / "store")
    (tmp_path / "here").rename(tmp_path / "there")
    assert embed(tmp_path / "there", tmp_path / "store").skipped == 6
    shutil.copytree(tmp_path / "there", tmp_path / "copy", copy_function=shutil.copyfile)  # other times, same content
    assert embed(tmp_path / "copy", tmp_path / "store").skipped == 6


def test_files_that_changed_are_told_and_embedded_again_on_request(folder: Path, plain: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "store"
    shutil.copytree(folder, videos)
    assert embed(videos, out).changed == ()
    shutil.copy(folder / "4.mp4", videos / "0.mp4")
    os.utime(videos / "2.mp4", (1, 1))  # touched: its content is the same
    told = embed(videos, out)
    assert (told.embedded, told.changed) == (0, (str(videos / "0.mp4"),))
    assert contents(out)["0"][4] == contents(plain)["0"][4]
    done = embed(videos, out, refresh=True)
    assert (done.embedded, done.skipped, done.changed) == (1, 5, ())
    assert contents(out)["0"][4] == contents(plain)["4"][4]
    assert len(EmbeddingStore.open(out)) == 6
    assert embed(videos, out).changed == ()
    (videos / "0.mp4").write_text("no video any more")
    broken = embed(videos, out, refresh=True)
    assert (broken.embedded, broken.failed) == (0, 1)
    assert contents(out)["0"][4] == contents(plain)["4"][4]  # what was there stays


def test_a_removed_video_stays_out_until_it_is_admitted(
    folder: Path, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "store"
    shutil.copytree(plain, out)
    removed = EmbeddingStore.open(out).ids[1]
    remove_videos(out, [removed])
    with caplog.at_level(logging.INFO):
        assert embed(folder, out).embedded == 0
    assert f"1 of the videos were removed from {out} and stay out" in caplog.text
    assert removed not in EmbeddingStore.open(out).ids
    merge_stores([out], tmp_path / "merged")
    assert embed(folder, tmp_path / "merged").embedded == 0
    assert embed(folder, out, readmit=True).embedded == 1
    assert contents(out) == contents(plain)
