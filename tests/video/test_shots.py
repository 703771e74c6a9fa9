"""Shots: cuts found where a film has them, and made into segments neither very short nor very long."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from films import Filmer
from jobs import MEAN
from lvmae.errors import InputError
from lvmae.video.segmentation import segment_rule

pytest.importorskip("scenedetect", reason="the extra `shots` is not installed")

from lvmae.video.shots import DETECTOR, ShotRule, find_cuts

RULE = ShotRule()
RNG = np.random.default_rng(5)
SCENES = [np.kron(RNG.integers(0, 255, (12, 20, 3)), np.ones((24, 24, 1))).astype(np.uint8) for _ in range(8)]


def result(steps: Generator[float, None, Any]) -> Any:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def filmed(first_frames: list[int]) -> Any:
    """Pictures of a camera that moves over one scene after another; a new one begins with each of these frames."""

    def picture(number: int) -> np.ndarray:
        scene = int(np.searchsorted(first_frames, number, side="right"))
        return np.roll(SCENES[scene], (2 * number, number), (0, 1))[:96, :128]

    return picture


EVEN = [40 * i for i in range(750)]
UNEVEN = np.cumsum(np.random.default_rng(3).integers(15, 90, 600)).tolist()


@pytest.mark.parametrize(("times", "offset", "name"), [(EVEN, 0, "a.mp4"), (UNEVEN, 0, "a.mp4"), (EVEN, 5000, "a.mkv")])
def test_cuts_are_found_where_the_film_has_them(film: Filmer, times: list[int], offset: int, name: str) -> None:
    cuts = [60, 200, 215, 470]
    path = film(name, times, offset=offset, pictures=filmed(cuts), options={"preset": "veryfast"})
    shown = (np.array(times) - times[0]) / 1000
    found = result(find_cuts(path, 0.0, shown[-1] + 0.04))
    np.testing.assert_allclose(found, shown[cuts], atol=1.1e-3)
    starts, ends = result(segment_rule("shots").lay_out(path, 0.0, float(shown[-1]) + 0.04))
    assert set(np.round(shown[[60, 200, 470]], 2)) <= set(np.round(starts, 2))  # the shot of 0.6 s has joined the next
    assert (ends - starts).max() <= 10


def test_a_clip_is_cut_by_the_cuts_in_it(film: Filmer) -> None:
    path = film("a.mp4", EVEN, pictures=filmed([60, 200, 470, 600]), options={"preset": "veryfast", "g": "50"})
    assert result(find_cuts(path, 17.0, 22.0)) == pytest.approx([18.8])
    starts, ends = result(RULE.lay_out(path, 17.0, 22.0))
    assert (starts.tolist(), ends.tolist()) == (pytest.approx([17.0, 18.8]), pytest.approx([18.8, 22.0]))


def test_real_films(shared: Path) -> None:
    """Five cuts that ffmpeg's own scene score finds too (`select='gt(scene,0.25)'`)."""
    cuts = result(find_cuts(shared / "videos" / "big_buck_bunny_60s.mp4", 0.0, 60.0))
    assert cuts == pytest.approx([11.875, 15.75, 23.0417, 47.7083, 56.0833], abs=1e-3)


@pytest.mark.parametrize(
    ("cuts", "end", "borders"),
    [
        ([], 0.5, [0, 0.5]),
        ([], 10, [0, 10]),
        ([], 11, [0, 5.5, 11]),
        ([0.5], 5, [0, 5]),  # a short one joins the one after it
        ([3, 3.5, 4.5], 9, [0, 3, 4.5, 9]),
        ([3, 8.5], 9, [0, 3, 9]),  # at the end, the one before
        ([5, 30], 33, [0, 5, 5 + 25 / 3, 5 + 50 / 3, 30, 33]),
    ],
)
def test_segments_of_cuts(cuts: list[float], end: float, borders: list[float]) -> None:
    starts, ends = RULE.segments(cuts, 0.0, end)
    np.testing.assert_allclose(np.append(starts, ends[-1]), borders)
    assert (starts[1:] == ends[:-1]).all()


@given(
    cuts=st.lists(st.floats(0, 300), max_size=60).map(sorted),
    begin=st.floats(0, 10),
    length=st.floats(0.05, 300),
    least=st.floats(0.2, 3),
    most=st.floats(6, 30),
)
def test_segments_cover_the_video_once(
    cuts: list[float], begin: float, length: float, least: float, most: float
) -> None:
    end = begin + length
    starts, ends = ShotRule(least, most).segments(cuts, begin, end)
    assert (starts[0], ends[-1]) == (begin, end)
    assert (starts[1:] == ends[:-1]).all()
    assert (ends - starts).max() <= most * (1 + 1e-6)
    if length >= least:
        assert (ends - starts).min() >= least * (1 - 1e-6)
    kept, room = set(starts) | set(ends), least + 1e-6  # exactly at the least length rounding decides
    assert all(c in kept for c in cuts if begin + room <= c <= end - room and not any(c - room < d < c for d in cuts))


def test_the_rule_is_in_the_manifest_with_every_parameter() -> None:
    described = segment_rule("shots", 8.0).description
    assert described | {"version": ""} == {
        "kind": "shots",
        "min_seconds": 1.0,
        "max_seconds": 8.0,
        "detector": "PySceneDetect AdaptiveDetector",
        "version": "",
        "height": 90,
        **DETECTOR,
    }
    assert described["version"][0].isdigit()
    assert segment_rule("shots").looks
    assert not segment_rule().looks


def test_wrong_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, seconds, stride, message in [
        ("shots", 1.5, None, "at least twice"),
        ("shots", None, 2.0, "no stride"),
        ("scenes", None, None, "no segments of the kind 'scenes'"),
    ]:
        with pytest.raises(InputError, match=message):
            segment_rule(kind, seconds, stride)
    monkeypatch.setitem(__import__("sys").modules, "scenedetect", None)
    with pytest.raises(InputError, match=r"pip install 'lvmae\[shots\]'"):
        segment_rule("shots")


def test_a_store_of_shots(film: Filmer, tmp_path: Path) -> None:
    """Through the engine: the segments are the shots', a long film is not shared out, and another rule does not mix."""
    from lvmae import EmbeddingStore, embed_videos

    film("a.mp4", EVEN, pictures=filmed([60, 200, 470]), options={"preset": "veryfast"})
    summary = embed_videos(tmp_path / "a.mp4", tmp_path / "store", segment_kind="shots", workers=1, encoder=MEAN)
    store = EmbeddingStore.open(tmp_path / "store")
    np.testing.assert_allclose(store[0].starts, [0, 2.4, 8, 13.4, 18.8, 24.4], atol=1e-3)
    assert summary.segments == 6
    assert store.manifest.segments == RULE.description
    with pytest.raises(InputError):
        embed_videos(tmp_path / "a.mp4", tmp_path / "store", workers=1, encoder=MEAN)
