"""Clips of a file, parts of a film among workers, and what is kept of a film that breaks off."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from films import write_film
from jobs import MEAN, Mean, contents, embed
from lvmae.embedding import local_engine, pipeline
from lvmae.embedding.pipeline import Advanced, Job, embed_files, joined, shared_out
from lvmae.embedding.sources import VideoFile
from lvmae.files.identity import FileIdentity
from lvmae.store import EmbeddingStore, Failure, VideoRecord
from lvmae.video.segmentation import SegmentRule

JOB = Job(MEAN, {}, SegmentRule(1.0), batch_size=4)
SECONDS = 14
NOISE = np.random.default_rng(0).integers(0, 120, (25, 64, 64, 3), np.uint8)


def picture(number: int, *, white_from: int = 10**9) -> np.ndarray:
    """Noise, brighter from second to second; all white from a frame on."""
    return np.full_like(NOISE[0], 255) if number >= white_from else NOISE[number % 25] + np.uint8(4 * (number // 25))


def write_long(path: Path, seconds: int = SECONDS, white_from: int = 10**9) -> Path:
    times = [40 * k for k in range(25 * seconds)]
    return write_film(
        path,
        times,
        options={"g": "25"},
        pictures=lambda k: picture(k, white_from=white_from),
        container_options={"movflags": "faststart"},
    )


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.fixture(scope="module")
def whole(film: Path) -> VideoRecord:
    return only_record(VideoFile("film", str(film)))


def only_record(file: VideoFile, job: Job = JOB) -> VideoRecord:
    events = [event for _, event in embed_files([file], Mean(), job) if not isinstance(event, Advanced)]
    assert len(events) == 1
    assert isinstance(events[0], VideoRecord), events[0]
    return events[0]


def only_failure(file: VideoFile) -> str:
    events = [event for _, event in embed_files([file], Mean(), JOB)]
    assert len(events) == 1
    assert isinstance(events[0], Failure)
    return events[0].reason


# --- clips ----------------------------------------------------------------------------------------------------------------


def test_a_clip_has_the_times_of_its_file(film: Path, whole: VideoRecord) -> None:
    clip = only_record(VideoFile("clip", str(film), 3.0, 9.6))
    assert clip.starts.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert clip.ends.tolist() == [4, 5, 6, 7, 8, 9, pytest.approx(9.6)]
    assert clip.duration == pytest.approx(6.6)
    np.testing.assert_array_equal(clip.embeddings[:6], whole.embeddings[3:9])
    rest = only_record(VideoFile("rest", str(film), start=12.0))
    np.testing.assert_array_equal(rest.embeddings, whole.embeddings[12:])
    assert only_record(VideoFile("a little over", str(film), 13.0, SECONDS + 0.5)).ends[-1] == pytest.approx(SECONDS)


def test_a_clip_that_is_not_in_the_file_is_a_failure(film: Path) -> None:
    assert only_failure(VideoFile("late", str(film), 20.0, 30.0)) == (
        "the clip from 20 s to 30 s is not in the file, which lasts 14.0 s"
    )
    assert "from 10 s to 20 s is not in the file" in only_failure(VideoFile("over", str(film), 10.0, 20.0))


def test_a_manifest_of_clips_becomes_a_store(film: Path, whole: VideoRecord, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text(f"path,id,start,end\n{film},late,10,13\n{film},early,0,2\n{film},none,50,60\n")
    summary = embed(table, tmp_path / "store", workers=2)
    assert (summary.embedded, summary.failed, summary.seconds_of_video) == (2, 1, pytest.approx(5.0))
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.ids == ["early", "late"]
    assert store[1].starts.tolist() == [10, 11, 12]
    np.testing.assert_array_equal(store.embeddings(1), whole.embeddings[10:13].astype(np.float16))
    assert embed(table, tmp_path / "store").skipped == 2


# --- parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 20])
def test_parts_of_a_film_join_to_the_whole_to_the_bit(film: Path, whole: VideoRecord, parts: int) -> None:
    file = VideoFile("film", str(film))
    got = joined([only_record(replace(file, part=part, parts=parts)) for part in range(parts)])
    assert (got.id, got.source, got.duration) == (whole.id, whole.source, whole.duration)
    for name in ("starts", "ends", "embeddings"):
        np.testing.assert_array_equal(getattr(got, name), getattr(whole, name))


def test_only_films_that_would_keep_one_worker_busy_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_SHARED_BYTES", 100)

    def file(name: str, size: int, **clip: float) -> VideoFile:
        return VideoFile(name, name, listed=FileIdentity(bytes=size), **clip)

    def parts(files: list[VideoFile], workers: int) -> list[tuple[str, int]]:
        return [(f.id, f.parts) for f in shared_out(files, workers, JOB.rule)]

    equal = [file(name, 1000) for name in "abcd"]
    assert parts(equal, 2) == [(name, 1) for name in "abcd"]
    assert parts([file("a", 300), file("b", 900)], 2) == [("b", 3)] * 3 + [("a", 1)]
    assert parts([file("a", 1000)], 1) == [("a", 1)]
    assert parts([file("a", 150)], 8) == [("a", 2)] * 2
    assert parts([file("a", 90), file("clip", 10**6, end=5.0)], 2) == [("clip", 1), ("a", 1)]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[VideoFile]:
    """Films of any size are shared; and what the workers were given to do, in order."""
    monkeypatch.setattr(pipeline, "_SHARED_BYTES", 1)
    given: list[VideoFile] = []
    answer = local_engine._Worker.answer

    def noted(worker: local_engine._Worker, file: VideoFile | None) -> None:
        given.extend([file] if file else [])
        answer(worker, file)

    monkeypatch.setattr(local_engine._Worker, "answer", noted)
    return given


def test_one_film_among_two_workers(film: Path, tmp_path: Path, shared: list[VideoFile]) -> None:
    summary = embed(film, tmp_path / "two", workers=2)
    assert (summary.embedded, summary.segments) == (1, SECONDS)
    assert [(file.part, file.parts) for file in shared] == [(part, 4) for part in range(4)]
    embed(film, tmp_path / "one", workers=1)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_worker_that_dies_on_one_part_does_not_take_the_others_along(
    tmp_path: Path, shared: list[VideoFile], film: Path
) -> None:
    """Killed from outside, one part is tried again; where the encoder dies of a white picture, time after time, the film fails."""
    events = run_and_kill_the_worker_of(VideoFile("film", str(film)), part=3)
    records = [event for event in events if isinstance(event, VideoRecord)]
    assert len(records) == 1
    assert len(records[0].starts) == SECONDS
    given = [file.part for file in shared]
    assert set(given) == {0, 1, 2, 3}
    again = [part for part in range(4) if given.count(part) > 1]
    # Batches cross the borders of parts, so the worker may have held the end of the one before.
    assert again in ([3], [2, 3], [1, 3])
    assert len(given) == 4 + len(again)

    shared.clear()
    white = write_long(tmp_path / "white.mp4", white_from=25 * 12)
    summary = embed([white, film], tmp_path / "store", workers=2, batch_size=1, encoder_options={"trouble": "die"})
    assert (summary.embedded, summary.failed) == (1, 1)
    assert summary.failures[0].reason == "its process was ended 2 times while decoding it (signal 9)"


def run_and_kill_the_worker_of(file: VideoFile, part: int) -> list[object]:
    """All events of a job of two workers, one of which is killed as soon as it is given that part."""
    events: list[object] = []
    killed = False
    with local_engine.Crew(JOB, workers=2, timeout=60) as crew:
        for happened in crew.run([file], threading.Event()):
            events.append(happened[1] if happened else None)
            for worker in crew._pool:
                if not killed and any(held.part == part and held.parts > 1 for held in worker.held):
                    worker.process.send_signal(signal.SIGKILL)
                    killed = True
    assert killed
    return events


# --- broken off -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(film: Path, tmp_path: Path) -> Path:
    data = film.read_bytes()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/broken.mp4").write_bytes(data[: len(data) // 2])
    return tmp_path / "videos"


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 16), (1, 2), (2, 3)])
def test_what_was_decoded_of_a_broken_film_is_kept_and_told(
    broken: Path, whole: VideoRecord, tmp_path: Path, shared: list[VideoFile], workers: int, batch_size: int
) -> None:
    out = tmp_path / "store"
    summary = embed(broken, out, keep_partial=True, workers=workers, batch_size=batch_size)
    assert (summary.embedded, summary.failed, summary.partial) == (1, 0, 1)
    store = EmbeddingStore.open(out)
    record = store[0]
    length = len(record.starts)
    assert 5 <= length <= 8
    np.testing.assert_array_equal(record.embeddings, whole.embeddings[:length].astype(np.float16))
    assert record.duration == record.ends[-1] == length
    assert record.shortened.startswith("truncated: it says it lasts 14.0 s, and ends after ")
    assert [(f.id, f.reason, f.kept) for f in store.failures] == [("broken", record.shortened, float(length))]
    again = embed(broken, out, keep_partial=True, retry_failures=True)
    assert (again.embedded, again.skipped, again.failed, again.partial) == (0, 1, 0, 1)


def test_by_default_nothing_is_kept_of_a_broken_film(broken: Path, tmp_path: Path, shared: list[VideoFile]) -> None:
    summary = embed(broken, tmp_path / "store", workers=2)
    assert (summary.embedded, summary.failed, summary.partial, summary.failures[0].kept) == (0, 1, 0, 0)
    kept = embed(broken, tmp_path / "store", keep_partial=True, retry_failures=True)
    assert (kept.embedded, kept.failed, kept.partial) == (1, 0, 1)
