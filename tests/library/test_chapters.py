"""Chapters: planted borders are found exactly, the segmentation is the best of all, and what is written can be read."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.library import chapters
from lvmae.library.captions import load_captions
from lvmae.library.chapters import clock, segment_exactly, segment_freely, timeline
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

DIM = 24
TOPICS = ["cat", "<b>dog</b>", "rain & sea", "snow", "fire"]
PLANTED = [(0, 7), (1, 12), (2, 4), (0, 9), (3, 16)]  # (topic, segments)


class TopicEncoder:
    """A text is the sum of the topics it names, each an axis of its own."""

    name, dim, num_frames, image_size, interpolation, framing = "topics", DIM, 1, 64, "bicubic", "crop"
    space_id, licence, has_text = "topics/1", "none", True

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.vocabulary = list(TOPICS)

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return l2_normalize(np.array([[float(topic in text) for topic in TOPICS] + [0.0] * 19 for text in texts]))

    def self_test(self) -> None:
        pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    path = tmp_path_factory.mktemp("timeline") / "store"
    generator = np.random.default_rng(0)
    encoder = {"name": f"{__name__}:TopicEncoder", "licence": "none"}
    topics = [topic for topic, length in PLANTED for _ in range(length)]
    with StoreWriter(path, Manifest("topics/1", DIM, {"kind": "fixed", "seconds": 5.0}, encoder)) as writer:
        for name, shown in (("planted", topics), ("still", [0] * 30), ("short", [1])):
            starts = np.arange(len(shown)) * 5.0
            rows = np.eye(DIM)[shown] + 0.1 * generator.normal(size=(len(shown), DIM))
            writer.add(VideoRecord(name, f"{name}.mp4", len(shown) * 5.0 - 2.5, starts, starts + 5, rows))
    return EmbeddingStore.open(path)


def planted_borders() -> list[float]:
    return [5.0 * first for first in itertools.accumulate([length for _, length in PLANTED[:-1]], initial=0)]


def test_planted_borders_are_found_exactly(store: EmbeddingStore) -> None:
    found = timeline(store, "planted")
    assert [chapter.start for chapter in found.chapters] == planted_borders()
    assert [chapter.end for chapter in found.chapters] == [*planted_borders()[1:], 237.5]
    assert [chapter.words[0] for chapter in found.chapters] == [TOPICS[topic] for topic, _ in PLANTED]
    assert [chapter.title for chapter in found.chapters] == ["Cat", "<b>dog</b>", "Rain & sea", "Cat", "Snow"]
    assert timeline(store, "planted", chapters=5, titles=False).chapters[3].title == "Chapter 4"
    assert [c.start for c in timeline(store, "planted", chapters=5).chapters] == planted_borders()
    unit = l2_normalize(store.embeddings(store.index("planted")))
    assert found.novelty[0] is None
    assert found.novelty[7] == pytest.approx(1 - unit[7] @ unit[6], abs=1e-4)


def test_nothing_is_cut_where_nothing_changes(store: EmbeddingStore) -> None:
    assert [(c.start, c.end) for c in timeline(store, "still").chapters] == [(0.0, 147.5)]
    assert [(c.start, c.end) for c in timeline(store, "short").chapters] == [(0.0, 2.5)]
    rows = np.random.default_rng(0).normal(size=(300, 64))  # nothing but noise around one thing
    rows[:, 0] += 12
    assert segment_freely(l2_normalize(rows), np.arange(301.0), 0.0) == [0]


def test_a_chapter_is_as_long_as_asked_for(store: EmbeddingStore) -> None:
    lasting = [c.end - c.start for c in timeline(store, "planted", min_seconds=40).chapters]
    assert min(lasting) >= 40  # the four segments of rain and sea do not stand alone
    assert len(lasting) == 3 or len(lasting) == 4
    assert len(timeline(store, "planted", min_seconds=500).chapters) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**31), st.data())
def test_no_segmentation_is_better(length: int, seed: int, data: st.DataObject) -> None:
    chapters = data.draw(st.integers(1, length))
    unit = l2_normalize(np.random.default_rng(seed).normal(size=(length, 3)))

    def cost(borders: tuple[int, ...]) -> float:
        parts = itertools.pairwise([0, *borders, length])
        return sum(float(((unit[a:b] - unit[a:b].mean(0)) ** 2).sum()) for a, b in parts)

    found = segment_exactly(unit, chapters)
    best = min(cost(borders) for borders in itertools.combinations(range(1, length), chapters - 1))
    assert found[0] == 0
    assert len(found) == chapters
    assert cost(tuple(found[1:])) == pytest.approx(best, abs=1e-5)


def test_files_can_be_read_again(store: EmbeddingStore, tmp_path: Path) -> None:
    found = timeline(store, "planted")
    cues = load_captions(found.save(tmp_path / "new" / "planted.vtt"))
    # Markup in a title is escaped, so a player, and this reader, shows it as it is.
    assert [(c.start, c.end, c.text) for c in cues] == [(c.start, c.end, c.title) for c in found.chapters]
    data = json.loads(found.save(tmp_path / "planted.json").read_text())
    assert data["chapters"][1] == {
        "start": 35.0,
        "end": 95.0,
        "title": "<b>dog</b>",
        "words": list(found.chapters[1].words),
    }
    assert found.save(tmp_path / "planted.txt").read_text().splitlines()[1] == "0:00:35 <b>dog</b>"
    with Image.open(io.BytesIO(found.save(tmp_path / "planted.png").read_bytes())) as picture:
        assert picture.size == (1600, 420)
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    with pytest.raises(InputError, match=r"must end in \.vtt"):
        found.save(tmp_path / "planted.mp4")


def test_times_are_written_as_people_read_them() -> None:
    assert [clock(t) for t in (0, 59.999, 60, 3599.9999999, 36061)] == [
        "0:00:00",
        "0:00:59",
        "0:01:00",
        "1:00:00",
        "10:01:01",
    ]


def test_wrong_requests_are_one_sentence(store: EmbeddingStore) -> None:
    with pytest.raises(InputError, match=r"no video 'plan'.*'planted'"):
        timeline(store, "plan")
    with pytest.raises(InputError, match="not both"):
        timeline(store, "planted", chapters=3, min_seconds=3)
    with pytest.raises(InputError, match="1 to 48 chapters, not 49"):
        timeline(store, "planted", chapters=49)
    with pytest.raises(InputError, match="number of seconds"):
        timeline(store, "planted", min_seconds=float("nan"))


def test_a_clip_keeps_the_times_of_its_file(tmp_path: Path) -> None:
    rows, starts = np.repeat(np.eye(4), 5, axis=0), 600.0 + np.arange(20) * 5.0
    with StoreWriter(tmp_path / "store", Manifest("other", 4, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        writer.add(VideoRecord("clip", "v.mp4", 100.0, starts, starts + 5, rows))
    found = timeline(EmbeddingStore.open(tmp_path / "store"), "clip")
    assert [(c.start, c.end) for c in found.chapters] == [(600 + 25 * n, 625 + 25 * n) for n in range(4)]
    found.save(tmp_path / "clip.png")  # its axis is the clip's


def test_a_store_without_a_text_side_has_numbered_chapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.repeat(np.eye(4), 5, axis=0)  # four things, each five times, to the bit
    with StoreWriter(tmp_path / "store", Manifest("other", 4, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        writer.add(VideoRecord("v", "v.mp4", 100.0, np.arange(20) * 5.0, np.arange(20) * 5.0 + 5, rows))
    assert main(["timeline", str(tmp_path / "store"), "v"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"0:0{m}:{s:02d} Chapter {n}" for n, (m, s) in enumerate([(0, 0), (0, 25), (0, 50), (1, 15)], 1)
    ]
    assert "no titles" in said.err


def test_borders_of_a_very_long_video_are_moved_from_the_grid_to_their_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a grid as fine as the segments, and with one of 64 places, the same borders are found."""
    generator = np.random.default_rng(0)
    lengths = [431, 97, 260, 512, 203, 297]
    topics = np.repeat(generator.normal(size=(6, 24)), lengths, axis=0)
    unit = l2_normalize(topics + 0.8 * generator.normal(size=topics.shape))
    edges = np.arange(len(unit) + 1) * 5.0
    expected = [0, *np.cumsum(lengths)[:-1].tolist()]
    assert segment_freely(unit, edges, 60.0) == segment_exactly(unit, 6) == expected
    monkeypatch.setattr(chapters, "_GRID", 64)
    assert segment_freely(unit, edges, 60.0) == segment_exactly(unit, 6) == expected
    found = segment_freely(unit, edges, 2000.0)  # 400 segments at least
    assert min(np.diff([*found, len(unit)])) >= 400
