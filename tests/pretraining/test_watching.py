"""What is seen of a run while it learns: figures by hand, no test label, the best kept, a word where nothing is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from safetensors.numpy import load_file

from conftest import small, write_store
from lvmae.errors import InputError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.model.objectives import build_objective
from lvmae.pretraining import pretrain, read_metrics
from lvmae.pretraining.best import Best
from lvmae.pretraining.card import WATCHED, _curves
from lvmae.pretraining.data import TrainingData
from lvmae.pretraining.watching import (
    alignment_and_uniformity,
    effective_rank,
    lidar,
    linear_accuracy,
    nearest_accuracy,
)
from lvmae.sequences import collate_packed
from lvmae.store import EmbeddingStore


def test_ranks_by_hand() -> None:
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.outer(np.arange(1.0, 5), np.ones(3))) == pytest.approx(1)
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=(4, 60, 6))
    flat = np.zeros((60, 6))
    flat[:, :2] = rng.normal(size=(60, 2))
    assert lidar(flat + noise) == pytest.approx(2, abs=0.2)  # two directions tell videos apart
    assert lidar(rng.normal(size=(60, 6)) + noise) > 5


def test_alignment_and_uniformity_by_hand() -> None:
    """Two videos on opposite sides, twice the same: no distance between masks, and exp(-2 x 4) between videos."""
    views = np.array([[[1.0, 0.0], [-1.0, 0.0]]] * 2)
    found = alignment_and_uniformity(views)
    assert found == {"alignment": pytest.approx(0), "uniformity": pytest.approx(-8)}
    other = np.array([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    assert alignment_and_uniformity(other)["alignment"] == pytest.approx(2)


def test_accuracies() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 10)
    apart = np.eye(8)[classes] + 0.05 * rng.normal(size=(30, 8))
    assert nearest_accuracy(apart, classes) == 1.0
    assert linear_accuracy(apart, classes, 0) == 1.0
    blind = rng.normal(size=(300, 8))
    shuffled = rng.integers(3, size=300)
    assert abs(nearest_accuracy(blind, shuffled) - 1 / 3) < 0.12
    assert abs(linear_accuracy(blind, shuffled, 0) - 1 / 3) < 0.12


def test_the_best_by_a_figure() -> None:
    best = Best("val_loss", 2)
    seen = [best.see({"step": step, "val_loss": loss}) for step, loss in enumerate([3.0, 2.0, 2.0, 1.0, 1.5, 1.1])]
    assert seen == [True, True, False, True, False, False]
    assert (best.step, best.value, best.stopping) == (3, 1.0, True)
    rising = Best("rankme", None)
    assert [rising.see({"step": s, **r}) for s, r in enumerate([{"rankme": 1.0}, {}, {"rankme": 2.0}])] == [
        True,
        False,
        True,
    ]
    assert not rising.stopping
    with pytest.raises(InputError, match="best_by is 'speed', which this run does not measure: choose one of a, b"):
        Best("speed", None).check(["a", "b"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("many") / "store", [10 + number % 7 for number in range(48)])


SETTINGS = {"val_fraction": 0.5, "watch_every": 1, "epochs": 3, "batch_size": 8, "num_workers": 0}


def labels(path: Path, *, poisoned: bool) -> Path:
    """Of every third video the split is test; poisoned ones are of a class of their own each, or no label at all."""
    rows = ["id,label,split"]
    for number in range(48):
        if number % 3:
            rows.append(f"v{number:03d},{'ab'[number % 2]},{'train' if number % 4 else 'val'}")
        elif poisoned:
            rows.append(f"v{number:03d},{'' if number % 2 else f'poison-{number}'},test")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_no_test_label_is_read(many: Path, tmp_path: Path) -> None:
    """With and without planted test labels, none of which could be classified: the same curves, to the byte."""
    runs = [
        pretrain(
            many,
            tmp_path / str(poisoned),
            recipe=small(**SETTINGS),
            watch=labels(tmp_path / "l.csv", poisoned=poisoned),
        )
        for poisoned in (True, False)
    ]
    curves = [(run / "metrics.jsonl").read_bytes() for run in runs]
    assert curves[0] == curves[1]
    checks = [r for r in read_metrics(runs[0]) if "val_loss" in r]
    assert all(set(WATCHED) - {"val_cosine_at_4", "val_cosine_at_3"} <= set(check) for check in checks)
    assert all(0 <= check[key] <= 1 for check in checks for key in ("watch_knn", "watch_linear"))
    card, final = (runs[0] / "README.md").read_text(), checks[-1]
    for name in set(WATCHED) & set(final):
        assert f"| {WATCHED[name]} | {final[name]:.4g} |" in card


def test_figures_are_recomputed_from_the_run_folder(many: Path, tmp_path: Path) -> None:
    recipe = small(**SETTINGS, mask_ratio=0.75)
    run = pretrain(many, tmp_path / "run", recipe=recipe)
    model = LVMAEForPreTraining.from_pretrained(run).eval()
    at: dict[int, list[float]] = {}
    whole, read, wanted, mean = [], [], [], []
    for window in TrainingData([EmbeddingStore.open(many)], recipe).validation:
        with torch.no_grad():
            guess = model(**collate_packed([window])).reconstruction[0].double().numpy()
            tokens = model.lvmae(torch.from_numpy(window.embeddings)[None]).last_hidden_state[0, 1:]
        whole.append(tokens.double().numpy().mean(axis=0))
        visible = np.flatnonzero(~window.masked)
        for place in np.flatnonzero(window.masked):
            true = window.embeddings[place].astype(float)
            cosine = guess[place] @ true / np.linalg.norm(guess[place]) / np.linalg.norm(true)
            at.setdefault(min(4, int(np.abs(visible - place).min())), []).append(cosine)
            read.append(guess[place])
            wanted.append(true)
            mean.append(window.embeddings[~window.masked].mean(axis=0))
    final = read_metrics(run)[-1]
    assert sorted(at) == [1, 2, 3, 4]
    for distance, cosines in at.items():
        assert final[f"val_cosine_at_{distance}"] == pytest.approx(np.mean(cosines), abs=1e-5)
    factor = np.vdot(read, wanted) / np.vdot(read, read)
    left = np.square(factor * np.array(read) - wanted).sum() / np.square(np.subtract(wanted, mean)).sum()
    assert final["val_beyond_mean"] == pytest.approx(1 - left, abs=1e-5)
    assert final["rankme"] == pytest.approx(effective_rank(np.stack(whole)), rel=1e-4)


def test_the_best_is_kept_and_the_run_stops(many: Path, tmp_path: Path) -> None:
    """A rate that wrecks the model after its first epochs: the best validation is not the last, and its weights are kept."""
    settings = {**SETTINGS, "epochs": 12, "base_lr": 3.0, "warmup_epochs": 6, "best_by": "val_cosine", "patience": 2}
    run = pretrain(many, tmp_path / "run", recipe=small(**settings))
    records = read_metrics(run)
    checks, final = [r for r in records[:-1] if "val_loss" in r], records[-1]
    best = max(checks, key=lambda r: r["val_cosine"])
    assert final["best_step"] == best["step"] < final["step"]
    assert {key: final[key] for key in best if key not in ("step", "epoch")} == {
        key: value for key, value in best.items() if key not in ("step", "epoch")
    }
    assert final["stopped_early"] == (final["step"] < 36)
    assert f"the weights of step {best['step']}, the best by val_cosine" in (run / "README.md").read_text()
    kept = load_file(run / "model.safetensors")
    assert all(
        np.array_equal(kept[name], value) for name, value in load_file(run / "best" / "model.safetensors").items()
    )
    newest = load_file(max((run / "checkpoints").iterdir()) / "model.safetensors")
    assert any(not np.array_equal(kept[name], value) for name, value in newest.items())
    before = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(
        b"".join(before.splitlines(keepends=True)[:-1])
    )  # as if killed before its last line
    pretrain(many, run, recipe=small(**settings))
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_no_better_than_the_mean_says_so(many: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="lvmae"):
        pretrain(many, tmp_path / "run", recipe=small(**SETTINGS, base_lr=1e-9, embedding_scale=1, loss="mse"))
    said = [line for line in caplog.messages if "no better than the mean of the visible segments" in line]
    assert len(said) == 1
    assert said[0].startswith("After 3 of 9 steps")
    assert (
        "center=video and embedding_scale=none, which is the square root of the width, and more epochs helped"
        in said[0]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,label\nv000,a\n", "no column split: without it test labels cannot be told from others"),
        ("id,label,split\nv000,a,elsewhere\n", "'elsewhere' is no split"),
        ("id,label,split\nv000,a,train\nv000,b,train\n", "'v000' has another label above"),
        ("id,label,split\nv000,a,train\n", "labels 0 of the 24 held-out videos"),
    ],
)
def test_labels_that_cannot_be_watched_with_are_one_sentence(many: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        pretrain(many, tmp_path / "run", recipe=small(**SETTINGS), watch=tmp_path / "l.csv")


def test_best_by_needs_what_it_names(many: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best_by is 'watch_knn', which this run does not measure"):
        pretrain(many, tmp_path / "run", recipe=small(**SETTINGS, best_by="watch_knn"))
    with pytest.raises(InputError, match="patience is 3: it goes with best_by"):
        small(patience=3)
    watched = small(**SETTINGS, best_by="watch_knn")
    run = pretrain(many, tmp_path / "watched", recipe=watched, watch=labels(tmp_path / "l.csv", poisoned=True))
    assert read_metrics(run)[-1]["best_by"] == "watch_knn"
    other = labels(tmp_path / "other.csv", poisoned=True)
    other.write_text(other.read_text().replace(",a,", ",c,"))
    with pytest.raises(InputError, match="best_by follows other labels"):
        pretrain(many, tmp_path / "watched", recipe=watched, watch=other)
    assert "watch" in json.loads((run / "recipe.json").read_text())


@pytest.mark.parametrize("watched", [{}, {"watch_knn": 0.5, "rankme": 10432.0}])
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_no_label_of_the_curves_is_cut_off(scale, watched):
    records = [{"step": step * 1000, "loss": scale / (1 + step / 9)} for step in range(40)]
    check = {"val_loss": scale, "interpolation_loss": scale, "val_cosine": 0.5, "interpolation_cosine": 0.4}
    records += [{"step": step, **check, "mean_cosine": 0.3, **watched} for step in (0, 39000)]
    figure = _curves(records, build_objective(LVMAEConfig(hidden_size=16)))
    FigureCanvasAgg(figure).draw()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    assert page.x0 <= drawn.x0 < drawn.x1 <= page.x1
    assert page.y0 <= drawn.y0 < drawn.y1 <= page.y1
