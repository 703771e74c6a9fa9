"""Labels: what kind they are, who tests what, and one sentence for every wrong file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmae.errors import InputError
from lvmae.evaluation import load_labels
from lvmae.evaluation.matching import match_ids
from lvmae.evaluation.splits import SPLITS
from lvmae.evaluation.task import Task, found_in


def _file(tmp_path: Path, *lines: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _many(*labels: str, copies: int = 5) -> list[str]:
    return [f"v{i},{label}" for i, label in enumerate(labels * copies)]


def test_names_are_classes(tmp_path: Path) -> None:
    task = load_labels(_file(tmp_path, "id,label", *_many("cat", "a dog")))
    assert (task.name, task.kind, task.classes, task.splits) == ("labels", "classification", ("a dog", "cat"), None)
    assert task.ids[:2] == ("v0", "v1")
    assert task.targets.tolist() == [1, 0] * 5


def test_whole_numbers_are_classes_unless_a_regression_is_said(tmp_path: Path) -> None:
    path = _file(tmp_path, "video,label", *_many("1", "10", "2"))
    assert load_labels(path).classes == ("1", "10", "2")
    task = load_labels(path, kind="regression")
    assert (task.kind, task.classes, task.targets[:3].tolist()) == ("regression", (), [1.0, 10.0, 2.0])


def test_numbers_with_fractions_are_a_regression(tmp_path: Path) -> None:
    task = load_labels(_file(tmp_path, "id,label", *_many("1", "2.5", "-3e2")))
    assert (task.kind, task.targets[:3].tolist()) == ("regression", [1.0, 2.5, -300.0])


def test_bars_are_sets_of_classes(tmp_path: Path) -> None:
    task = load_labels(_file(tmp_path, "id,label", *_many("a|b", "c", "b | c")))
    assert (task.kind, task.classes) == ("multilabel", ("a", "b", "c"))
    assert task.targets[:3].tolist() == [[True, True, False], [False, False, True], [False, True, True]]


def test_a_split_column_is_kept_for_every_seed(tmp_path: Path) -> None:
    lines = [f"v{i}\t{'ab'[i % 2]}\t{('Train', 'training', 'valid', 'val', 'test', 'TEST')[i % 6]}" for i in range(12)]
    task = load_labels(_file(tmp_path, "ID\tLabel\tSplit", *lines, name="labels.tsv"))
    for seed in (0, 1):
        rows = task.split(seed)
        assert {name: sorted(task.ids[row] for row in rows[name]) for name in SPLITS} == {
            "train": ["v0", "v1", "v6", "v7"],
            "val": ["v2", "v3", "v8", "v9"],
            "test": ["v10", "v11", "v4", "v5"],
        }


def test_a_byte_order_mark_and_quotes_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffid,label\n" + "\n".join(f'"v{i}","x, {i % 2}"' for i in range(10)), encoding="utf-8")
    assert load_labels(path).classes == ("x, 0", "x, 1")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(2, 40), min_size=2, max_size=6), st.integers(0, 2**31))
def test_drawn_splits_are_stratified_and_share_nothing(sizes: list[int], seed: int) -> None:
    targets = np.repeat(np.arange(len(sizes)), sizes)
    ids = tuple(map(str, range(len(targets))))
    task = Task("t", "classification", ids, targets, tuple(map(str, range(len(sizes)))))
    rows = task.split(seed)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(targets)))
    counts = {name: Counter(targets[rows[name]].tolist()) for name in SPLITS}
    for number, size in enumerate(sizes):
        assert counts["train"][number] >= 1
        assert counts["test"][number] == max(1, round(0.2 * size))
        assert counts["val"][number] >= (size >= 3)
    assert all((rows[name] == task.split(seed)[name]).all() for name in SPLITS)


def test_seeds_draw_different_splits() -> None:
    task = Task("t", "classification", tuple(map(str, range(30))), np.arange(30) % 3, ("a", "b", "c"))
    assert len({tuple(task.split(seed)["test"].tolist()) for seed in range(5)}) == 5


def test_names_match_ids_by_their_end_where_that_is_unique() -> None:
    known = ["a/one.mp4", "b/two.mp4", "c/two.mp4", "three"]
    names = ["a/one.mp4", "c/two.mp4", "three.mkv", "four"]
    matches = match_ids(names, known, "labels.csv")
    assert matches.places == [0, 2, 3, None]
    assert matches.loose == (("three.mkv", "three"),)
    for name in ("one.mp4", "one", "x/a/one.mp4"):
        assert match_ids([name], known, "labels.csv").places == [0]
    assert match_ids(["b/one.mp4", "x/three"], ["a/one.mp4", "y/three"], "labels.csv").places == [None, None]
    with pytest.raises(InputError, match=r"'two' in labels.csv fits several videos .* 'b/two.mp4' and 'c/two.mp4'"):
        match_ids(["two"], known, "labels.csv")


def test_a_dot_in_a_name_is_not_a_suffix_where_it_matches_whole() -> None:
    assert match_ids(["x.1", "x.2"], ["x.1", "x.2"], "l").places == [0, 1]
    assert match_ids(["x.1", "x.part2"], ["x.2", "x.part1", "x"], "l").places == [None, None]


def test_what_the_store_lacks_is_listed() -> None:
    splits = np.array(["train", "train", "val", "test", "test", "train"])
    task = Task("t", "classification", tuple("abcdef"), np.array([0, 1, 0, 1, 0, 1]), ("x", "y"), splits)
    here, places = found_in(task, ["f.mp4", "c.mp4", "a.mp4", "d.mp4"])
    assert (here.ids, here.missing, places.tolist()) == (("a", "c", "d", "f"), ("b", "e"), [2, 1, 3, 0])
    assert here.targets.tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="has 2 of the 6 videos of t, and none for test"):
        found_in(task, ["a", "c"])
    with pytest.raises(InputError, match="training videos of t are all of one class"):
        found_in(task, ["a", "c", "d"])


HEADER = "id,label,split"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "must name the columns id and label .* it names nothing"),
        (["name,class", "a,b"], "it names name, class"),
        (["id,label"], "labels no video"),
        (["id,label", ",x"], "line 2 of .* names no video"),
        (["id,label", *_many("x", "y"), "z,"], "video 'z' on line 12 of .* has no label"),
        (["id,label", *_many("1.5", "2.5"), "z,NaN"], "video 'z' on line 12 of .* has no label"),
        (["id,label", *_many("1.5", "inf")], "'inf' in .* is not a finite number"),
        (["id,label", *_many("x")], "all 5 videos in .* have the label 'x'; a probe needs at least two classes"),
        (["id,label", *_many("x", "y"), "z,lonely"], "class 'lonely' in .* has a single video, which"),
        (["id,label", *_many("x|y", "y|x")], "class 'x' in .* is on every video"),
        (["id,label", *_many("x|x")], "name 1 class in all"),
        (["id,label", *_many("x", "y"), "z,x|w"], "class 'w' in .* has a single video"),
        (["id,label", *_many("0.5")], "all 5 targets in .* are 0.5; a constant"),
        (["id,label", *_many("x", "y"), "v0,x"], "video 'v0' has two labels, on lines 2 and 12"),
        (["id,label", "a,x", "b,x", "c,y", "d,y"], "labels 4 videos, too few to split"),
        ([HEADER, "a,x,train", "b,y,val", "a,x,test"], "video 'a' is in both train and test .* must not share"),
        ([HEADER, "a,x,train", "b,x,holdout"], "split of video 'b' in .* is 'holdout'"),
        ([HEADER, "a,x,train", "b,x,"], "split of video 'b' in .* is ''"),
        ([HEADER, "a,x,train", "b,x,test", "c,y,train", "d,y,test"], "has no video in val"),
        (
            [HEADER, "a,x,train", "b,x,val", "c,x,test", "d,y,val", "e,y,test"],
            "class 'y' in .* has no video in train",
        ),
    ],
)
def test_a_wrong_file_gets_one_sentence(lines: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        load_labels(_file(tmp_path, *lines))
    assert "\n" not in str(caught.value)


def test_unknown_videos_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, "id,label", *_many("x", "y"))
    known = [f"v{i}.mp4" for i in range(8)]
    assert len(load_labels(path, known=known)) == 10  # what is missing is counted where the store is read
    here, _ = found_in(load_labels(path), known)
    assert (len(here), here.missing) == (8, ("v8", "v9"))
    with pytest.raises(InputError, match=r"10 of the 10 videos in .* are not in the store, such as 'v0', .* like 'w0'"):
        load_labels(path, known=["w0", "w1"])


def test_one_video_under_two_names_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, HEADER, "a.mp4,x,train", "a,x,test", "b,y,val", "c,y,train")
    with pytest.raises(InputError, match=r"'a.mp4' and 'a' in .* are both the store's video 'a.mp4'"):
        load_labels(path, known=["a.mp4", "b", "c"])


def test_a_missing_file_or_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_labels(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="'ranking' is no kind of labels"):
        load_labels(_file(tmp_path, "id,label", *_many("x", "y")), kind="ranking")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(2, 300), min_size=2, max_size=5), st.sampled_from([0.01, 0.1, 0.5]), st.integers(0, 99))
def test_a_share_of_the_labels_keeps_every_class_and_leaves_val_and_test(
    sizes: list[int], share: float, seed: int
) -> None:
    targets = np.repeat(np.arange(len(sizes)), sizes)
    task = Task("t", "classification", tuple(map(str, range(len(targets)))), targets, tuple(map(str, sizes)))
    whole, part = task.split(seed), replace(task, label_fraction=share).split(seed)
    assert (part["val"].tolist(), part["test"].tolist()) == (whole["val"].tolist(), whole["test"].tolist())
    assert set(part["train"].tolist()) <= set(whole["train"].tolist())
    for number in range(len(sizes)):
        had = int((targets[whole["train"]] == number).sum())
        assert (targets[part["train"]] == number).sum() == max(1, round(share * had))
    more = replace(task, label_fraction=min(1.0, 2 * share)).split(seed)
    assert set(part["train"].tolist()) <= set(more["train"].tolist())


def test_shares_differ_by_seed_and_hold_every_class_of_sets() -> None:
    ids = tuple(map(str, range(1000)))
    splits = np.array((["train"] * 8 + ["val", "test"]) * 100)
    values = Task("t", "regression", ids, np.arange(1000.0), (), splits, label_fraction=0.01)
    assert [len(values.split(seed)["train"]) for seed in range(3)] == [8, 8, 8]
    assert values.split(0)["train"].tolist() != values.split(1)["train"].tolist()
    sets = np.zeros((1000, 3), dtype=bool)
    sets[::2, 0] = sets[:2, 1] = sets[500:502, 2] = True
    task = Task("t", "multilabel", ids, sets, ("a", "b", "c"), splits, label_fraction=0.01)
    for seed in range(5):
        train = task.split(seed)["train"]
        assert sets[train].any(axis=0).all()
        assert len(train) <= 10


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_is_above_zero_and_at_most_one(share: float) -> None:
    with pytest.raises(InputError, match="must be above 0 and at most 1"):
        Task("t", "regression", ("a",), np.zeros(1), label_fraction=share)
