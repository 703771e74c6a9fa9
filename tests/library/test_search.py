"""Search: exact against brute force, the index against exact, moments merged as documented, the command's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.library import Library, Nearest, nearest, similar_videos
from lvmae.library.nearest import index_file
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

DIM = 12
TOPICS = ["cat", "dog", "rain", "sea", "snow", "fire"]
SHOWN = {
    "a": [0] * 4 + [1] * 5 + [0] * 3,
    "b": [2] * 9 + [5] + [3] * 2,
    "c/d": [1, 1, 4, 4, 3, 3, 3],
    "e": [3] * 8 + [4] * 2,
}


class TopicEncoder:
    """A text is the sum of the topics it names, each an axis of its own."""

    name, dim, num_frames, image_size, interpolation, framing = "topics", DIM, 1, 64, "bicubic", "crop"
    space_id, licence, has_text = "topics/1", "none", True

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> np.ndarray:
        rows = [[float(topic in text) for topic in TOPICS] + [0.01] * (DIM - len(TOPICS)) for text in texts]
        return l2_normalize(np.array(rows))

    def self_test(self) -> None:
        pass


def write(path: Path, rows: dict[str, np.ndarray], encoder: dict[str, Any], **manifest: Any) -> EmbeddingStore:
    dim = next(iter(rows.values())).shape[1]
    with StoreWriter(path, Manifest("topics/1", dim, {"kind": "fixed", "seconds": 5.0}, encoder, **manifest)) as writer:
        for name, values in rows.items():
            starts = np.arange(len(values)) * 5.0
            record = VideoRecord(name, f"{name}.mp4", len(values) * 5.0, starts, starts + 5, values)
            if manifest:
                record.cls, record.mean = values[0].astype(np.float32), values.mean(0).astype(np.float32)
            writer.add(record)
    return EmbeddingStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    generator = np.random.default_rng(0)
    # Lengths of 0.5 to 3: it is the cosine that counts.
    rows = {
        name: (np.eye(DIM)[topics] + 0.05 * generator.normal(size=(len(topics), DIM)))
        * generator.uniform(0.5, 3, size=(len(topics), 1))
        for name, topics in SHOWN.items()
    }
    return write(tmp_path_factory.mktemp("s") / "store", rows, {"name": f"{__name__}:TopicEncoder", "licence": "none"})


@pytest.fixture(scope="module")
def reps(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    rows = {f"v{i}": np.random.default_rng(i).normal(size=(3, 8)) + 5 for i in range(20)}
    run = {"path": "run", "fingerprint": "f", "store": "films/store"}
    return write(tmp_path_factory.mktemp("s") / "reps", rows, {"name": "topics"}, kind="representations", run=run)


class Rows:
    """Vectors in memory."""

    def __init__(self, values: np.ndarray, key: str = "rows") -> None:
        self.values, self.dim, self.key = values, values.shape[1], key

    def __len__(self) -> int:
        return len(self.values)

    def blocks(self, size: int) -> Any:
        for first in range(0, len(self.values), size):
            yield self.values[first : first + size]

    def take(self, places: np.ndarray) -> np.ndarray:
        return self.values[places]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**31))
def test_exact_is_brute_force(count: int, dim: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(count, dim)).astype(np.float16)
    queries = generator.normal(size=(3, dim))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_SCORED", 64)
        places, scores = Nearest(Rows(rows), exact=True).search(queries, k)
    cosines = l2_normalize(queries) @ l2_normalize(rows).T
    assert places.shape == (3, min(k, count))
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosines, places, 1), scores, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in places.tolist())


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An index from 1,000 vectors on, in a cache of its own."""
    pytest.importorskip("faiss", reason="faiss, which builds the index, is not installed")
    monkeypatch.setattr(nearest, "INDEX_FROM", 1000)
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))


def clustered(count: int, dim: int = 32) -> np.ndarray:
    """Vectors around 200 directions."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(200, dim))
    rows: np.ndarray = centres[generator.integers(200, size=count)] + 0.3 * generator.normal(size=(count, dim))
    return rows.astype(np.float16)


@pytest.mark.usefixtures("small_index")
def test_the_index_finds_what_exact_search_finds(capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(clustered(5000))
    queries = rows.values[:50] + 0.1 * np.random.default_rng(1).normal(size=(50, 32))
    indexed = Nearest(rows)
    assert indexed.index is not None
    assert indexed.index.nprobe < indexed.index.nlist  # not everything is visited
    places, scores = indexed.search(queries, 10)
    expected, _ = Nearest(rows, exact=True).search(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(places.tolist(), expected.tolist(), strict=True)])
    assert recall > 0.95
    # Scores are not the codes' but the vectors' own, so what is found has the same score either way.
    found = l2_normalize(queries)[:, None] * l2_normalize(rows.take(places.ravel())).reshape(50, 10, 32)
    np.testing.assert_allclose(scores, found.sum(-1), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (places[:, 0] == expected[:, 0]).mean() > 0.95
    # Asked for more than lies in the lists that are visited, it reads everything.
    many, _ = indexed.search(queries[:2], 4900)
    assert [len(set(row)) for row in many.tolist()] == [4900, 4900]


@pytest.mark.usefixtures("small_index")
def test_an_index_is_built_once_and_again_when_it_is_broken_or_the_content_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[str] = []
    build = nearest.build_index
    monkeypatch.setattr(nearest, "build_index", lambda rows: (built.append(rows.key), build(rows))[1])
    rows = clustered(1500)
    first = Nearest(Rows(rows, "one")).search(rows[:5], 3)
    second = Nearest(Rows(rows, "one")).search(rows[:5], 3)
    assert built == ["one"]
    np.testing.assert_array_equal(first[0], second[0])
    Nearest(Rows(rows, "two")).search(rows[:5], 3)
    assert built == ["one", "two"]
    file = index_file("one")
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(Nearest(Rows(rows, "one")).search(rows[:5], 3)[0], first[0])
    assert built == ["one", "two", "one"]
    assert len(list(file.parent.glob("*.faiss"))) == 2  # nothing half-written
    assert Nearest(Rows(rows[:999], "small")).index is None
    assert Nearest(Rows(rows, "one"), exact=True).index is None


@pytest.mark.usefixtures("small_index")
def test_a_library_with_an_index_gives_the_moments_of_one_without(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    topics = [np.repeat(generator.integers(6, size=20), 4) for _ in range(20)]
    rows = {f"v{i:02d}": np.eye(DIM)[t] + 0.05 * generator.normal(size=(80, DIM)) for i, t in enumerate(topics)}
    library = write(tmp_path / "store", rows, {"name": f"{__name__}:TopicEncoder"})
    assert Library(library)._nearest.index is not None
    ours, theirs = Library(library).search("fire", 12), Library(library, exact=True).search("fire", 12)
    assert len(ours) == 12
    np.testing.assert_allclose([moment.score for moment in ours], [moment.score for moment in theirs], atol=1e-6)
    assert [(m.video, m.first, m.last) for m in ours] == [(m.video, m.first, m.last) for m in theirs]


def test_moments_are_whole_and_their_own(store: EmbeddingStore) -> None:
    found = Library(store).search("a dog", 10)
    assert [(m.video, m.start, m.end) for m in found[:2]] in (
        [("a", 20.0, 45.0), ("c/d", 0.0, 10.0)],
        [("c/d", 0.0, 10.0), ("a", 20.0, 45.0)],
    )
    one = next(m for m in found if m.video == "a")
    cosines = l2_normalize(store.embeddings(one.index)) @ TopicEncoder().encode_text(["a dog"])[0]
    assert one.segment == int(cosines.argmax())
    assert one.score == pytest.approx(cosines.max(), abs=1e-6)
    assert (one.first, one.last) == (4, 8)
    assert all(m.score < 0.3 for m in found[2:])  # what is left is noise
    taken = [(m.index, s) for m in found for s in range(m.first, m.last + 1)]
    assert len(taken) == len(set(taken))
    fire = Library(store).search("fire", 1)
    assert [(m.video, m.start, m.end) for m in fire] == [("b", 45.0, 50.0)]


def test_a_moment_is_as_wide_as_the_peak_at_half_its_height(tmp_path: Path) -> None:
    heights = np.array([0.0, 0.2, 0.45, 0.65, 0.9, 0.64, 0.44, 0.0, 0.0, 0.7, 0.0, 0.0])
    rows = np.stack([heights, np.sqrt(1 - heights**2)], axis=1)
    store = write(tmp_path / "store", {"v": rows}, {})
    usual = heights.mean()
    found = Library(store).moments(np.array([1.0, 0.0]), 5)
    assert heights[3] > (0.9 + usual) / 2 > heights[2]
    assert [(m.first, m.segment, m.last) for m in found[:2]] == [(3, 4, 5), (9, 9, 9)]
    assert all(m.score > usual - 1e-3 for m in found)  # 0.45 and 0.44 beside the peak, and nothing of the zeros
    assert len(found) == 4


def test_more_moments_than_the_first_look_sees(tmp_path: Path) -> None:
    """One video full of near matches would crowd out a single, weaker one elsewhere."""
    full = np.tile([1.0, 0.1], (500, 1))
    weak = np.array([[0.0, 1.0]] * 700 + [[1.0, 0.9]] + [[0.0, 1.0]] * 700)
    store = write(tmp_path / "store", {"full": full, "weak": weak}, {})
    found = Library(store).moments(np.array([1.0, 0.0]), 2)
    assert [(m.video, m.first, m.last) for m in found] == [("full", 0, 499), ("weak", 700, 700)]


@pytest.mark.parametrize("features", ["mean", "cls"])
def test_similar_videos_are_those_of_centred_features(reps: EmbeddingStore, features: str) -> None:
    values = reps.cls_features if features == "cls" else reps.mean_features
    unit = l2_normalize(values - values.mean(0))
    cosines = unit @ unit[3]
    order = [i for i in np.argsort(-cosines) if i != 3][:5]
    found = similar_videos(reps, reps.ids[3], 5, features=features)
    assert [video.video for video in found] == [reps.ids[i] for i in order]
    np.testing.assert_allclose([video.score for video in found], cosines[order], atol=1e-5)
    assert [video.duration for video in found] == [15.0] * 5
    assert len(similar_videos(reps, "v0", 100)) == 19
    raw = values @ values[3] / np.linalg.norm(values, axis=1) / np.linalg.norm(values[3])
    assert np.sort(raw)[0] > 0.9  # without the centre every video is like every other


def test_arrays_for_scikit_learn_in_two_lines(reps: EmbeddingStore) -> None:
    store = EmbeddingStore.open(reps.path)
    features, ids = store.mean_features, store.ids
    assert features.shape == (20, 8)
    assert features.dtype == np.float32
    assert len(ids) == 20
    np.testing.assert_allclose(features[ids.index("v7")], reps[reps.index("v7")].embeddings.mean(0), atol=5e-3)


def test_the_command_prints_a_table_or_json(store: EmbeddingStore, reps: EmbeddingStore, capsys: Any) -> None:
    assert main(["search", store.path, "fire", "--top", "1"]) == 0
    line = capsys.readouterr().out.split()
    assert line[1:] == ["0:00:45-0:00:50", "b"]
    assert float(line[0]) > 0.9
    assert main(["search", store.path, "fire", "--top", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[0][key] for key in ("video", "start", "end", "segment")} == {
        "video": "b",
        "start": 45.0,
        "end": 50.0,
        "segment": 9,
    }
    assert main(["search", reps.path, "--video", "v3", "--top", "4"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [
        video.video for video in similar_videos(reps, "v3", 4)
    ]


def test_wrong_requests_are_one_sentence(
    store: EmbeddingStore, reps: EmbeddingStore, capsys: Any, tmp_path: Path
) -> None:
    imported = write(tmp_path / "imported", {"v": np.ones((2, 4))}, {"name": "imported", "options": {}})
    wrong = {
        "either a text": [store.path],
        "either a text to": [store.path, "cat", "--video", "a"],
        "nothing to search for": [store.path, "  "],
        "--features needs --video": [store.path, "cat", "--features", "cls"],
        "at least one moment": [store.path, "cat", "--top", "0"],
        "at least one video": [store.path, "--video", "a", "--top", "0"],
        "search films/store by text": [reps.path, "cat"],
        "no video 'd'.*'c/d'": [store.path, "--video", "d"],
        "have no \\[CLS\\]": [store.path, "--video", "a", "--features", "cls"],
        "no other video": [imported.path, "--video", "v"],
        "no text side": [imported.path, "cat"],
    }
    for sentence, arguments in wrong.items():
        assert main(["search", *arguments]) == 2, arguments
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        with pytest.raises(InputError, match=sentence):
            raise InputError(said)
