"""Stores of different encoders: compared by direct formulas, and searched together with ranks worked out by hand."""

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
from lvmae.library import Library, Moment
from lvmae.library.compare import compare, linear_cka, neighbour_overlap
from lvmae.library.fusion import fuse
from lvmae.store import EmbeddingStore
from stores import random_videos, write_store

AXES = {"cat": 0, "dog": 1, "rain": 2}


class WordEncoder:
    """A text is the axis of the word it names."""

    name, dim, num_frames, image_size, interpolation, framing = "words", 4, 1, 64, "bicubic", "crop"
    space_id, licence, has_text = "test-space", "none", True
    free = 3

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return np.eye(self.dim)[[AXES[text] for text in texts]]

    def self_test(self) -> None:
        pass


class TurnedEncoder(WordEncoder):
    """The same words on other axes of a wider space."""

    name, dim, space_id, free = "turned", 6, "turned-space", 0

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return np.eye(self.dim)[[5 - AXES[text] for text in texts]]


def random_stores(folder: Path, count: int = 40) -> dict[str, EmbeddingStore]:
    """A store; the same; its vectors turned (a permutation of axes with other signs, exact in float16); and another."""
    videos = random_videos(count, dim=6)
    turned = {name: rows[:, [3, 0, 5, 1, 4, 2]] * [1, -1, -1, 1, 1, -1] for name, rows in videos.items()}
    others = random_videos(count, dim=5, seed=1)
    return {
        name: write_store(folder / name, rows, space=name)
        for name, rows in {"one": videos, "same": videos, "turned": turned, "other": others}.items()
    }


def test_identical_and_turned_stores_agree_and_independent_ones_do_not(tmp_path: Path) -> None:
    stores = random_stores(tmp_path)
    for name in ("same", "turned"):
        found = compare(stores["one"], stores[name])
        assert (found.videos, found.only_first, found.only_second, found.k) == (40, 0, 0, 10)
        assert found.overlap == 1
        assert found.cka == pytest.approx(1, abs=1e-6)
        assert found.cka_debiased == pytest.approx(1, abs=1e-6)
    found = compare(stores["one"], stores["other"])
    assert found.chance == 10 / 39
    assert abs(found.overlap - found.chance) < 0.1
    assert found.cka < 0.35
    assert found.cka_debiased is not None
    assert abs(found.cka_debiased) < 0.15
    back = compare(stores["other"], stores["one"])
    assert back.overlap == found.overlap
    assert back.cka == pytest.approx(found.cka)


def test_only_videos_in_both_count(tmp_path: Path) -> None:
    videos = random_videos(14)
    names = list(videos)
    first = write_store(tmp_path / "first", {name: videos[name] for name in names[:12]})
    second = write_store(tmp_path / "second", {name: videos[name] for name in reversed(names[5:])})
    found = compare(first, second)
    assert (found.videos, found.only_first, found.only_second, found.k) == (7, 5, 2, 5)  # of 6 others, 5 can differ
    assert found.overlap == 1
    assert found.cka == pytest.approx(1)
    assert compare(first, second, k=2).chance == 2 / 6


def test_overlap_by_hand() -> None:
    # On a circle around the mean: a, b, c, d at 0, 80, 180, 260 degrees; then b and d in each other's places but for the angle.
    def at(*degrees: float) -> np.ndarray:
        angles = np.radians(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    first, second = at(0, 80, 180, 260), at(0, 260, 180, 80)
    # Nearest of a, b, c, d: b, a, d, c in the first; d, c, b, a in the second.
    assert neighbour_overlap(first, second, 1) == 0
    assert neighbour_overlap(first, first, 1) == 1
    # The two nearest: b d, a c, b d, a c in both.
    assert neighbour_overlap(first, second, 2) == 1


def test_equal_videos_are_not_their_own_neighbours() -> None:
    rows = np.repeat(np.eye(2), 4, axis=0)  # four copies each of two: own place is beyond the first k + 1 of equal ones
    assert neighbour_overlap(rows, rows, 1) == 1
    assert neighbour_overlap(rows, np.tile(np.eye(2), (4, 1)), 3) == pytest.approx(1 / 3)  # copies: one of three others


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 30), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.floats(0, 1))
def test_cka_is_that_of_the_gram_matrices(count: int, dim: int, width: int, seed: int, shared: float) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, dim)) + 3
    y = shared * x @ generator.normal(size=(dim, width)) + generator.normal(size=(count, width))
    around = np.eye(count) - 1 / count
    gram, other = around @ x @ x.T @ around, around @ y @ y.T @ around
    cka, debiased = linear_cka(x, y)
    assert cka == pytest.approx((gram * other).sum() / np.sqrt((gram**2).sum() * (other**2).sum()))

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        """Song et al. 2012, eq. 5, times V (V - 3)."""
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        product = np.trace(a @ b) + a.sum() * b.sum() / ((count - 1) * (count - 2))
        return float(product - 2 / (count - 2) * (a @ b).sum())

    gram, other = x @ x.T, y @ y.T
    assert debiased == pytest.approx(hsic(gram, other) / np.sqrt(hsic(gram, gram) * hsic(other, other)), abs=1e-6)


def test_debiased_cka_is_low_where_plain_cka_is_not() -> None:
    generator = np.random.default_rng(0)
    cka, debiased = linear_cka(generator.normal(size=(30, 500)), 1e-9 * generator.normal(size=(30, 500)))
    assert cka > 0.9
    assert debiased is not None
    assert abs(debiased) < 0.1
    assert linear_cka(np.eye(3), np.eye(3)) == (pytest.approx(1), None)


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = random_stores(tmp_path, 8)
    assert main(["compare", stores["one"].path, stores["turned"].path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["videos"] == 8
    assert found["k"] == 6
    assert found["overlap"] == 1
    assert found["cka"] == pytest.approx(1, abs=1e-6)
    assert main(["compare", stores["one"].path, stores["turned"].path, "--k", "3"]) == 0
    text = capsys.readouterr().out
    assert "1.000 of the 3 nearest (by chance 0.429)" in text
    assert "linear CKA           1.000 (debiased: 1.000)" in text
    values = np.ones((3, 4))
    write_store(tmp_path / "strange", {f"w{number}": values for number in range(3)})
    write_store(tmp_path / "alike", dict.fromkeys(["v000", "v001", "v002"], values))
    write_store(tmp_path / "few", {"v000": values, "w": values})
    for other, said in {
        "strange": "share no video id",
        "few": "share only 1 video id",
        "alike": "have the same features",
    }.items():
        assert main(["compare", stores["one"].path, str(tmp_path / other)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert main(["compare", stores["one"].path, stores["same"].path, "--k", "0"]) == 2


def moment(video: str, start: float, end: float) -> Moment:
    return Moment(video, start, end, 0.5, 0, 0, 0, 0)


def test_ranks_are_fused_by_hand() -> None:
    first = [moment("a", 0, 10), moment("b", 0, 5), moment("a", 20, 30)]
    second = [moment("c", 0, 9), moment("a", 5, 25), moment("b", 5, 10)]
    found = fuse([first, second])
    # The second's moment of `a` overlaps two hits; its moment of `b` only touches the first's, so it is a hit of its own.
    assert [(hit.video, hit.start, hit.end, hit.ranks) for hit in found] == [
        ("a", 0, 10, (1, 2)),
        ("a", 20, 30, (3, 2)),
        ("c", 0, 9, (None, 1)),
        ("b", 0, 5, (2, None)),
        ("b", 5, 10, (None, 3)),
    ]
    assert [hit.score for hit in found] == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 62, 1 / 61, 1 / 62, 1 / 63])
    assert fuse([first, second], 2) == found[:2]
    videos = fuse([first[:2], second], one_a_video=True)
    assert [(hit.video, hit.ranks) for hit in videos] == [("a", (1, 2)), ("b", (2, 3)), ("c", (None, 1))]
    assert [(hit.video, hit.start) for hit in fuse([first])] == [("a", 0), ("b", 0), ("a", 20)]
    assert fuse([[], []]) == []
    with pytest.raises(InputError, match="at least one moment"):
        fuse([first], 0)


def test_the_command_searches_two_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stored(name: str, encoder: type[WordEncoder], noise: dict[str, float]) -> str:
        """Segments of words, with so much of an axis that no word has."""
        words = {"p": ["cat", "dog", "dog"], "q": ["dog", "cat", "cat"], "r": ["rain", "rain", "dog"]}
        rows = {
            video: encoder().encode_text(said) + noise[video] * np.eye(encoder.dim)[encoder.free]
            for video, said in words.items()
        }
        described = {"name": f"{__name__}:{encoder.__name__}", "licence": "none"}
        return write_store(tmp_path / name, rows, space=encoder.space_id, encoder=described).path

    # By the first the dogs of p, q, r rank so; by the second the order is r, p, q.
    one = stored("one", WordEncoder, {"p": 0.0, "q": 0.2, "r": 0.4})
    two = stored("two", TurnedEncoder, {"p": 0.2, "q": 0.4, "r": 0.0})
    assert [m.video for m in Library(one).search("dog", 3)] == ["p", "q", "r"]
    assert main(["search", one, "dog", "--with", two, "--json", "--top", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(hit["video"], hit["start"], hit["end"], hit["ranks"]) for hit in found] == [
        ("p", 5.0, 15.0, [1, 2]),
        ("r", 10.0, 15.0, [3, 1]),
        ("q", 0.0, 5.0, [2, 3]),
    ]
    assert found[0]["score"] == pytest.approx(1 / 61 + 1 / 62)
    assert main(["search", one, "dog", "--with", two, "--group", "video", "--max-seconds", "15", "--top", "1"]) == 0
    assert capsys.readouterr().out.split() == ["0.0325", "0:00:05-0:00:15", "p"]
    for extra, said in {
        ("dog", "--out", "x.csv"): "use --json",
        ("--video", "p"): "--with joins searches for moments",
        ("dog", "--with", str(tmp_path / "none")): "is not a store",
    }.items():
        assert main(["search", one, *extra, "--with", two]) == 2
        assert said in capsys.readouterr().err
