"""The standard protocol against scikit-learn called directly, and what a sceptic asks of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lvmae.errors import InputError
from lvmae.evaluation import ProbeSettings, ProbeTable, Task, fit_probe, probe
from lvmae.evaluation import fits as fits_module
from lvmae.evaluation.estimators import STRENGTHS, fit_estimator, standardised
from lvmae.store import REPRESENTATIONS, EmbeddingStore, Manifest, StoreWriter, VideoRecord

D, VIDEOS = 10, 150
QUICK = ProbeSettings(bootstrap=200, attentive_min_steps=0, attentive_epochs=1)


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(VIDEOS, D))


@pytest.fixture(scope="module")
def stores(latent: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Representations that hold the latent vector in their mean, and raw embeddings that hold half of it."""
    folder, rng = tmp_path_factory.mktemp("stores"), np.random.default_rng(1)
    starts = 5.0 * np.arange(4)
    learnt = {"kind": REPRESENTATIONS, "run": {"path": "run", "fingerprint": "f", "store": "raw"}}
    for name, more in (("raw", {}), ("reps", learnt)):
        manifest = Manifest(f"s{'+lvmae-f' * bool(more)}", D, {"kind": "fixed", "seconds": 5.0}, {"name": "t"}, **more)
        with StoreWriter(folder / name, manifest) as writer:
            for number, own in enumerate(latent):
                told = own * (np.arange(D) < 5) if name == "raw" else own
                tokens = told + 0.5 * rng.normal(size=(4, D))
                both = (tokens.mean(axis=0), tokens.mean(axis=0)) if more else (None, None)
                writer.add(VideoRecord(f"v{number:03d}", "", 20.0, starts, starts + 5, tokens, *both))
    return folder / "reps", folder / "raw"


def _task(latent: np.ndarray, kind: str) -> Task:
    rng = np.random.default_rng(2)
    figures = latent[:, [0, 6]] + 0.2 * rng.normal(size=(VIDEOS, 2))
    splits = np.array((["train"] * 3 + ["val", "test"]) * (VIDEOS // 5))
    targets, classes = {
        "classification": (latent[:, [0, 6, 7]].argmax(axis=1), ("a", "b", "c")),
        "multilabel": (figures > 0.4, ("a", "b")),
        "regression": (figures.sum(axis=1), ()),
    }[kind]
    return Task("t", kind, tuple(f"v{n:03d}" for n in range(VIDEOS)), targets, classes, splits)


_DIRECT: dict[str, Callable[[dict[str, float]], object]] = {
    "classification": lambda chosen: LogisticRegression(C=chosen["C"], max_iter=3000),
    "multilabel": lambda chosen: OneVsRestClassifier(LogisticRegression(C=chosen["C"], max_iter=3000)),
    "regression": lambda chosen: Ridge(alpha=chosen["alpha"]),
}


@pytest.mark.parametrize("kind", list(_DIRECT))
def test_the_row_is_the_pipeline_called_directly(kind: str, stores: tuple[Path, Path], latent: np.ndarray) -> None:
    task = _task(latent, kind)
    table = probe(stores[0], task, probes=["linear"], seeds=1, settings=QUICK)
    row = table.row("LV-MAE", "linear")
    parts, x = task.split(0), np.asarray(EmbeddingStore.open(stores[0]).mean_features, dtype=np.float64)
    y = task.targets.astype(int) if kind == "multilabel" else task.targets
    direct = make_pipeline(StandardScaler(), _DIRECT[kind](row.chosen[0])).fit(x[parts["train"]], y[parts["train"]])
    test = parts["test"]
    if kind == "classification":
        said = direct.predict(x[test])
        assert row.mean == pytest.approx(100 * accuracy_score(y[test], said), abs=1e-6)
        assert row.details["macro_f1"] == pytest.approx(100 * f1_score(y[test], said, average="macro"), abs=1e-6)
        assert row.details["confusion"] == confusion_matrix(y[test], said).tolist()
    elif kind == "multilabel":
        expected = average_precision_score(y[test], direct.decision_function(x[test]))
        assert row.mean == pytest.approx(100 * expected, abs=1e-6)
    else:
        assert row.mean == pytest.approx(((direct.predict(x[test]) - y[test]) ** 2).mean(), abs=1e-6)
        assert row.details["r2"] == pytest.approx(direct.score(x[test], y[test]), abs=1e-6)


@pytest.mark.parametrize("kind", list(_DIRECT))
def test_a_linear_pipeline_is_weights_and_a_bias(kind: str, stores: tuple[Path, Path], latent: np.ndarray) -> None:
    from lvmae.evaluation.estimators import answers

    task = _task(latent, kind)
    x = 3 + np.asarray(EmbeddingStore.open(stores[0]).mean_features, dtype=np.float64)
    chosen = fit_estimator("linear", x, task, task.split(0))
    weights, bias = standardised(chosen.pipeline)
    np.testing.assert_allclose(x @ weights + bias, answers(kind, chosen.pipeline, x, len(task.classes)), atol=1e-8)


def test_the_strength_is_the_best_on_val_and_test_has_no_say(stores: tuple[Path, Path], latent: np.ndarray) -> None:
    task = _task(latent, "classification")
    x, parts = np.asarray(EmbeddingStore.open(stores[0]).mean_features, dtype=np.float64), task.split(0)
    chosen = fit_estimator("linear", x, task, parts)
    scores = {}
    for strength in STRENGTHS:
        one = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000))
        one.fit(x[parts["train"]], task.targets[parts["train"]])
        scores[strength] = one.score(x[parts["val"]], task.targets[parts["val"]])
    assert scores[chosen.setting["C"]] == max(scores.values())
    assert chosen.val == pytest.approx(100 * max(scores.values()))
    other = task.targets.copy()
    other[parts["test"]] = 0
    spoiled = x.copy()
    spoiled[parts["test"]] = 1e3
    assert fit_estimator("linear", spoiled, replace(task, targets=other), parts).setting == chosen.setting


def test_neighbours_are_those_of_the_cosine(stores: tuple[Path, Path], latent: np.ndarray) -> None:
    task = _task(latent, "classification")
    x, parts = np.asarray(EmbeddingStore.open(stores[0]).mean_features, dtype=np.float64), task.split(0)
    chosen = fit_estimator("knn", x, task, parts)
    known = x - x[parts["train"]].mean(axis=0)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    cosines = known[parts["test"]] @ known[parts["train"]].T
    nearest = np.argsort(-cosines, axis=1)[:, : int(chosen.setting["k"])]
    away = np.sqrt(2 - 2 * np.take_along_axis(cosines, nearest, axis=1))
    votes = np.eye(3)[task.targets[parts["train"]][nearest]] / away[..., None]
    np.testing.assert_allclose(
        chosen.pipeline.predict(x[parts["test"]]), votes.sum(axis=1) / votes.sum(axis=(1, 2))[:, None], atol=1e-6
    )


def test_readouts_blocks_and_differences(stores: tuple[Path, Path], latent: np.ndarray) -> None:
    task = _task(latent, "classification")
    table = probe(stores[0], task, raw=stores[1], probes=["linear"], readouts=["mean", "mean+std"], seeds=1)
    assert [(row.features, row.probe) for row in table.rows] == [
        ("raw embeddings", "linear"),
        ("raw embeddings", "linear mean+std"),
        ("LV-MAE", "linear"),
        ("LV-MAE", "linear mean+std"),
        ("LV-MAE + raw", "linear"),
    ]
    own, raw = table.row("LV-MAE", "linear"), table.row("raw embeddings", "linear")
    assert own.minus_raw is not None
    assert own.minus_raw["value"] == pytest.approx(own.mean - raw.mean)
    assert own.differs_from_raw == (own.minus_raw["low"] > 0)
    assert own.mean > raw.mean + 15  # half of what decides is not in the raw embeddings
    assert own.differs_from_raw
    assert f"{own.minus_raw['value']:+.1f}* (" in table.to_text()
    train = task.targets[task.splits == "train"]
    majority = 100 * np.mean(task.targets[task.splits == "test"] == np.bincount(train).argmax())
    assert table.chance["majority of train"] == pytest.approx(majority)
    share = majority / 100
    assert table.chance_stderr["majority of train"] == pytest.approx(100 * np.sqrt(share * (1 - share) / 30), rel=0.1)
    assert own.stderr == pytest.approx(100 * np.sqrt(own.mean / 100 * (1 - own.mean / 100) / 30), rel=0.1)


def test_the_unit_of_a_target_does_not_matter(stores: tuple[Path, Path], latent: np.ndarray) -> None:
    task = _task(latent, "regression")
    shares = []
    for unit in (1.0, 1000.0, 0.001):
        table = probe(stores[0], replace(task, targets=task.targets * unit), probes=["linear", "attentive"], seeds=1,
                      settings=replace(QUICK, attentive_epochs=5))  # fmt: skip
        shares.append([row.details["r2"] for row in table.rows])
    np.testing.assert_allclose(shares[1:], [shares[0]] * 2, atol=1e-3)
    assert shares[0][0] > 0.5


def test_classes_that_weigh_alike(stores: tuple[Path, Path], latent: np.ndarray) -> None:
    task = _task(latent, "classification")
    rare = replace(task, targets=(latent[:, 0] > 1.2).astype(int), classes=("often", "rarely"))
    plain, weighed = (
        probe(stores[1], rare, probes=["linear"], seeds=1, class_weight=w).rows[0].details["confusion"]
        for w in (None, "balanced")
    )
    assert weighed[1][1] >= plain[1][1]
    assert weighed[0][1] + weighed[1][1] > plain[0][1] + plain[1][1]  # it says "rarely" more often
    with pytest.raises(InputError, match="kind and group are for a label file"):
        probe(stores[0], task, group="film")
    with pytest.raises(InputError, match="a regression has no classes to weight"):
        probe(stores[0], _task(latent, "regression"), class_weight="balanced")


def test_a_share_of_the_labels_changes_nothing_else(stores: tuple[Path, Path], latent: np.ndarray) -> None:
    task = replace(_task(latent, "classification"), benchmark=True)
    whole, part = (probe(stores[0], task, probes=["linear"], seeds=1, label_fraction=f) for f in (1.0, 0.5))
    assert (whole.settings, whole.protocol) == (part.settings, part.protocol)
    assert (whole.rows[0].steps, part.rows[0].steps) == (
        30 * 6,
        30 * 3,
    )  # the epochs, of 90 and 45 videos in batches of 16


def test_what_is_fitted_is_kept_and_a_crash_loses_one_fit(
    stores: tuple[Path, Path], latent: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path))
    task = _task(latent, "classification")
    asked = {"probes": ["linear", "knn"], "seeds": 3, "settings": QUICK}
    made: list[str] = []
    original = fits_module.fit_estimator

    def fit(name: str, *args: object, **more: object) -> object:
        if len(made) == 4:
            raise MemoryError
        made.append(name)
        return original(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(fits_module, "fit_estimator", fit)
    with pytest.raises(MemoryError):
        probe(stores[0], task, **asked)
    made.clear()
    resumed = probe(stores[0], task, **asked)
    assert len(made) == 2
    (tmp_path / "probes").rename(tmp_path / "elsewhere")
    monkeypatch.undo()
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path))
    assert probe(stores[0], task, **asked) == resumed
    for path in (tmp_path / "probes").iterdir():  # a file that a crash cut off is no fit
        path.write_bytes(path.read_bytes()[:100])
    assert probe(stores[0], task, **asked) == resumed


def test_a_video_that_is_not_finite_is_that_videos_failure(
    stores: tuple[Path, Path], latent: np.ndarray, tmp_path: Path
) -> None:
    source = EmbeddingStore.open(stores[0])
    with StoreWriter(tmp_path / "reps", source.manifest) as writer:
        for record in source:
            cls = np.full(D, np.nan, np.float32) if record.id == "v007" else record.cls
            writer.add(replace(record, cls=cls))
    task = _task(latent, "classification")
    table = probe(tmp_path / "reps", task, raw=stores[1], probes=["linear"], seeds=1)
    assert table.missing == ("v007",)
    assert "1 of 150 annotated videos are not in the store, such as v007." in table.to_text()
    assert "NaN" in EmbeddingStore.open(tmp_path / "reps").unsound["v007"].reason  # the store says why
    assert np.isfinite([row.mean for row in table.rows]).all()
    assert '"missing": [\n    "v007"' in table.to_json()


def test_raw_embeddings_of_another_space_or_rule_are_refused(
    stores: tuple[Path, Path], latent: np.ndarray, tmp_path: Path
) -> None:
    source = EmbeddingStore.open(stores[1])
    changes = {"space": {"space_id": "other"}, "rule": {"segments": {"kind": "fixed", "seconds": 2.0}}}
    for name, change in changes.items():
        with StoreWriter(tmp_path / name, replace(source.manifest, **change)) as writer:
            for record in source:
                writer.add(record)
    task = _task(latent, "classification")
    with pytest.raises(
        InputError, match=r"was made from embeddings of the space s, 10 wide, and .* is of other, 10 wide"
    ):
        probe(stores[0], task, raw=tmp_path / "space")
    with pytest.raises(InputError, match="has segments of another rule"):
        probe(stores[0], task, raw=tmp_path / "rule")


def test_val_chooses_the_layer_and_the_table_says_which(latent: np.ndarray, tmp_path: Path) -> None:
    """Of three layers the second alone tells the class; train alone would take the first, which knows train by heart."""
    rng = np.random.default_rng(5)
    task = _task(latent, "classification")
    by_heart = np.where((task.splits == "train")[:, None], np.eye(D)[task.targets], rng.normal(size=(VIDEOS, D)))
    run = {"path": "run", "fingerprint": "f", "store": "raw", "layers": [1, 2, 4]}
    manifest = Manifest("s+lvmae-f", D, {"kind": "fixed", "seconds": 5.0}, {"name": "t"}, kind=REPRESENTATIONS, run=run)
    with StoreWriter(tmp_path / "reps", manifest) as writer:
        for row, id_ in enumerate(task.ids):
            noise = rng.normal(size=D)
            layers = np.stack([by_heart[row], latent[row], rng.normal(size=D)])
            starts = np.array([0.0])
            writer.add(VideoRecord(id_, "", 5.0, starts, starts + 5, noise[None], noise, noise, layers=layers))
    store = EmbeddingStore.open(tmp_path / "reps")
    assert list(store.layer_features) == [1, 2, 4]
    np.testing.assert_allclose(store.layer_features[2], latent, atol=1e-6)
    np.testing.assert_allclose(store[3].layers[1], latent[3], atol=1e-6)
    table = probe(store, task, probes=["linear"], readouts=["mean", "layers"], seeds=2)
    assert [one["layer"] for one in table.row("LV-MAE", "linear layers").chosen] == [2, 2]
    assert table.row("LV-MAE", "linear layers").mean > table.row("LV-MAE", "linear").mean + 25
    assert "Layer of LV-MAE that val chose, by seed: 2, 2." in table.to_text()
    assert "layers" not in fit_probe(store, task).readout


def test_without_resamples_there_is_no_interval(stores: tuple[Path, Path], latent: np.ndarray) -> None:
    settings = replace(QUICK, bootstrap=0)
    table = probe(
        stores[0], _task(latent, "classification"), raw=stores[1], probes=["linear"], seeds=1, settings=settings
    )
    assert table.to_dict()["rows"][0]["interval"] == [None, None]
    assert ProbeTable.from_json(table.to_json()).to_text() == table.to_text()
    assert "nan" not in table.to_text()
