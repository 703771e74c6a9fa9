"""From some labels to all videos: a kept probe, what it says, how sure it is, and what to label next."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.evaluation import SavedProbe, Task, fit_probe, predict, suggest
from lvmae.files.table_files import read_table
from lvmae.store import REPRESENTATIONS, EmbeddingStore, Manifest, StoreWriter, VideoRecord

D, VIDEOS = 8, 200
CLASSES = ("red", "green", "blue")


def _write(path: Path, latent: np.ndarray, *, space: str = "toy", spoiled: int | None = None) -> Path:
    learnt = {"kind": REPRESENTATIONS, "run": {"path": "r", "fingerprint": "f", "store": "s"}} if spoiled else {}
    manifest = Manifest(space, latent.shape[1], {"kind": "fixed", "seconds": 5.0}, {"name": "toy"}, **learnt)
    starts = 5.0 * np.arange(3)
    with StoreWriter(path, manifest) as writer:
        for number, own in enumerate(latent):
            tokens = np.tile(own, (3, 1)).astype(np.float16)
            mean = (own + (np.nan if number == spoiled else 0)).astype(np.float32) if learnt else None
            writer.add(VideoRecord(f"v{number:03d}", "", 15.0, starts, starts + 5, tokens, mean, mean))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """200 videos of three classes that overlap, and their labels."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    targets = rng.integers(3, size=VIDEOS)
    latent = np.eye(D)[targets] + 0.5 * rng.normal(size=(VIDEOS, D))
    return _write(folder / "store", latent), targets


def _labels(path: Path, targets: np.ndarray, rows: list[int]) -> Path:
    path.write_text("id,label\n" + "".join(f"v{row:03d},{CLASSES[targets[row]]}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def saved(corpus: tuple[Path, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> SavedProbe:
    folder = tmp_path_factory.mktemp("labels")
    return fit_probe(corpus[0], _labels(folder / "l.csv", corpus[1], list(range(80))), readouts=["mean"])


def test_a_kept_probe_is_the_pipeline_and_reads_back(
    saved: SavedProbe, corpus: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    store, targets = corpus
    x = np.asarray(EmbeddingStore.open(store).mean_features, dtype=np.float64)
    order = [sorted(CLASSES).index(CLASSES[t]) for t in targets]
    direct = make_pipeline(StandardScaler(), LogisticRegression(C=saved.chosen["C"], max_iter=3000))
    direct.fit(x[:80], np.array(order)[:80])
    np.testing.assert_array_equal(np.argmax(saved.outputs(x), axis=1), direct.predict(x))
    logits = direct.decision_function(x) / saved.temperature
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(saved.outputs(x), softmax, atol=1e-6)
    again = SavedProbe.load(saved.save(tmp_path / "probe"))
    np.testing.assert_array_equal(again.outputs(x), saved.outputs(x))
    assert replace(again, weights=saved.weights, bias=saved.bias) == saved
    assert {path.suffix for path in (tmp_path / "probe").iterdir()} == {".json", ".safetensors"}
    saved.save(tmp_path / "probe")  # over the one that is there


def test_it_says_every_video_and_is_as_sure_as_it_is_right(saved: SavedProbe, corpus: tuple[Path, np.ndarray]) -> None:
    found = predict(saved, corpus[0])
    assert len(found.ids) == VIDEOS
    right = np.array([said == CLASSES[t] for said, t in zip(found.answers(), corpus[1], strict=True)])
    unseen = slice(80, None)
    assert right[unseen].mean() > 0.7
    assert found.scores.sum(axis=1) == pytest.approx(np.ones(VIDEOS))
    assert found.scores.max(axis=1)[unseen].mean() == pytest.approx(right[unseen].mean(), abs=0.1)


def test_test_videos_of_a_fixed_split_stay_unseen(corpus: tuple[Path, np.ndarray]) -> None:
    splits = np.array(["train", "val", "test", "train"] * 20)
    ids = tuple(f"v{n:03d}" for n in range(80))
    one, other = (
        fit_probe(corpus[0], Task("t", "classification", ids, targets, CLASSES, splits), readouts=["mean"])
        for targets in (corpus[1][:80], np.where(splits == "test", 0, corpus[1][:80]))
    )
    np.testing.assert_array_equal(one.weights, other.weights)
    assert len(one.labelled) == 60


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_sets_and_values(kind: str, corpus: tuple[Path, np.ndarray]) -> None:
    x = np.asarray(EmbeddingStore.open(corpus[0]).mean_features, dtype=np.float64)
    targets = x[:, :2] > 0.3 if kind == "multilabel" else 100 * x[:, 0]
    ids = tuple(f"v{n:03d}" for n in range(100))
    task = Task("t", kind, ids, targets[:100], ("a", "b") if kind == "multilabel" else ())
    found = predict(fit_probe(corpus[0], task, readouts=["mean"]), corpus[0])
    if kind == "regression":
        error = float(np.sqrt(np.mean((found.scores[100:, 0] - targets[100:]) ** 2)))
        assert found.probe.error == pytest.approx(error, rel=0.5)
        assert found.records()[0]["error"] == found.probe.error
        with pytest.raises(InputError, match="a regression has no classes to be unsure of"):
            suggest(found.probe, corpus[0])
    else:
        said = found.scores[100:] > 0.5
        assert (said == targets[100:]).mean() > 0.85
        assert len(suggest(found.probe, corpus[0], 7)) == 7


def test_another_space_is_refused(saved: SavedProbe, tmp_path: Path) -> None:
    for name, latent, space in (("space", np.ones((2, D)), "other"), ("width", np.ones((2, D + 1)), "toy")):
        _write(tmp_path / name, latent, space=space)
        with pytest.raises(InputError, match=r"this probe reads embeddings of the space toy \(8 wide\), and .* holds"):
            predict(saved, tmp_path / name)
        with pytest.raises(InputError, match="this probe reads"):
            suggest(saved, tmp_path / name)


def test_a_video_that_is_not_finite_is_named(tmp_path: Path) -> None:
    reps = _write(tmp_path / "s", np.random.default_rng(0).normal(size=(30, D)), spoiled=3)
    task = Task("t", "classification", tuple(f"v{n:03d}" for n in range(30)), np.arange(30) % 2, ("a", "b"))
    found = predict(fit_probe(reps, task), reps)
    assert found.failed == ("v003",)
    assert "v003" not in found.probe.labelled
    assert len(found.ids) == 29
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize("damage", ["json", "weights", "shape", "later", "none"])
def test_a_damaged_probe_is_refused(saved: SavedProbe, tmp_path: Path, damage: str) -> None:
    folder = saved.save(tmp_path / "p")
    path = folder / "probe.json"
    told = json.loads(path.read_text())
    if damage == "json":
        path.write_text("{")
    elif damage == "weights":
        (folder / "probe.safetensors").write_bytes(b"\x80\x04pickle")
    elif damage == "shape":
        replace(saved, bias=np.zeros(7)).save(folder)
    elif damage == "later":
        path.write_text(json.dumps(told | {"format": 2}))
    else:
        folder = tmp_path / "elsewhere"
    with pytest.raises(InputError, match=r"cannot be read|later lvmae|holds no saved probe"):
        SavedProbe.load(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="holds no probe"):
        saved.save(tmp_path / "mine")


def test_suggestions_are_unsure_unlabelled_and_spread(saved: SavedProbe, corpus: tuple[Path, np.ndarray]) -> None:
    found = predict(saved, corpus[0])
    sure = dict(zip(found.ids, found.scores.max(axis=1), strict=True))
    for by in ("margin", "entropy"):
        said = suggest(saved, corpus[0], 10, by=by)
        assert len({one.id for one in said}) == 10
        assert not {one.id for one in said} & set(saved.labelled)
        rest = [sure[id_] for id_ in found.ids[80:]]
        assert np.mean([one.score for one in said]) < np.mean(rest) - 0.1
    known = [one.id for one in said]
    assert not {one.id for one in suggest(saved, corpus[0], 10, by="entropy", labelled=known)} & set(known)
    assert len(suggest(saved, corpus[0], 10_000)) == VIDEOS - 80


def test_videos_that_are_all_alike_are_suggested_once_each(saved: SavedProbe, tmp_path: Path) -> None:
    """Two unsure groups: a person is not asked ten times about the same thing."""
    middle = np.full(D, 0.3)
    first, second = middle + np.eye(D)[5], middle + np.eye(D)[6]
    latent = np.stack([first] * 10 + [second] * 10)
    store = _write(tmp_path / "s", latent)
    said = suggest(replace(saved, labelled=()), store, 2)
    assert len({int(one.id[1:]) // 10 for one in said}) == 2
    sure = replace(saved, labelled=(), weights=np.zeros_like(saved.weights), bias=np.array([99.0, 0.0, 0.0]))
    assert len({one.id for one in suggest(sure, store, 20)}) == 20


def test_the_loop_as_it_is_typed(
    corpus: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, targets = corpus
    labels = _labels(tmp_path / "l.csv", targets, list(range(40)))
    probe = str(tmp_path / "PROBE")
    asked = ["probe", str(store), "--labels", str(labels), "--probe", "linear", "--seeds", "1", "--save", probe]
    assert main(asked) == 0
    assert f"kept {probe}: linear, on the mean" in capsys.readouterr().err
    for suffix in (".csv", ".parquet"):
        assert main(["predict", probe, str(store), "--out", str(tmp_path / f"p{suffix}")]) == 0
        rows = read_table(tmp_path / f"p{suffix}").rows
        assert [row.values["id"] for row in rows] == [f"v{n:03d}" for n in range(VIDEOS)]
        assert set(rows[0].values) == {"id", "predicted", "score:red", "score:green", "score:blue"}
    assert main(["predict", probe, str(store), "--out", str(tmp_path / "p.json")]) == 0
    assert len(json.loads((tmp_path / "p.json").read_text())) == VIDEOS
    assert main(["suggest", probe, str(store), "--count", "5", "--out", str(tmp_path / "next.csv")]) == 0
    with (tmp_path / "next.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [len(rows), *rows[0]] == [5, "id", "label", "suggestion", "score"]
    capsys.readouterr()
    for wrong in (["predict", str(store), str(store)], ["predict", probe, str(store), "--out", "p.xlsx"]):
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
