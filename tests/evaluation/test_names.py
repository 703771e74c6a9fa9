"""Names: of classes, as people write them, and of videos, as data sets and downloaders write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmae.errors import InputError
from lvmae.evaluation import load_labels, load_task
from lvmae.evaluation.class_names import one_name_a_class
from lvmae.evaluation.matching import match_ids
from lvmae.evaluation.splits import SPLITS, balanced_split
from lvmae.evaluation.task import Task, found_in
from lvmae.evaluation.tasks.breakfast import video_name
from lvmae.evaluation.tasks.youtube import youtube_id


@pytest.mark.parametrize(
    ("written", "one"),
    [
        (["1", "1.0", "1.00"], "1"),
        (["2.5", "2.50"], "2.5"),
        (["True", "TRUE", "true", "True"], "True"),
        (["café", "cafe\u0301"], "café"),
        (["a dog", "a\u00a0dog", " a  dog ", "a dog\u200b"], "a dog"),
        (["soft\u00adware", "software"], "software"),
    ],
)
def test_what_nobody_can_see_is_one_class_and_said(written: list[str], one: str) -> None:
    names, said = one_name_a_class([*written, "other"], "l.csv")
    assert names == [one] * len(written) + ["other"]
    assert said[0].startswith(f"One class, {one!r}, was written in ")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Dog", "dog"), ("yes", "YES"), ("1", "01"), ("1", "1e0"), ("cat", "c\u0430t"), ("x-ray", "x\u2011ray"), ("A", "\uff21"),
     ("don't", "don\u2019t"), ("\ufb01sh", "fish")],
)  # fmt: skip
def test_what_looks_alike_is_refused(one: str, other: str) -> None:
    with pytest.raises(InputError, match=r"differ only in case or in characters that look alike") as caught:
        one_name_a_class([one, other, "third"], "l.csv")
    assert repr(one) in str(caught.value)
    assert repr(other) in str(caught.value)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("abcdefg", min_size=1, max_size=5), min_size=1))
def test_plain_names_stay_as_they_are(names: list[str]) -> None:
    assert one_name_a_class(names, "l.csv") == (names, [])


@pytest.mark.parametrize("word", ["NA", "n/a", "NULL", "None", "nan", "#N/A", "<NA>", ""])
@pytest.mark.parametrize("form", ["{}", "a|{}"])
def test_a_missing_label_is_no_class(tmp_path: Path, word: str, form: str) -> None:
    if not word and "|" in form:
        return
    path = tmp_path / "l.csv"
    path.write_text("id,label\n" + "".join(f"v{n},{'ab'[n % 2]}\n" for n in range(10)) + f"w,{form.format(word)}\n")
    with pytest.raises(InputError, match=r"video 'w' on line 12 of .* has no label"):
        load_labels(path)


def test_a_word_among_numbers_is_not_a_class(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("id,label\n" + "".join(f"v{n},{n / 3:.2f}\n" for n in range(10)) + "w,?\n")
    with pytest.raises(InputError, match=r"the label '\?' on line 12 of .* is no number, as 10 of the 11 labels are"):
        load_labels(path)


def test_labels_come_from_every_kind_of_table(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text(
        "".join(f'{{"id": "v{n}", "label": ["a", "{"bc"[n % 2]}"]}}\n' for n in range(12))
    )
    (tmp_path / "l.tsv").write_text("id\tlabel\n" + "".join(f"v{n}\t{['a|b', 'a|c'][n % 2]}\n" for n in range(12)))
    for name in ("l.jsonl", "l.tsv"):
        with pytest.raises(InputError, match=r"class 'a' in .* is on every video"):
            load_labels(tmp_path / name)


# ------------------------------------------------------------------------------------------------ videos


@pytest.mark.parametrize(
    ("name", "known", "place"),
    [
        ("talk00.part2", ["talk00.part1", "talk00"], None),
        ("cam1/000", ["cam2/000", "cam1/000.mp4"], 1),
        ("cam1/000", ["cam2/000"], None),
        ("/data/cam1/000.avi", ["cam1/000"], 0),
        ("clip.mp4.npy", ["x/clip"], 0),
        ("v1.5", ["v1"], None),
        (".mp4", ["mp4", ""], None),
        ("caf\u00e9", ["cafe\u0301.mkv"], 0),
        ("A\\b.MP4", ["A/b"], 0),
        ("-5Rohhkg-7k", ["-5Rohhkg-7k.webm"], 0),
    ],
)
def test_a_label_never_lands_on_another_video(name: str, known: list[str], place: int | None) -> None:
    assert match_ids([name], known, "l.csv").places == [place]


def test_two_names_of_one_video_and_two_videos_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"'cam1/000' and 'cam2/000' in l.csv are both the store's video '000'"):
        match_ids(["cam1/000", "cam2/000"], ["000"], "l.csv")
    with pytest.raises(
        InputError, match=r"'000' in l.csv fits several videos of the store, such as 'cam1/000' and 'cam2"
    ):
        match_ids(["000"], ["cam1/000", "cam2/000"], "l.csv")


def test_loose_matches_are_counted() -> None:
    splits = np.array(["train", "train", "val", "test"])
    task = Task("t", "classification", ("a.mp4", "b", "c", "d"), np.array([0, 1, 0, 1]), ("x", "y"), splits)
    here, _ = found_in(task, ["a", "b", "f/c", "d"])
    assert here.notes == ("2 videos were found under another spelling: 'a.mp4' is 'a', 'c' is 'f/c'.",)


def test_breakfast_in_the_names_of_its_parts(shared: Path) -> None:
    """The tree of the videos, the I3D features, and the annotations themselves: every video of the real files is found."""
    task = load_task("breakfast", shared / "annotations")
    tree = [name.replace("-", "/", 2) + ".avi" for name in task.ids]
    features = [name.replace("-stereo-", "-stereo01-").replace("_ch0", "").replace("-", "_") for name in task.ids]
    assert (tree[0], features[0]) == ("P03/cam01/P03_cereals.avi", "P03_cam01_P03_cereals")
    assert any("stereo01" in name for name in features)
    for known in (tree, features, [f"data/{name}" for name in tree], list(task.ids)):
        here, places = found_in(task, known)
        assert (here.missing, places.tolist()) == ((), list(range(len(task))))
    assert video_name("P03/stereo/P03_tea_ch1.avi") != video_name("P03-stereo-P03_tea_ch0")
    assert video_name("P03/cam01/P04_tea.avi") is None
    with pytest.raises(InputError, match=r"Its videos are named like 'P03-cam01-P03_cereals' and the store's like 'x'"):
        found_in(task, ["x", "y"])


def test_lvu_in_the_names_of_downloaders(shared: Path) -> None:
    task = load_task("lvu/scene", shared / "annotations")
    for form in ("{}", "A Film (3_10) Movie CLIP [{}].mp4", "A Film-{}.mp4", "videos/{}.webm", "v_{}"):
        known = [form.format(name) for name in task.ids]
        here, places = found_in(task, known)
        assert (here.missing, places.tolist()) == ((), list(range(len(task)))), form
    assert youtube_id("https://www.youtube.com/watch?v=-5Rohhkg-7k&t=3") == "-5Rohhkg-7k"
    assert youtube_id("holiday") is None


# ------------------------------------------------------------------------------------------------ splits


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 50),
    st.randoms(use_true_random=False),
    st.sampled_from(["classification", "multilabel", "regression"]),
)
def test_drawn_splits_do_not_depend_on_the_order_of_rows(seed: int, random: object, kind: str) -> None:
    rng = np.random.default_rng(seed)
    targets = {"classification": rng.integers(3, size=40), "multilabel": rng.random((40, 3)) < 0.2,
               "regression": rng.normal(size=40)}[kind]  # fmt: skip
    ids = np.array([f"v{n:02d}" for n in range(40)])
    order = np.arange(40)
    random.shuffle(order)  # type: ignore[attr-defined]
    classes = () if kind == "regression" else ("a", "b", "c")
    one, other = (
        Task("t", kind, tuple(ids[o]), targets[o], classes, label_fraction=share)
        for o in (np.arange(40), order)
        for share in (0.5,)
    )
    for name in SPLITS:
        assert {one.ids[row] for row in one.split(seed)[name]} == {other.ids[row] for row in other.split(seed)[name]}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200), st.integers(3, 12), st.integers(1, 5))
def test_groups_stay_whole_and_train_has_every_class(seed: int, groups: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    of = rng.integers(groups, size=60)
    of[:groups] = np.arange(groups)
    belongs = rng.random((60, classes)) < 0.1
    parts = balanced_split([f"v{n:02d}" for n in range(60)], belongs, [f"g{g}" for g in of], seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(60))
    sides = [set(of[parts[name]].tolist()) for name in SPLITS]
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert belongs[parts["train"]].any(axis=0).tolist() == belongs.any(axis=0).tolist()


def test_a_column_of_groups(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("id,label,Film\n" + "".join(f"v{n:02d},{'ab'[n % 2]},f{n // 4}\n" for n in range(40)))
    task = load_labels(path, group="film")
    for seed in range(5):
        parts = task.split(seed)
        films = {name: {int(task.ids[row][1:]) // 4 for row in parts[name]} for name in SPLITS}
        assert not films["train"] & (films["val"] | films["test"])
        assert (len(films["val"]), len(films["test"])) == (2, 2)
    with pytest.raises(InputError, match="has no column 'scene' of groups; it names id, label, Film"):
        load_labels(path, group="scene")
    lines = ["id,label,film,split"] + [f"v{n},{'ab'[n % 2]},f{n % 2},{SPLITS[n // 2 % 3]}" for n in range(12)]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"the group 'f0' in .* is in both train and val"):
        load_labels(path, group="film")


def test_a_class_of_sets_that_only_test_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    rows = ["a|b,train", "b,train", "a,val", "b|c,test", "c|a,test"]
    path.write_text("id,label,split\n" + "".join(f"v{n},{row}\n" for n, row in enumerate(rows)))
    with pytest.raises(InputError, match=r"the class 'c' in .* has no video in train"):
        load_labels(path)


def test_classes_whose_videos_are_absent_are_left_out_and_said() -> None:
    ids = tuple(f"v{n:02d}" for n in range(30))
    task = Task("t", "classification", ids, np.arange(30) % 3, ("a", "b", "c"))
    here, places = found_in(task, [id_ for n, id_ in enumerate(ids) if n % 3 != 1])
    assert here.classes == ("a", "c")
    assert here.targets.tolist() == [0, 1] * 10
    assert len(places) == 20
    assert "1 of 3 classes have no training video in the store and are left out, such as 'b'." in here.notes
