"""Recipes: the paper's numbers, settings read by type, and a round trip through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmae import recipes
from lvmae.errors import InputError
from lvmae.recipes import FREE, RECIPES, Recipe, named


def test_paper_has_the_papers_numbers():
    paper = named("paper")
    numbers = {
        "layers": 32,
        "heads": 16,
        "mlp_ratio": 4.0,
        "decoder_width": 512,
        "decoder_layers": 8,
        "decoder_heads": 16,
        "max_segments": 256,
        "loss": "mse",
        "mask": "semantic",
        "mask_ratio": 0.5,
        "temperature": None,
        "min_seconds": 10.0,
        "epochs": 150,
        "warmup_epochs": 40.0,
        "batch_size": 128,
        "base_lr": 1.5e-4,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.05,
    }
    assert {key: getattr(paper, key) for key in numbers} == numbers
    assert paper.learning_rate == 7.5e-5
    assert named("paper-24") == dataclasses.replace(paper, name="paper-24", layers=24)
    assert named("paper-16") == dataclasses.replace(paper, name="paper-16", layers=16)


def test_names():
    assert list(RECIPES) == ["paper", "paper-24", "paper-16", "base", "tiny"]
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    with pytest.raises(InputError, match=r"There is no recipe 'large': choose paper, paper-24, paper-16, base, tiny"):
        named("large")


def test_settings_are_read_by_the_type_of_their_field():
    changed = named("paper").with_settings(
        {
            "epochs": "2",
            "base_lr": "1e-3",
            "heads": "none",
            "clip_norm": "1",
            "compile": "true",
            "mixture": "1, 2.5",
            "trackers": "tensorboard",
            "mask": "random",
            "max_seconds": 300,
        }
    )
    assert (changed.epochs, changed.base_lr, changed.heads, changed.clip_norm) == (2, 1e-3, None, 1.0)
    assert (changed.compile, changed.mixture, changed.trackers) == (True, (1.0, 2.5), ("tensorboard",))
    assert (changed.mask, changed.max_seconds, changed.layers) == ("random", 300.0, 32)
    assert isinstance(changed.max_seconds, float)
    assert changed.with_settings({"trackers": ""}).trackers == ()
    assert named("tiny").with_settings(None) == named("tiny")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": "2"}, "There is no setting 'epoch'; did you mean epochs"),
        ({"maskratio": "2"}, "There is no setting 'maskratio'; did you mean mask_ratio"),
        ({"name": "mine"}, "There is no setting 'name'"),
        ({"epochs": "two"}, "epochs needs a whole number, not 'two'"),
        ({"epochs": "2.5"}, "epochs needs a whole number, not '2.5'"),
        ({"epochs": 2.5}, "epochs needs a whole number, not 2.5"),
        ({"epochs": "none"}, "epochs needs a whole number, not 'none'"),
        ({"epochs": "0"}, "epochs is 0: it has to be 1 or more"),
        ({"base_lr": "nan"}, "base_lr needs a number, not 'nan'"),
        ({"clip_norm": "high"}, "clip_norm needs a number or none, not 'high'"),
        ({"compile": "maybe"}, "compile needs true, false or auto, not 'maybe'"),
        ({"mixture": "1,x"}, "mixture needs a number, not 'x'"),
        ({"mask": "clever"}, "mask is 'clever': choose random, semantic, redundant"),
        ({"mask_ratio": "1"}, "mask_ratio is 1.0: it has to be between 0 and 1"),
        ({"decoder_heads": "7"}, "decoder_heads is 7: it has to divide decoder_width, 512"),
        ({"mask": "random", "temperature": "0.1"}, "temperature is 0.1: only mask=semantic takes a temperature"),
        ({"max_seconds": "5"}, r"max_seconds is 5.0: it has to be min_seconds \(10\) or more"),
        ({"clip_norm": "0"}, "clip_norm is 0.0: it has to be more than 0, or none for no clipping"),
        ({"temperature": "0"}, "temperature is 0.0: it has to be more than 0, or none"),
        ({"seed": "-1"}, "seed is -1: it has to be 0 or more"),
        ({"seed": str(2**64)}, "seed is 18446744073709551616: the largest is 2147483647"),
        ({"epochs": "1e9"}, "epochs needs a whole number, not '1e9'"),
        ({"layers": str(2**31)}, "layers is 2147483648: the largest is"),
        (
            {"max_segments": "9", "mask_ratio": "0.9"},
            "mask_ratio is 0.9: of a window of max_segments=9 .* to 10 or more",
        ),
        ({"mlp_ratio": "1e-4"}, "mlp_ratio is 0.0001: it makes layers of no width"),
        ({"trackers": "mlflow"}, r"trackers is \('mlflow',\): choose from tensorboard, wandb"),
    ],
)
def test_a_bad_setting_is_one_sentence(settings, message):
    with pytest.raises(InputError, match=message):
        named("paper").with_settings(settings)


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name):
    recipe = named(name).with_settings({"mixture": "1,3", "max_seconds": "60", "trackers": "wandb"})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_recipe_is_read_and_resolves_to_itself(name):
    resolved = named(name).with_settings({"heads": "none"}).resolved(dim=384, longest_seconds=180.0)
    assert None not in resolved.values()
    assert Recipe.from_dict(json.loads(json.dumps(resolved))).resolved(dim=384, longest_seconds=180.0) == resolved


def test_a_word_may_be_none():
    assert named("tiny").with_settings({"center": "none"}).center == "none"


def test_an_old_recipe_with_an_unknown_key_is_refused():
    with pytest.raises(InputError, match="There is no setting 'dropout'"):
        Recipe.from_dict({**named("tiny").to_dict(), "dropout": 0.1})


def test_a_recipe_from_before_a_setting_has_what_runs_did_then(monkeypatch):
    recipe = named("tiny").with_settings({"accumulation": 4, "compile": True})
    old = recipe.to_dict()
    del old["accumulation"], old["compile"]
    assert Recipe.from_dict(old) == dataclasses.replace(recipe, accumulation=1, compile=False)
    monkeypatch.setitem(recipes.BEFORE_IT_EXISTED, "accumulation", 3)
    assert Recipe.from_dict(old).accumulation == 3
    assert Recipe.from_dict(recipe.to_dict()).accumulation == 4


def test_settings_that_another_overrules_are_said():
    tiny = named("tiny").with_settings({"mask": "random"})
    assert tiny.overruled(videos=16, longest_seconds=180) == []
    found = tiny.with_settings(
        {"batch_size": 4096, "base_lr": 1e-3, "min_seconds": 200, "max_seconds": 300, "val_windows": 0, "epochs": 3}
    ).overruled(videos=33, longest_seconds=180)
    assert [sentence.split()[0] for sentence in found] == [
        "batch_size", "min_seconds", "max_seconds", "warmup_epochs", "val_windows", "validate_every"
    ]  # fmt: skip
    assert "base_lr x batch_size / 256 = 0.016; with batch_size=33 it is 0.000129" in found[0]
    assert "segments last 180 s" in found[1]


def test_free_settings_exist():
    assert {field.name for field in dataclasses.fields(Recipe)} >= FREE


@pytest.mark.parametrize(
    ("dim", "heads"), [(1024, 16), (768, 12), (512, 8), (384, 6), (64, 1), (1, 1), (97, 1), (1408, 22)]
)
def test_heads_are_chosen_near_64_wide(dim, heads):
    assert named("base").heads_for(dim) == heads


@given(st.integers(1, 4096))
def test_chosen_heads_divide_the_width(dim):
    assert dim % named("tiny").heads_for(dim) == 0


def test_heads_that_do_not_divide_are_refused_with_ones_that_do():
    with pytest.raises(
        InputError, match=r"heads=16 does not divide the width of the embeddings, 500: set heads to one of .*20, 25"
    ):
        named("paper").heads_for(500)
