"""Probing from stores to a table: a planted problem that only order solves, missing videos, spans, refusals, rendering."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from lvmae.errors import InputError
from lvmae.evaluation import ProbeSettings, ProbeTable, Task, probe
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.representations import represent
from lvmae.store import EMBEDDINGS, REPRESENTATIONS, EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

D, VIDEOS = 32, 60
ORDERS = list(permutations(range(3)))
QUICK = ProbeSettings(linear_lr=1e-2, linear_min_steps=300, attentive_min_steps=60, bootstrap=200)


def _write(path: Path, videos: list[np.ndarray], *, learnt: bool, ids: list[str] | None = None) -> Path:
    run = {"path": "run", "fingerprint": "of no run", "store": "raw"} if learnt else None
    kind = REPRESENTATIONS if learnt else EMBEDDINGS
    manifest = Manifest("toy", D, {"kind": "fixed", "seconds": 5.0}, {"name": "toy"}, kind=kind, run=run)
    with StoreWriter(path, manifest) as writer:
        for number, tokens in enumerate(videos):
            starts = np.arange(len(tokens)) * 5.0
            mean = tokens.mean(axis=0) if learnt else None
            id_ = ids[number] if ids else f"films/v{number}.mp4"
            writer.add(
                VideoRecord(
                    id_, id_, 5.0 * len(tokens), starts, starts + 5, tokens, None if mean is None else mean, mean
                )
            )
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 videos of three events in one of six orders. Raw tokens tell the event; "learnt" ones the event and its place."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    events, placed = rng.normal(size=(3, D)), rng.normal(size=(3, 3, D))
    raw, learnt = [], []
    for video in range(VIDEOS):
        length = 6 + 3 * int(rng.integers(4))  # all events equally long: the mean alone tells nothing
        place = np.arange(length) * 3 // length
        event = np.array(ORDERS[video % 6])[place]
        raw.append(events[event] + 0.05 * rng.normal(size=(length, D)))
        learnt.append(placed[event, place] + 0.05 * rng.normal(size=(length, D)))
    _write(folder / "raw", raw, learnt=False)
    _write(folder / "reps", learnt, learnt=True)
    rows = [f"v{video},{'-'.join(map(str, ORDERS[video % 6]))}" for video in range(VIDEOS)]
    (folder / "labels.csv").write_text("id,label\n" + "\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def table(planted: Path) -> ProbeTable:
    return probe(planted / "reps", planted / "labels.csv", raw=planted / "raw", seeds=3, settings=QUICK)


def test_only_features_that_carry_order_solve_what_order_decides(table: ProbeTable) -> None:
    for name in ("linear", "attentive"):
        assert table.row("LV-MAE", name).mean == 100.0
        # 36 answers at 1 in 6: 6 right on average, and more than 14 in fewer than 1 of 1,000.
        assert table.row("raw embeddings", name).mean <= 100 * 14 / 36


def test_the_table_says_on_what_it_stands(table: ProbeTable) -> None:
    assert table.counts == {"train": 36, "val": 12, "test": 12}
    assert table.chance == pytest.approx(
        {"majority of train": 100 / 6, "most frequent class": 100 / 6, "1 / classes": 100 / 6}
    )
    assert [(row.features, row.probe) for row in table.rows] == [
        ("raw embeddings", "linear"),
        ("raw embeddings", "linear mean+std"),
        ("raw embeddings", "knn"),
        ("raw embeddings", "attentive"),
        ("LV-MAE", "linear"),
        ("LV-MAE", "linear cls"),
        ("LV-MAE", "linear both"),
        ("LV-MAE", "linear mean+std"),
        ("LV-MAE", "knn"),
        ("LV-MAE", "attentive"),
        ("LV-MAE + raw", "linear"),
    ]
    for row in table.rows:
        assert row.mean == pytest.approx(np.mean(row.values))
        assert row.std == pytest.approx(np.std(row.values, ddof=1))
        assert row.interval[0] <= row.mean <= row.interval[1]
        assert len(row.values) == len(row.chosen) == 3
        assert row.epochs == (tuple(one["epoch"] for one in row.chosen) if row.probe == "attentive" else ())
        if row.features != "raw embeddings":
            assert row.minus_raw is not None
            rival = "linear" if row.probe in ("linear cls", "linear both") else row.probe
            assert row.minus_raw["value"] == pytest.approx(row.mean - table.row("raw embeddings", rival).mean)
            assert row.differs_from_raw
    assert table.row("LV-MAE", "attentive").interval == (100.0, 100.0)


def test_text_markdown_and_json_agree(table: ProbeTable) -> None:
    text, markdown = table.to_text(), table.to_markdown()
    for form in (text, markdown):
        assert form.count("100.0 to 100.0") == 7  # all that LV-MAE takes part in
        assert "chance: 1 / classes" in form
        assert "attentive 60 (the paper" not in form
        assert "attentive 60." in " ".join(form.split())
    lines = text.splitlines()
    assert lines[0].startswith("features")
    assert max(map(len, lines[:8])) <= 118
    assert markdown.splitlines()[1] == "|---|---|---:|---:|---:|---:|---:|"
    loaded = json.loads(table.to_json())
    assert loaded == table.to_dict()
    assert ProbeTable.from_json(table.to_json()) == table
    assert loaded["rows"][-2]["values"] == [100.0] * 3
    assert loaded["settings"]["attentive_lr"] == 1e-3


def test_the_same_seeds_give_the_same_table(planted: Path, table: ProbeTable) -> None:
    again = probe(planted / "reps", planted / "labels.csv", probes=["linear"], seeds=2, settings=QUICK)
    assert again.rows[0].values == table.row("LV-MAE", "linear").values[:2]


def test_the_order_of_a_raw_video_is_nothing_to_a_probe(planted: Path, tmp_path: Path, table: ProbeTable) -> None:
    store = EmbeddingStore.open(planted / "raw")
    turned = _write(tmp_path / "turned", [record.embeddings[::-1] for record in store], learnt=False, ids=store.ids)
    found = probe(turned, planted / "labels.csv", probes=["attentive"], seeds=1, settings=QUICK)
    assert found.rows[0].values[0] == pytest.approx(table.row("raw embeddings", "attentive").values[0], abs=100 / 12)


def test_a_regression_says_its_error(planted: Path, tmp_path: Path) -> None:
    reps = EmbeddingStore.open(planted / "reps")
    values = 7 + 3 * reps.mean_features[:, 0]
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "\n".join(f"{i},{v:.6f}" for i, v in zip(reps.ids, values, strict=True)))
    settings = replace(QUICK, linear_lr=3e-2)
    table = probe(planted / "reps", labels, probes=["linear"], seeds=2, settings=settings)
    assert (table.metric, table.kind) == ("MSE", "regression")
    assert table.rows[0].mean < 0.1 * table.chance["mean of train"]
    assert table.chance["mean of train"] == pytest.approx(values.var(), rel=0.6)
    assert "MSE" in table.to_text().splitlines()[0]


def test_missing_videos_of_a_benchmark_are_counted_and_listed(planted: Path) -> None:
    ids = (*(f"v{i}" for i in range(VIDEOS)), "gone1", "gone2")
    splits = np.array(["train"] * 36 + ["val"] * 12 + ["test"] * 14)
    task = Task("lvu/toy", "classification", ids, np.arange(VIDEOS + 2) % 6, tuple("abcdef"), splits)
    table = probe(planted / "reps", task, probes=["linear"], seeds=1, settings=QUICK)
    assert (table.missing, table.counts["test"]) == (("gone1", "gone2"), 12)
    assert "2 of 62 annotated videos are not in the store, such as gone1, gone2." in table.to_text()
    assert table.to_dict()["missing"] == ["gone1", "gone2"]


def test_spans_choose_the_segments(tmp_path: Path) -> None:
    """The class lies in segments 4 to 7 alone, and the rest of the video says the opposite, louder."""
    rng = np.random.default_rng(0)
    videos = []
    for video in range(40):
        tokens = 0.05 * rng.normal(size=(12, D))
        tokens[:, video % 2] += 1
        tokens[4:8] = 0.05 * rng.normal(size=(4, D))
        tokens[4:8, 2 + video // 2 % 2] += 1
        videos.append(tokens)
    store = _write(tmp_path / "raw", videos, learnt=False, ids=[f"v{i}" for i in range(40)])
    splits = np.array(["train", "train", "train", "val", "test"] * 8)
    targets = np.arange(40) // 2 % 2
    task = Task("t", "classification", tuple(f"v{i}" for i in range(40)), targets, ("a", "b"), splits)
    spanned = replace(task, spans=((20.0, 40.0),) * 40)
    table = probe(store, spanned, probes=["linear", "attentive"], readouts=["mean"], seeds=1, settings=QUICK)
    assert [row.mean for row in table.rows] == [100.0, 100.0]
    # A span between the middles of two segments is the one that it shares more of; a video that ends before it is missing.
    spans = ((26.0, 27.0),) * 39 + ((60.0, 70.0),)
    table = probe(store, replace(task, spans=spans), probes=["linear"], seeds=1, settings=QUICK)
    assert (table.rows[0].mean, table.missing, table.counts["test"]) == (100.0, ("v39",), 7)
    with pytest.raises(InputError, match="the store has 0 of the 40 videos of t"):
        probe(store, replace(task, spans=((60.0, 70.0),) * 40), seeds=1, settings=QUICK)


def test_spans_are_segments_by_their_middle(tmp_path: Path) -> None:
    from lvmae.evaluation.features import load_features

    store = EmbeddingStore.open(_write(tmp_path / "raw", [np.eye(4, D)], learnt=False))
    for span, kept in {(0, 20): [0, 1, 2, 3], (2.5, 12.5): [0, 1, 2], (3, 12): [1], (8, 9): [1], (9, 12): [2]}.items():
        tokens = load_features(store, np.array([0]), [span]).tokens[0]
        assert tokens.argmax(axis=1).tolist() == kept, span
    with pytest.raises(InputError, match=r"no segment of video 'films/v0\.mp4' lies within 20 to 30 s"):
        load_features(store, np.array([0]), [(20.0, 30.0)])


def test_pooling_normalises_raw_embeddings_first(planted: Path) -> None:
    from lvmae.evaluation.features import load_features

    store = EmbeddingStore.open(planted / "raw")
    features = load_features(store, np.array([4, 1]))
    np.testing.assert_allclose(features.mean[0], l2_normalize(store.embeddings(4)).mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(features.tokens[1], store.embeddings(1))
    learnt = EmbeddingStore.open(planted / "reps")
    features = load_features(learnt, np.array([4, 1]))
    assert features.cls is not None
    np.testing.assert_allclose(features.cls[0], learnt[4].cls)
    np.testing.assert_allclose(features.mean[1], learnt[1].mean)


def test_what_does_not_fit_is_refused(planted: Path, tmp_path: Path) -> None:
    reps, raw, labels = planted / "reps", planted / "raw", planted / "labels.csv"
    with pytest.raises(InputError, match="no probe 'tree'; choose of linear, knn, attentive, "):
        probe(reps, labels, probes=["tree"])
    with pytest.raises(InputError, match="the paper's protocol has no the probe 'knn' and class weights; choose the"):
        probe(reps, labels, probes=["knn"], protocol="paper", class_weight="balanced")
    with pytest.raises(InputError, match="at least 1 seed"):
        probe(reps, labels, seeds=0)
    with pytest.raises(InputError, match="holds representations; the raw baseline"):
        probe(reps, labels, raw=reps)
    with pytest.raises(InputError, match="holds raw embeddings itself"):
        probe(raw, labels, raw=raw)
    part = _write(tmp_path / "part", [np.ones((2, D))], learnt=False)
    with pytest.raises(InputError, match=r"59 of the 60 labelled videos are not in .*, such as 'films/v1.mp4'"):
        probe(reps, labels, raw=part)
    with pytest.raises(InputError, match="has 1 of the 60 videos of labels, and none for val and test"):
        probe(part, labels)


def test_representations_of_another_run_than_said_are_refused(planted: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = LVMAEConfig(
            hidden_size=D,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=D,
            decoder_hidden_size=D,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=D,
        )
        LVMAEForPreTraining(config).save_pretrained(tmp_path / name)
    reps = represent(tmp_path / "one", planted / "raw", tmp_path / "reps")
    labels = planted / "labels.csv"
    table = probe(reps, labels, run=tmp_path / "one", probes=["linear"], seeds=1, settings=QUICK)
    assert table.rows[0].features == "LV-MAE"
    with pytest.raises(InputError, match=r"was made by another run .*one.* than .*two"):
        probe(reps, labels, run=tmp_path / "two")
    with pytest.raises(InputError, match="holds raw embeddings, not representations of the run"):
        probe(planted / "raw", labels, run=tmp_path / "one")
