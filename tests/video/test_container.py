"""Files behind URLs give what files of this machine give; what fails there has a reason; nothing in a file leads elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile
from fsspec.registry import known_implementations

from films import Filmer, number_in
from lvmae.video import container as containers
from lvmae.video.decoding import VideoError, decode_segments, probe, thumbnails

MILLISECONDS = [40 * i for i in range(1000)]
OPTIONS = {"g": "25", "preset": "veryfast", "bf": "3"}


def noise(number: int) -> np.ndarray:
    """A picture that takes many bytes."""
    return np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


@pytest.mark.parametrize("name", ["late.mp4", "a.mkv", "a.ts"])
def test_a_url_gives_what_the_file_gives(film: Filmer, memory: fsspec.AbstractFileSystem, name: str) -> None:
    path = film(
        name, MILLISECONDS, options=OPTIONS
    )  # an .mp4 has its index at the end: read there, then from the start
    memory.pipe_file(f"/films/{name}", path.read_bytes())
    url = f"memory://films/{name}"
    assert probe(url) == probe(path) == probe(f"file://{path}")
    starts = np.array([0.0, 5.0, 30.0])
    remote, local = (list(decode_segments(p, starts, starts + 5, num_frames=4, image_size=32)) for p in (url, path))
    np.testing.assert_array_equal(np.stack(remote), np.stack(local))
    assert [number_in(f) for f in remote[2]] == [765, 796, 828, 859]
    assert thumbnails(url, [20.0]) == thumbnails(path, [20.0])


def test_far_parts_of_a_url_are_not_fetched(
    film: Filmer, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film("a.mp4", MILLISECONDS, options=OPTIONS, pictures=noise, container_options={"movflags": "faststart"})
    memory.pipe_file("/a.mp4", path.read_bytes())
    read = 0
    reading = containers.RemoteFile.read

    def counted(file: containers.RemoteFile, size: int) -> bytes:
        nonlocal read
        data = reading(file, size)
        read += len(data)
        return data

    monkeypatch.setattr(containers.RemoteFile, "read", counted)
    monkeypatch.setattr(containers, "_BUFFER_BYTES", 4096)
    frames = [next(decode_segments(p, [36.0], [37.0], num_frames=1, image_size=32)) for p in ("memory://a.mp4", path)]
    np.testing.assert_array_equal(*frames)
    assert 50_000 < read < path.stat().st_size / 4


def test_urls_that_cannot_be_read_have_reasons(
    film: Filmer, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory.pipe_file("/empty.mp4", b"")
    memory.pipe_file("/text.mp4", b"words, and no video at all\n" * 99)
    data = film("a.mkv", MILLISECONDS, options=OPTIONS).read_bytes()
    memory.pipe_file("/half.mkv", data[: len(data) // 2])
    for url, reason in {
        "memory://none.mp4": "no such file",
        "memory://empty.mp4": "empty",
        "memory://text.mp4": "not a video",
        "nowhere://a.mp4": "cannot be opened.*nowhere",
        f"file://{tmp_path}/none.mp4": "no such file",
    }.items():
        with pytest.raises(VideoError, match=reason):
            probe(url)
    starts = np.arange(0, 40, 5.0)
    with pytest.raises(VideoError, match="truncated") as caught:
        list(decode_segments("memory://half.mkv", starts, starts + 5, num_frames=2, image_size=32))
    assert 10 <= caught.value.decoded_until <= 25
    monkeypatch.setitem(known_implementations, "far", {"class": "no_such.Far", "err": "Install far-fs"})
    with pytest.raises(VideoError, match="far:// needs another package: Install far-fs"):
        probe("far://a.mp4")


def test_a_read_that_fails_once_is_tried_again_and_one_that_goes_on_failing_is_no_end_of_file(
    film: Filmer, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film("a.mkv", MILLISECONDS, options=OPTIONS, pictures=noise)
    memory.pipe_file("/a.mkv", path.read_bytes())
    monkeypatch.setattr(containers, "_BUFFER_BYTES", 4096)
    monkeypatch.setattr("time.sleep", lambda _: None)
    calls, failing = 0, {5}
    reading = MemoryFile.read

    def flaky(file: MemoryFile, size: int = -1) -> bytes:
        nonlocal calls
        calls += 1
        if calls in failing:
            raise ConnectionResetError("the peer hung up")
        return reading(file, size)

    monkeypatch.setattr(MemoryFile, "read", flaky)
    starts = np.arange(0, 40, 5.0)
    want = list(decode_segments(path, starts, starts + 5, num_frames=2, image_size=32))
    got = list(decode_segments("memory://a.mkv", starts, starts + 5, num_frames=2, image_size=32))
    np.testing.assert_array_equal(np.stack(got), np.stack(want))
    assert calls > 20
    calls, failing = 0, set(range(20, 10_000))
    with pytest.raises(VideoError, match="reading failed: ConnectionResetError: the peer hung up"):
        list(decode_segments("memory://a.mkv", starts, starts + 5, num_frames=2, image_size=32))


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:10,\n{}\n", "ffconcat version 1.0\nfile '{}'\n"])
def test_nothing_in_a_file_leads_to_another(
    film: Filmer, memory: fsspec.AbstractFileSystem, tmp_path: Path, text: str
) -> None:
    path = film("a.ts", MILLISECONDS[:50], options=OPTIONS)
    listing = text.format(path)
    (tmp_path / "list.mp4").write_text(listing)
    memory.pipe_file("/list.mp4", listing.encode())
    for place in (tmp_path / "list.mp4", "memory://list.mp4"):
        with pytest.raises(VideoError, match="not a video"):
            probe(place)
