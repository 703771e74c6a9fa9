"""Every setting of a recipe changes what it claims to change: none is read and forgotten, and none can be added unseen."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import small, write_store
from lvmae.pretraining import pretrain, read_metrics
from lvmae.pretraining.data import TrainingData
from lvmae.recipes import Recipe
from lvmae.sequences.masking import random_mask
from lvmae.store import EmbeddingStore

Stores = list[Path]
Look = Callable[[Path], Any]

BASE: dict[str, Any] = {"epochs": 2, "num_workers": 0, "log_every": 1, "val_fraction": 0.3, "mask": "semantic"}
MINE = "test_every_setting:marking_mask"


def marking_mask(embeddings: np.ndarray, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Leaves a file named by the process that draws it, and by the segments that it is given."""
    folder = Path(os.environ["MARKS"])
    (folder / f"pid-{os.getpid()}").touch()
    return random_mask(embeddings, ratio, generator)


def config(key: str) -> Look:
    return lambda run: json.loads((run / "config.json").read_text())[key]


def weights(run: Path) -> Any:
    return {name: value.tobytes() for name, value in load_file(run / "model.safetensors").items()}


def first_loss(run: Path) -> float:
    return float(read_metrics(run)[0]["loss"])


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "lr" in record]


def rates(run: Path) -> list[float]:
    return [record["lr"] for record in read_metrics(run) if "lr" in record]


def lines_with(key: str) -> Look:
    return lambda run: sum(key in record for record in read_metrics(run) if "event" not in record)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def stores_told(key: str) -> Look:
    return lambda run: [entry[key] for entry in json.loads((run / "recipe.json").read_text())["stores"]]


def windows(stores: Stores, recipe: Recipe) -> Any:
    """What an epoch trains on: store and segments and mask of every window."""
    data = TrainingData([EmbeddingStore.open(store) for store in stores], recipe)
    chosen = [data.windows[0, place] for place in range(len(data.windows))]
    return [(window.video, window.start, window.masked.tobytes()) for window in chosen]


# Of each setting: another value, what else both sides have, and what it has to change of a finished run.
CHANGES: dict[str, tuple[Any, dict[str, Any], Look]] = {
    "name": ("other", {}, lambda run: (run / "README.md").read_text().split("\n# ")[1].splitlines()[0]),
    "layers": (2, {}, config("num_hidden_layers")),
    "heads": (4, {}, config("num_attention_heads")),
    "mlp_ratio": (3.0, {}, config("intermediate_size")),
    "decoder_width": (16, {}, config("decoder_hidden_size")),
    "decoder_layers": (2, {}, config("decoder_num_hidden_layers")),
    "decoder_heads": (4, {}, config("decoder_num_attention_heads")),
    "max_segments": (8, {}, config("max_segments")),
    "embedding_scale": (2.0, {}, first_loss),
    "center": ("video", {}, first_loss),
    "loss": ("contrastive", {}, first_loss),
    "loss_options": (("temperature=0.5",), {"loss": "contrastive"}, first_loss),
    "mask": ("random", {}, first_loss),
    "order": ("shuffled", {}, losses),
    "mask_ratio": (0.3, {}, first_loss),
    "temperature": (1.0, {}, first_loss),
    "min_seconds": (100.0, {}, losses),
    "max_seconds": (30.0, {}, losses),
    "epochs": (3, {}, lines_with("lr")),
    "warmup_epochs": (0.5, {}, rates),
    "batch_size": (5, {}, lines_with("lr")),
    "base_lr": (0.1, {}, rates),
    "beta1": (0.5, {}, weights),
    "beta2": (0.5, {}, weights),
    "weight_decay": (0.5, {}, weights),
    "clip_norm": (1e-3, {}, weights),
    "precision": ("bf16", {}, first_loss),
    "seed": (1, {}, first_loss),
    "val_fraction": (0.5, {}, stores_told("held_out")),
    "val_windows": (1, {}, lambda run: read_metrics(run)[-1]["interpolation_loss"]),
    "validate_every": (2, {}, lines_with("val_loss")),
    "watch_every": (1, {}, lines_with("rankme")),
    "best_by": ("val_cosine", {}, lambda run: "best_step" in read_metrics(run)[-1]),
    "patience": (1, {"best_by": "alignment", "watch_every": 1, "epochs": 8}, lambda run: read_metrics(run)[-1]["step"]),
    "checkpoint_every": (2, {"keep": 9}, checkpoints),
    "checkpoint_minutes": (1e-9, {"keep": 99, "checkpoint_every": 1000}, checkpoints),
    "keep": (1, {}, checkpoints),
    "trackers": (("tensorboard",), {}, lambda run: sorted(path.name for path in run.rglob("events.*")) != []),
}

# The first three are looked at below. `accumulation`, `compile` and `data` promise to change no figure: test_parallel.py,
# test_steps.py and tests/model.
ELSEWHERE = {"mixture", "num_workers", "log_every", "accumulation", "compile", "data"}


def test_no_setting_is_left_out() -> None:
    assert set(CHANGES) | ELSEWHERE == {field.name for field in dataclasses.fields(Recipe)}
    assert not set(CHANGES) & ELSEWHERE


@pytest.fixture(scope="module")
def made(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """Runs, each trained once."""
    found: dict[str, Path] = {}

    def of(settings: dict[str, Any]) -> Path:
        name = settings.pop("name", "tiny")
        said = json.dumps([name, settings], sort_keys=True)
        if said not in found:
            recipe = dataclasses.replace(small(**{**BASE, **settings}), name=name)
            found[said] = pretrain(store, tmp_path_factory.mktemp("run") / "run", recipe=recipe)
        return found[said]

    return of


@pytest.mark.parametrize("key", CHANGES)
def test_another_value_changes_what_it_claims_to(key: str, made: Callable[[dict[str, Any]], Path]) -> None:
    value, both, look = CHANGES[key]
    assert look(made(dict(both))) != look(made({**both, key: value}))


def test_what_an_epoch_is_made_of(store: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", [20] * 12, seed=1)
    stores = [store, other]
    base = small(**BASE)
    plain = windows(stores, base)
    for changed in (
        {"mixture": (9.0, 1.0)},
        {"seed": 3},
        {"temperature": 0.5},
        {"mask_ratio": 0.3},
        {"max_segments": 8},
    ):
        assert windows(stores, small(**{**BASE, **changed})) != plain, changed
    counts = [
        sum(video < 12 for video, _, _ in windows(stores, small(**BASE, mixture=mixture)))
        for mixture in ((1, 9), (9, 1))
    ]
    assert counts[0] < 4 < 12 < counts[1]


def test_windows_are_drawn_in_workers(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        monkeypatch.setenv("MARKS", str(folder))
        settings = {**BASE, "mask": MINE, "num_workers": workers, "epochs": 1, "val_fraction": 0}
        pretrain(store, folder / "run", recipe=small(**settings))
        pids = {int(path.name.split("-")[1]) for path in folder.glob("pid-*")}
        assert (os.getpid() in pids) == (workers == 0)
        assert len(pids) == max(1, workers)


def test_steps_are_looked_at_so_often(store: Path, tmp_path: Path) -> None:
    from lvmae.pretraining.loop import _Training

    looked = {}
    for every in (1, 3):
        recorded = _Training._record
        with patch.object(_Training, recorded.__name__, autospec=True, side_effect=recorded) as spy:
            pretrain(store, tmp_path / str(every), recipe=small(**{**BASE, "log_every": every}))
        looked[every] = spy.call_count
    assert looked[1] > looked[3]
    assert losses(tmp_path / "1") == losses(tmp_path / "3")
