"""Held out means held out: through all stores, for good, and written down; lists of ids; weights to begin with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import small, write_store
from lvmae.errors import InputError
from lvmae.files.id_lists import read_ids, write_ids
from lvmae.model import LVMAEForPreTraining
from lvmae.pretraining import pretrain, read_metrics
from lvmae.pretraining.data import TrainingData
from lvmae.runs import read_split
from lvmae.store import EmbeddingStore


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("seed", range(3))
def test_no_held_out_video_is_trained_on_in_another_store(tmp_path: Path, seed: int) -> None:
    """Stores that share ids: the second holds those of the first, in another order, and more."""
    stores = [EmbeddingStore.open(write_store(tmp_path / name, [6] * n, seed=n)) for name, n in (("a", 20), ("b", 33))]
    data = TrainingData(stores, small(val_fraction=0.3, seed=seed))
    names = [identity for store in stores for identity in store.ids]
    held = {names[window.video] for window in data.validation}
    trained = {names[data.windows[epoch, i].video] for epoch in range(4) for i in range(len(data.windows))}
    assert len(held) == pytest.approx(0.3 * 33, abs=1.01)
    assert held.isdisjoint(trained)
    assert held | trained == set(names)


def test_one_store_is_split_as_it_always_was(tmp_path: Path) -> None:
    """Runs of earlier versions are resumed: the draw for a store alone must not change."""
    store = EmbeddingStore.open(write_store(tmp_path / "s", [6] * 12))
    order = np.random.default_rng([0, 12]).permutation(12)
    assert TrainingData([store], small()).split.places("held_out")[0].tolist() == sorted(order[:2].tolist())


def test_the_ids_are_written_into_the_run(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [1, 6, 6, 6, 6, 6])
    (tmp_path / "out.txt").write_text("# left out\nv002\nnot-here\n")
    run = pretrain(store, tmp_path / "run", recipe=small(epochs=1), exclude=tmp_path / "out.txt")
    found = {row["id"]: row["split"] for row in rows_of(run)}
    assert (found["v000"], found["v002"]) == ("too_short", "excluded")
    assert sorted(found.values()) == ["excluded", "held_out", "too_short", "train", "train", "train"]
    assert read_split(run) == found
    counts = json.loads((run / "recipe.json").read_text())["stores"][0]
    assert (counts["excluded"], counts["held_out"], counts["too_short"]) == (1, 1, 1)
    # The same list in another form is the same run; another one is not.
    (tmp_path / "out.csv").write_text("title,id\nx,v002\n")
    assert pretrain(store, run, recipe=small(epochs=1), exclude=tmp_path / "out.csv") == run
    with pytest.raises(InputError, match="`only` and `exclude` have to be the same"):
        pretrain(store, run, recipe=small(epochs=1))


def test_only_and_exclude(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EmbeddingStore.open(write_store(tmp_path / "s", [6] * 8))
    data = TrainingData([store], small(), only=["v001", "v002", "v003", "v999"], exclude=["v003"])
    assert "1 of 4 ids of the list `only` are in no store; the first is 'v999'" in caplog.text
    used = {data.windows[epoch, i].video for epoch in range(3) for i in range(len(data.windows))}
    assert used | {window.video for window in data.validation} == {1, 2}
    with pytest.raises(InputError, match=r"names no video of the stores: it has ids such as 'V001', and .* 'v000'"):
        TrainingData([store], small(), exclude=["V001"])
    with pytest.raises(InputError, match="no video is left to train on: of 8, 8 were excluded"):
        TrainingData([store], small(), exclude=store.ids)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1), min_size=1, unique=True
    )
)
def test_a_list_of_ids_comes_back(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    write_ids(path, ids)
    assert read_ids(path) == ids


def test_lists_of_ids_as_people_write_them(tmp_path: Path) -> None:
    def read(name: str, text: str) -> list[str]:
        (tmp_path / name).write_text(text)
        return read_ids(tmp_path / name)

    assert read("a.txt", "b\n\n a \nb\n#1 hit\n") == ["b", "a", "#1 hit"]
    assert read("a.csv", "label,ID\nx,b\ny,a\n") == ["b", "a"]
    assert read("b.csv", "b\na\n") == ["b", "a"]  # no header
    assert read("a.jsonl", '{"video": "b"}\n{"video": 7}\n') == ["b", "7"]
    with pytest.raises(InputError, match="holds no ids"):
        read("empty.txt", "\n")
    with pytest.raises(InputError, match="has no column of ids"):
        read("c.csv", "x,y\n1,2\n")
    with pytest.raises(ValueError, match="does not fit on one line"):
        write_ids(tmp_path / "x.txt", ["a\nb"])


def test_recipe_json_is_resolved_and_names_versions(store: Path, tmp_path: Path) -> None:
    run = pretrain(store, tmp_path / "run", recipe=small(epochs=1, heads="none", clip_norm="none"))
    written = json.loads((run / "recipe.json").read_text())
    recipe = written["recipe"]
    assert None not in recipe.values()
    assert (recipe["heads"], recipe["embedding_scale"], recipe["max_seconds"]) == (1, 4.0, 180.0)
    assert (recipe["clip_norm"], recipe["temperature"]) == ("none", "none")
    assert written["versions"]["torch"] == torch.__version__
    again = pretrain(store, tmp_path / "again", recipe=run / "recipe.json")
    assert read_metrics(again) == read_metrics(run)
    assert pretrain(store, run, recipe=run / "recipe.json") == run


def test_a_run_begins_with_the_weights_of_another(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = pretrain(store, tmp_path / "first", recipe=small())
    started = small(epochs=1, base_lr=1e-12, warmup_epochs=0, weight_decay=0)
    run = pretrain(store, tmp_path / "second", recipe=started, init=first)
    ours, theirs = (LVMAEForPreTraining.from_pretrained(path).state_dict() for path in (run, first))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert read_metrics(run)[-1]["val_loss"] == pytest.approx(read_metrics(first)[-1]["val_loss"], rel=1e-4)
    assert json.loads((run / "recipe.json").read_text())["init"]["path"] == str(first)
    assert "was trained on" not in caplog.text  # the same seed holds out the same videos
    with pytest.raises(InputError, match=r"it began with the weights of .*first there and with random weights here"):
        pretrain(store, run, recipe=started)
    pretrain(store, tmp_path / "third", recipe=small(epochs=1, seed=1), init=first)
    assert "was trained on" in caplog.text
    with pytest.raises(InputError, match="has num_hidden_layers 1 and this recipe 2"):
        pretrain(store, tmp_path / "deep", recipe=small(layers=2), init=first)
    with pytest.raises(InputError, match="no run and no checkpoint at"):
        pretrain(store, tmp_path / "none", recipe=small(), init=tmp_path / "nowhere")


def test_an_official_checkpoint_begins_a_run(store: Path, tmp_path: Path) -> None:
    first = pretrain(store, tmp_path / "first", recipe=small(epochs=1, embedding_scale=1))
    LVMAEForPreTraining.from_pretrained(first).to_official_checkpoint(tmp_path / "official.pth")
    run = pretrain(
        store,
        tmp_path / "run",
        recipe=small(epochs=1, embedding_scale=1, base_lr=1e-12, warmup_epochs=0, weight_decay=0),
        init=tmp_path / "official.pth",
    )
    assert read_metrics(run)[-1]["val_loss"] == pytest.approx(read_metrics(first)[-1]["val_loss"], rel=1e-4)


def test_a_finished_run_is_made_longer(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = pretrain(store, tmp_path / "run", recipe=small())
    before = read_metrics(run)
    with caplog.at_level("INFO", logger="lvmae"):
        pretrain(store, run, recipe=small(epochs=5))
    assert "finished after 3 epochs and is made longer, to 5: the learning rate rises from 0" in caplog.text
    after = read_metrics(run)
    assert after[: len(before) - 1] == before[:-1]  # all but the line that says that it is finished
    assert (after[-1]["event"], after[-1]["step"]) == ("finished", 20)
    whole = read_metrics(pretrain(store, tmp_path / "whole", recipe=small(epochs=5)))
    schedule = [[r["lr"] for r in records if "lr" in r] for records in (after, whole)]
    assert schedule[0][12:] == schedule[1][12:]
    assert json.loads((run / "recipe.json").read_text())["made_longer"] == [{"epochs": 3, "step": 12}]
    with pytest.raises(InputError, match=r"finished after 5 epochs and cannot be made shorter"):
        pretrain(store, run, recipe=small(epochs=4))


def test_resuming_with_another_accumulation(store: Path, tmp_path: Path) -> None:
    run = pretrain(store, tmp_path / "run", recipe=small(epochs=1))
    assert pretrain(store, run, recipe=small(epochs=1, accumulation=3)) == run
    other = pretrain(store, tmp_path / "other", recipe=small(epochs=1, loss="contrastive"))
    with pytest.raises(
        InputError, match="accumulation is 1 there and 3 here"
    ):  # its negatives are those of a micro-batch
        pretrain(store, other, recipe=small(epochs=1, loss="contrastive", accumulation=3))
