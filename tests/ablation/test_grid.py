"""What a grid is made of, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmae.ablation import Grid, axes_of, read_plan
from lvmae.ablation.cost import cost
from lvmae.errors import InputError
from lvmae.model import LVMAEForPreTraining
from lvmae.pretraining.loop import model_config
from lvmae.recipes import named

Films = dict[str, Path]


def test_cells_are_the_product_of_the_axes(films: Films, quick: dict[str, Any]) -> None:
    stores = {"short": films["5s"], "long": films["10s"]}
    grid = Grid.of(stores, {"mask": ["random", "semantic"], "mask_ratio": ["0.3", 0.5]}, recipe="tiny", settings=quick)
    assert grid.axes == {"store": ("short", "long"), "mask": ("random", "semantic"), "mask_ratio": (0.3, 0.5)}
    assert [tuple(cell.at.values()) for cell in grid.cells[:3]] == [
        ("short", "random", 0.3),
        ("short", "random", 0.5),
        ("short", "semantic", 0.3),
    ]
    assert len({cell.digest for cell in grid.cells}) == len(grid.cells) == 8
    last = grid.cells[-1]
    assert (last.recipe.mask, last.recipe.mask_ratio, last.recipe.epochs, last.store.path) == (
        "semantic",
        0.5,
        6,
        str(films["10s"]),
    )


def test_a_folder_is_found_by_what_is_trained(films: Films, tmp_path: Path) -> None:
    def folder(axes: dict[str, list[Any]], **settings: Any) -> Path:
        [cell] = Grid.of({"one": films["5s"]}, axes, recipe="tiny", settings=settings).cells
        return cell.folder(tmp_path)

    first = folder({"layers": [1]})
    assert first.name.startswith("layers-1_")
    assert folder({"layers": [1]}, log_every=3, keep=5) == first  # what only changes how a run is watched
    assert folder({"layers": [1]}, decoder_layers=1) != first
    assert folder({"layers": [1], "seed": [0]}) != first
    first.mkdir()
    assert folder({"layers": [1], "seed": [0]}) == first


def test_a_cell_from_before_epochs_were_dealt_is_continued(films: Films, tmp_path: Path) -> None:
    def folder(**settings: Any) -> Path:
        [cell] = Grid.of({"one": films["5s"]}, {"layers": [1]}, recipe="tiny", settings=settings).cells
        return cell.folder(tmp_path)

    old, new = folder(order="shuffled"), folder(order="dealt")
    assert old != new
    (old / "run").mkdir(parents=True)
    recipe = {**named("tiny").to_dict(), "order": "shuffled"}
    (old / "run" / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    assert folder(order="dealt") == new  # someone's own choice, not an older version's
    del recipe["order"]
    (old / "run" / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    assert folder(order="dealt") == old


def test_recipes_are_an_axis_and_one_store_is_none(films: Films) -> None:
    grid = Grid.of({"one": films["5s"]}, {"recipe": ["tiny", "base"]}, settings={"heads": 4})
    assert grid.axes == {"recipe": ("tiny", "base")}
    assert [(cell.recipe.name, cell.recipe.heads) for cell in grid.cells] == [("tiny", 4), ("base", 4)]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"mask_ratoi": ["0.3"]}, "did you mean mask_ratio"),
        ({"mask_ratio": ["0.3", "1.5"]}, "mask_ratio=1.5: mask_ratio is 1.5: it has to be between 0 and 1"),
        ({"layers": ["two"]}, "layers needs a whole number"),
        ({"mask_ratio": ["0.3", "0.30"]}, "comes twice"),
        ({"mask": []}, "at least one value"),
        ({"store": ["a"]}, "NAME=PATH each, or under [stores]"),
        ({"recipe": ["huge"]}, "no recipe 'huge'"),
        ({"heads": ["5"]}, "does not divide the width"),
        ({"mask": ["random"], "temperature": ["1"]}, "only mask=semantic takes a temperature"),
    ],
)
def test_wrong_axes_are_refused(films: Films, axes: dict[str, list[str]], said: str) -> None:
    with pytest.raises(InputError) as refused:
        Grid.of({"one": films["5s"]}, axes, recipe="tiny")
    assert said in str(refused.value)


def test_axes_are_read_from_pairs() -> None:
    assert axes_of(["mask=random,semantic", "seed=0, 1"]) == {"mask": ["random", "semantic"], "seed": ["0", "1"]}
    for wrong in (["mask"], ["mask="], ["mask=a,,b"], ["=a"], ["mask=a", "mask=b"]):
        with pytest.raises(InputError):
            axes_of(wrong)


def test_a_plan_is_read_and_its_paths_are_its_own(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'recipe = "tiny"\nlabels = "l.csv"\n[stores]\n5s = "a"\nfar = "s3://b/c"\nhome = "~/c"\n[grid]\nmask_ratio = [0.3]\n'
    )
    assert read_plan(plan) == {
        "recipe": "tiny",
        "labels": str(tmp_path / "l.csv"),
        "stores": {"5s": str(tmp_path / "a"), "far": "s3://b/c", "home": str(Path.home() / "c")},
        "grid": {"mask_ratio": [0.3]},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipes = 1", "unknown key 'recipes'"),
        ("[grid]\nmask = 'random'", "has to be a list"),
        ("grid = 3", "has to be a table"),
        ("labels = 3", "has to be a path"),
        ('seeds = "5"', "has to be a number"),
        ("[stores]\na = 3", "where a path belongs"),
        ("recipe = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, text: str, said: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    with pytest.raises(InputError) as refused:
        read_plan(plan)
    assert said in str(refused.value)


def test_cost_is_the_arithmetic_of_the_visible_and_the_whole(films: Films, quick: dict[str, Any]) -> None:
    """Films of 12 segments of 5 s under windows of 10 s to 60 s: 7 segments on average."""
    settings = {**quick, "mlp_ratio": 2, "val_fraction": 0.15, "mask_ratio": 0.5, "max_seconds": 60, "min_seconds": 10}
    [cell] = Grid.of({"one": films["5s"]}, {"seed": [0]}, recipe="tiny", settings=settings).cells
    found = cost(cell)
    encoder, decoder = 16 * 16 * 8, 8 * 8 * 8
    assert found.steps == 6 * 4
    assert found.segments == pytest.approx(6 * 17 * 7)
    assert found.tera * 1e12 == pytest.approx(3 * found.segments * (0.5 * encoder + decoder))
    longer = Grid.of({"one": films["5s"]}, {"epochs": [12]}, recipe="tiny", settings=settings).cells[0]
    assert np.isclose(cost(longer).tera, 2 * found.tera)


@pytest.mark.parametrize(
    "settings", [{}, {"mlp_ratio": 3, "layers": 2, "decoder_width": 24}, {"loss": "latent"}, {"center": "store"}]
)
def test_cost_counts_the_parameters_of_the_model_that_is_trained(
    films: Films, quick: dict[str, Any], settings: dict[str, Any]
) -> None:
    [cell] = Grid.of({"one": films["5s"]}, {"seed": [0]}, recipe="tiny", settings={**quick, **settings}).cells
    model = LVMAEForPreTraining(model_config(cell.store.manifest, cell.recipe))
    assert cost(cell).parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
