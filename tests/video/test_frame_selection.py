"""What is decoded for a few frames of a file: exactly the frames of a full decode, at a price in proportion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from films import write_film
from lvmae.video import frame_selection
from lvmae.video.decoding import decode_segments

SECONDS, RATE = 60, 25
RNG = np.random.default_rng(11)
TEXTURE = np.kron(RNG.integers(0, 255, (40, 60)), np.ones((8, 8))).astype(np.uint8)


def moving(number: int) -> np.ndarray:
    """uint8 RGB (96, 128, 3): a texture that moves, so that every picture leans on the ones before it; a flash now and then."""
    picture = np.roll(TEXTURE, (3 * number, 2 * number), (0, 1))[:96, :128]
    return np.repeat((255 - picture if number % 130 > 120 else picture)[..., None], 3, axis=2)


X264 = {"preset": "veryfast", "bf": "3", "crf": "30"}
KINDS: dict[str, tuple[str, dict[str, str], str]] = {
    "closed groups of 10 s": ("a.mp4", X264 | {"g": "250"}, "libx264"),
    "closed groups of 1 s": ("a.mp4", X264 | {"g": "25"}, "libx264"),
    "open groups": ("a.mp4", X264 | {"g": "48", "x264-params": "open-gop=1:b-pyramid=normal:ref=4"}, "libx264"),
    "open groups, Matroska": ("a.mkv", X264 | {"g": "48", "x264-params": "open-gop=1"}, "libx264"),
    "open groups, transport stream": ("a.ts", X264 | {"g": "48", "x264-params": "open-gop=1"}, "libx264"),
    "intra refresh, no point to begin at": (
        "a.mp4",
        {"preset": "veryfast", "x264-params": "intra-refresh=1:keyint=25"},
        "libx264",
    ),
    "interlaced": ("a.mp4", X264 | {"g": "48", "x264-params": "tff=1:open-gop=1"}, "libx264"),
    "HEVC, open groups": (
        "a.mp4",
        {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1:keyint=48:bframes=3"},
        "libx265",
    ),
    "MPEG-4": ("a.mp4", {"g": "30", "bf": "2", "qscale": "6"}, "mpeg4"),
    "VP9": ("a.webm", {"g": "40", "deadline": "realtime", "cpu-used": "8"}, "libvpx-vp9"),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, np.ndarray]:
    """A film of a minute, and all of its frames (1500, 24, 24, 3) as a plain decode gives them."""
    name, options, codec = KINDS[request.param]
    path = write_film(
        tmp_path_factory.mktemp("film") / name,
        [1000 // RATE * i for i in range(SECONDS * RATE)],
        options=options,
        codec=codec,
        pictures=moving,
    )
    every = decode_segments(path, [0.0], [SECONDS], num_frames=SECONDS * RATE, image_size=24, skip=False)
    return request.param, path, next(every)


class Watch:
    """What the fast path did: packets handed to the decoder's groups, seeks, and whether it gave up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packets = self.seeks = self.full = 0
        groups, sought, everything = (
            frame_selection._groups,
            frame_selection._FastPath._sought_over,
            frame_selection._everything,
        )

        def counted(*given: Any) -> Iterator[Any]:
            for group in groups(*given):
                self.packets += len(group[0].packets)
                yield group

        def seeking(path: frame_selection._FastPath, position: int) -> bool:
            done = sought(path, position)
            self.seeks += done
            return done

        def gave_up(*given: Any) -> Iterator[Any]:
            self.full += 1
            return everything(*given)

        monkeypatch.setattr(frame_selection, "_groups", counted)
        monkeypatch.setattr(frame_selection._FastPath, "_sought_over", seeking)
        monkeypatch.setattr(frame_selection, "_everything", gave_up)


def check(path: Path, frames: np.ndarray, starts: Any, ends: Any, num_frames: int, threads: int = 1) -> None:
    starts, ends = np.asarray(starts, float), np.asarray(ends, float)
    times = starts[:, None] + (np.arange(num_frames) + 0.5) / num_frames * (ends - starts)[:, None]
    want = frames[((times + 5e-7) * RATE).astype(int)]
    got = np.stack(list(decode_segments(path, starts, ends, num_frames=num_frames, image_size=24, threads=threads)))
    np.testing.assert_array_equal(got, want)


def test_any_part_of_a_file_is_as_in_the_whole(
    kind: tuple[str, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, frames = kind
    watch = Watch(monkeypatch)
    check(path, frames, np.arange(0, 60, 5), np.arange(5, 65, 5), 8)
    check(path, frames, np.arange(0, 60, 5), np.arange(5, 65, 5), 8, threads=3)
    assert watch.full == watch.seeks == 0
    for first in (15, 30, 35):  # the parts that several workers would take
        check(path, frames, np.arange(first, 60, 5), np.arange(first + 5, 65, 5), 2)
    for _ in range(6):  # clips anywhere, thumbnails far apart
        starts = np.sort(RNG.uniform(0, 59, RNG.integers(1, 4)))
        check(path, frames, starts, np.minimum(starts + RNG.uniform(0.1, 4), 60), 2)
    assert watch.seeks == 0 if path.suffix == ".ts" else watch.seeks > 3
    assert watch.full == 0


def test_a_part_costs_what_the_part_costs(kind: tuple[str, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    name, path, frames = kind
    if path.suffix == ".ts" or "no point" in name:
        pytest.skip("no index, or nowhere to begin")
    watch = Watch(monkeypatch)
    check(path, frames, [50.0], [51.0], 2)
    assert watch.seeks == 1
    assert watch.packets <= 11 * RATE  # at most the group of pictures that holds the clip


def test_a_frame_that_does_not_come_makes_a_full_decode(
    kind: tuple[str, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the fast path fails in the middle, what it gave is not given again and the rest is right."""
    _, path, frames = kind
    watch = Watch(monkeypatch)
    groups = frame_selection._groups

    def fails_after_three(*given: Any) -> Iterator[Any]:
        for number, group in enumerate(groups(*given)):
            if number == 3:
                raise frame_selection._CannotSkip
            yield group

    monkeypatch.setattr(frame_selection, "_groups", fails_after_three)
    check(path, frames, np.arange(0, 60, 5), np.arange(5, 65, 5), 8)
    assert watch.full == 1
