"""Every objective through a run: it learns what interpolation cannot know, resumes to the bit, and one of a stranger's works."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import small, write_store
from lvmae.errors import InputError
from lvmae.interpretation import interpret
from lvmae.model.objectives import OBJECTIVES, objective_class
from lvmae.pretraining import pretrain, read_metrics
from lvmae.trust import trusting

OPTIONS = {"clusters": ("clusters=4",)}


@pytest.fixture(scope="module")
def in_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos whose order is known from their place alone: whoever learns it beats both floors."""
    return write_store(tmp_path_factory.mktemp("in_step") / "store", [12] * 24, in_step=True)


@pytest.mark.parametrize("loss", [name for name in OBJECTIVES if name not in ("mse", "cosine")])
def test_it_learns_and_says_so(loss: str, in_step: Path, tmp_path: Path) -> None:
    settings = {
        "epochs": 24,
        "batch_size": 4,
        "base_lr": 0.6,
        "decoder_width": 32,
        "warmup_epochs": 2,
        "min_seconds": 10_000,
    }
    chosen = small(**settings, validate_every=24, loss=loss, loss_options=OPTIONS.get(loss, ()))
    run = pretrain(in_step, tmp_path / "run", recipe=chosen)
    final, kind = read_metrics(run)[-1], objective_class(loss)
    assert final["score"] == kind.score
    assert final["beats_interpolation"]
    assert final["beats_mean"]
    assert final["verdict"] == kind.verdict(final)
    assert "NOTHING" not in final["verdict"]
    card = (run / "README.md").read_text()
    assert final["verdict"] in card
    assert f"| {kind.score.replace('_', ' ')} |" in card
    for what, lost, score in kind.table(final):
        assert f"| {what} | {lost:.6g} | {score:.4f} |" in card
    read = interpret(run, in_step, ratio=0.5)
    assert read.metrics["cosine"]["reconstruction"] > read.metrics["cosine"]["interpolation"]


@pytest.mark.parametrize("loss", ["clusters", "latent"])
def test_what_an_objective_keeps_is_resumed_to_the_bit(loss: str, store: Path, tmp_path: Path) -> None:
    recipe = small(loss=loss, loss_options=OPTIONS.get(loss, ()), num_workers=0)
    whole = pretrain(store, tmp_path / "whole", recipe=recipe)
    part = pretrain(store, tmp_path / "part", recipe=recipe)
    (part / "model.safetensors").unlink()  # as if killed after the checkpoint of step 9
    metrics = (part / "metrics.jsonl").read_text().splitlines(keepends=True)
    (part / "metrics.jsonl").write_text("".join(metrics[:-1]))
    shutil.rmtree(part / "checkpoints" / "step-00000012")
    pretrain(store, tmp_path / "part", recipe=recipe)
    ours, theirs = (load_file(run / "model.safetensors") for run in (whole, part))
    assert any(name.startswith("objective.") for name in ours)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert (whole / "metrics.jsonl").read_bytes() == (part / "metrics.jsonl").read_bytes()


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An objective in a file that is nobody's package: the embedding by absolute error, scored by how near it comes."""
    (tmp_path / "strangers_objective.py").write_text(
        textwrap.dedent('''
        import torch
        from lvmae.model.objectives import Objective

        class Absolute(Objective):
            """The absolute error, times `scale`."""

            score = "nearness"

            def __init__(self, config, scale=1.0):
                super().__init__(config)
                self.scale = scale
                self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

            def loss(self, predicted, targets, weights):
                return self.scale * ((predicted - targets).abs().mean(-1) * weights).sum()

            def after_step(self, model):
                self.steps += 1

            def scores(self, predicted, targets, tokens, rows):
                return {"nearness": -(predicted - targets).abs().mean(-1)}
        ''')
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strangers_objective", raising=False)
    return "strangers_objective:Absolute"


def test_a_strangers_objective(stranger: str, store: Path, tmp_path: Path) -> None:
    chosen = small(loss=stranger, loss_options=("scale=2",), num_workers=0)
    run = pretrain(store, tmp_path / "run", recipe=chosen)
    final = read_metrics(run)[-1]
    assert int(load_file(run / "model.safetensors")["objective.steps"]) == 12
    assert final["val_loss"] == pytest.approx(-2 * final["val_nearness"], rel=1e-6)
    assert f"reach a nearness of {final['val_nearness']:.4f}; interpolating" in (run / "README.md").read_text()
    page = tmp_path / "report.html"
    with trusting():
        read = interpret(run, store, out=page)
    assert f"{read.metrics['cosine']['reconstruction']:.3f}" in page.read_text()
    with pytest.raises(InputError, match="names the code 'strangers_objective:Absolute', and nothing of it was run"):
        interpret(run, store)


def test_a_recipe_that_names_code_needs_trust(stranger: str, store: Path, tmp_path: Path) -> None:
    """What the caller names runs; what a file names runs only where the caller allows it."""
    first = pretrain(store, tmp_path / "first", recipe=small(loss=stranger, num_workers=0, epochs=1))
    assert json.loads((first / "recipe.json").read_text())["recipe"]["loss"] == stranger
    with pytest.raises(InputError, match="names the code"):
        pretrain(store, tmp_path / "second", recipe=first / "recipe.json")
    assert not (tmp_path / "second").exists()
    with trusting():
        again = pretrain(store, tmp_path / "second", recipe=first / "recipe.json")
    assert (again / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()
    pretrain(store, tmp_path / "third", recipe=first / "recipe.json", settings={"loss": "mse"})


def test_the_command_line_can_allow_it(
    stranger: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lvmae.cli import main

    run = pretrain(store, tmp_path / "run", recipe=small(loss=stranger, num_workers=0, epochs=1))
    asked = ["interpret", str(run), str(store), "--out", str(tmp_path / "page.html")]
    assert main(asked) == 2
    assert "or give --trust-code" in capsys.readouterr().err
    assert main([*asked, "--trust-code"]) == 0
    assert (tmp_path / "page.html").is_file()
    again = ["pretrain", str(store), "--out", str(tmp_path / "again"), "--recipe", str(run / "recipe.json")]
    assert main(again) == 2
    assert main([*again, "--trust-code"]) == 0
