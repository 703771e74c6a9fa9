"""The benchmarks, read from their real annotation files; COIN from a sample in its public form."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest

from lvmae.errors import InputError
from lvmae.evaluation import family_of, load_task, probe, probe_family, task_names
from lvmae.store import Manifest, StoreWriter, VideoRecord

# videos in train, val, test; classes
LVU_SIZES = {
    "director": (680, 163, 107, 8),
    "genre": (3063, 597, 647, 4),
    "writer": (769, 174, 168, 7),
    "year": (770, 165, 143, 9),
    "scene": (557, 120, 86, 6),
    "way_speaking": (939, 205, 201, 5),
    "relationship": (149, 53, 42, 4),
    "like_ratio": (658, 142, 140, 0),
    "view_count": (577, 124, 126, 0),
}


@pytest.mark.parametrize("name", LVU_SIZES)
def test_lvu(name: str, shared: Path) -> None:
    task = load_task(f"lvu/{name}", shared / "annotations")
    sizes = tuple(len(rows) for rows in task.split(0).values())
    assert (*sizes, len(task.classes)) == LVU_SIZES[name]
    assert len(set(task.ids)) == len(task.ids)
    if task.kind == "classification":
        assert set(task.targets.tolist()) == set(range(len(task.classes)))


def test_lvu_regression_targets(shared: Path) -> None:
    likes = load_task("lvu/like_ratio", shared / "annotations")
    assert likes.targets[likes.ids.index("29VjYkPPY2s")] == pytest.approx(10 * 100061 / (100061 + 3801))
    views = load_task("lvu/view_count", shared / "annotations")
    assert views.targets[views.ids.index("gFKba_Esjt0")] == pytest.approx(np.log(100124))


def test_lvu_classes_keep_their_names(shared: Path) -> None:
    genre = load_task("lvu/genre", shared / "annotations" / "lvu_1.0")
    assert genre.classes[genre.targets[genre.ids.index("-5Rohhkg-7k")]] == "Comedy"
    assert "\\N" in load_task("lvu/writer", shared / "annotations").classes


def test_breakfast_holds_out_people(shared: Path) -> None:
    task = load_task("breakfast", shared / "annotations")
    rows = task.split(0)
    assert (len(task), len(rows["test"]), len(task.classes)) == (1357 + 355, 355, 10)
    people = {name: {task.ids[row][:3] for row in rows[name]} for name in rows}
    assert not people["train"] & people["val"]
    assert not (people["train"] | people["val"]) & people["test"]
    assert (len(people["train"]), len(people["val"]), len(people["test"])) == (36, 8, 8)
    assert set(task.targets[rows["val"]].tolist()) == set(range(10))
    assert task.classes[task.targets[task.ids.index("P03-cam01-P03_cereals")]] == "cereals"


def _coin(folder: Path, **changes: object) -> Path:
    video = {"class": "MakeTea", "recipe_type": 7, "subset": "training", "start": 4.0, "end": 64.5, "duration": 80.0}
    video["annotation"] = [{"id": "1", "segment": [5.0, 9.0], "label": "boil"}]
    database = {f"tea{i}": dict(video) for i in range(10)}
    database |= {f"wax{i}": {**video, "class": "WaxSkis", "recipe_type": 8} for i in range(5)}
    database["tea_test"] = {**video, "subset": "testing", "start": 0.0} | changes
    (folder / "COIN.json").write_text(json.dumps({"database": database}))
    return folder


def test_coin(tmp_path: Path) -> None:
    task = load_task("coin", _coin(tmp_path))
    rows = task.split(0)
    assert [task.ids[row] for row in rows["val"]] == ["tea4", "tea9", "wax4"]
    assert [task.ids[row] for row in rows["test"]] == ["tea_test"]
    assert (task.classes, len(rows["train"])) == (("MakeTea", "WaxSkis"), 12)
    assert task.spans is not None
    assert task.spans[0] == (4.0, 64.5)


def test_wrong_annotations_get_one_sentence(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no task 'lvu/plot'; the tasks are lvu/director, "):
        load_task("lvu/plot", shared / "annotations")
    with pytest.raises(InputError, match=r"train.csv does not exist; give the folder"):
        load_task("lvu/genre", tmp_path)
    with pytest.raises(InputError, match="subset 'validation', neither"):
        load_task("coin", _coin(tmp_path, subset="validation"))
    with pytest.raises(InputError, match=r"not in the form COIN.json is distributed in"):
        load_task("coin", _coin(tmp_path, start="soon"))
    (tmp_path / "breakfast").mkdir()
    (tmp_path / "breakfast" / "train.csv").write_text("file,action\nx,y\n")
    with pytest.raises(InputError, match="it needs the columns file_name, action, class_id"):
        load_task("breakfast", tmp_path)
    assert len(task_names()) == 11


def test_a_family_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by a stranger: reader, splits, a metric of its own and published figures; no other file knows it."""
    (tmp_path / "shots_benchmark.py").write_text(
        """
import numpy as np
from lvmae.evaluation import Task, TaskFamily
from lvmae.evaluation.metrics import Metric

def share_of_top_two(outputs, targets, weights):
    right = (outputs.argsort(axis=1)[:, -2:] == targets[:, None]).any(axis=1)
    return 100 * (weights @ right) / weights.sum(axis=1)

class Shots(TaskFamily):
    name = "shots"
    parts = ("kind", "size")
    averaged = ("kind", "size")
    published = {"ShotNet": {"kind": 80.0, "size": 60.0, "average": 70.0}}
    published_probes = {"ShotNet": "end to end"}

    def read(self, part, annotations):
        rows = [line.split() for line in (annotations / f"{part}.txt").read_text().splitlines()]
        ids, labels, splits = zip(*rows)
        classes = tuple(sorted(set(labels)))
        targets = np.array([classes.index(label) for label in labels])
        return Task(f"shots/{part}", "classification", ids, targets, classes, np.array(splits), benchmark=True,
                    metric=Metric("top-2", share_of_top_two))

class NoFamily:
    pass
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    splits = ["train", "train", "val", "test"] * 15
    for part in ("kind", "size"):
        lines = [f"v{n:02d} {'abc'[n % 3]} {splits[n]}\n" for n in range(60)]
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    manifest = Manifest("toy", 8, {"kind": "fixed", "seconds": 5.0}, {"name": "toy"})
    with StoreWriter(tmp_path / "store", manifest) as writer:
        for n in range(60):
            tokens = np.eye(8)[n % 3] + 0.1 * rng.normal(size=(2, 8))
            writer.add(VideoRecord(f"v{n:02d}", "", 10.0, np.array([0.0, 5.0]), np.array([5.0, 10.0]), tokens))
    name = "shots_benchmark:Shots"
    table = probe(
        tmp_path / "store", load_task(f"{name}/kind", tmp_path), probes=["linear"], seeds=1, protocol="standard"
    )
    assert (table.metric, table.rows[0].mean) == ("top-2", 100.0)
    assert table.chance["majority of train"] == pytest.approx(200 / 3, abs=7)  # of three classes, two
    assert "ShotNet (published)" in table.to_text(compare=True)
    result = probe_family(name, tmp_path / "store", tmp_path, probes=["linear"], seeds=1, protocol="standard")
    header, rows = result.cells(compare=True)
    assert header == ["features", "probe", "kind", "size", "average"]
    assert rows[0][2:] == ["100.00", "100.00", "100.00"]
    assert rows[-1] == ["ShotNet (published)", "end to end", "80.00", "60.00", "70.00"]
    for wrong, says in (
        ("shots_benchmark:NoFamily", "is no family of tasks"),
        ("shots_benchmark:Nothing", "cannot be imp"),
    ):
        with pytest.raises(InputError, match=says):
            load_task(wrong, tmp_path)


def test_an_entry_point_names_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("kitchen", "lvmae.evaluation.tasks.breakfast:Breakfast", "lvmae.tasks")
    monkeypatch.setattr("lvmae.evaluation.tasks.entry_points", lambda group: [point] if group == "lvmae.tasks" else [])
    assert family_of("kitchen").name == "breakfast"
    assert "kitchen" in task_names()
