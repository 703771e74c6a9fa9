"""The command that compares settings: ablate."""

from __future__ import annotations

import argparse
from typing import Any

from lvmae.cli.command import command_of, key_values
from lvmae.errors import InputError

_ONLY = "store"  # the name of a store that was given without one


def add_ablate(commands: Any) -> None:
    command = command_of(
        commands,
        "ablate",
        _run_ablate,
        brief="Compare settings: pre-train and probe every cell of a grid over recipes and stores.",
        goes_in="one or more stores of the same videos, labels, and the axes: settings of a recipe, recipes, seeds",
        comes_out="results.parquet, table.md, table.tex and figures as PNG and SVG; rerun the same command to resume",
        example="lvmae ablate store --labels labels.csv --recipe tiny --grid mask=random,semantic "
        "--grid mask_ratio=0.3,0.4,0.5 --grid seed=0,1,2 --out ablation",
    )
    command.add_argument("store", nargs="?", help="the store, if there is only one")
    command.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="NAME=PATH",
        dest="stores",
        help="a named store; several form an axis, such as the same videos in segments of 5 s and of 10 s",
    )
    command.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="store with the labelled videos (default: the store trained on)",
    )
    command.add_argument(
        "--plan", metavar="FILE", help="read these options from a TOML file; options on the command line override it"
    )
    command.add_argument("--labels", help="CSV with the columns id, label and optionally split")
    command.add_argument(
        "--task", help="instead of labels, a benchmark of the paper: lvu/director, breakfast, coin, ..."
    )
    command.add_argument("--annotations", metavar="FOLDER", help="folder of the annotation files of --task")
    command.add_argument("--recipe", help="recipe of every cell (default: base)")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every cell")
    command.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="an axis: a setting of the recipe, or 'recipe', and its values; repeatable",
    )
    command.add_argument("--probe", action="append", help="only this probe (default: linear and attentive)")
    command.add_argument("--seeds", type=int, help="repetitions of each probe (default: 5)")
    command.add_argument(
        "--raw", action="store_true", default=None, help="also probe the raw embeddings, for comparison"
    )
    command.add_argument("--dry-run", action="store_true", help="only list the cells and their cost")
    command.add_argument("--out", required=True, help="folder for all results")


def _run_ablate(arguments: argparse.Namespace) -> int:
    from lvmae.ablation import ablate, axes_of, plan, read_plan

    asked: dict[str, Any] = read_plan(arguments.plan) if arguments.plan else {}
    stores = key_values(arguments.stores, "--store")
    if arguments.store:
        stores = {_ONLY: arguments.store, **stores}
    on = key_values([path if "=" in path else f"{_ONLY}={path}" for path in arguments.on], "--on")
    given = {
        "on": on,
        "stores": stores,
        "labels": arguments.labels,
        "task": arguments.task,
        "annotations": arguments.annotations,
        "recipe": arguments.recipe,
        "probes": arguments.probe,
        "seeds": arguments.seeds,
        "raw": arguments.raw,
    }
    if arguments.labels or arguments.task:
        asked = {key: value for key, value in asked.items() if key not in ("labels", "task", "annotations")}
    asked |= {key: value for key, value in given.items() if value not in (None, [], {})}
    asked["grid"] = asked.get("grid", {}) | axes_of(arguments.grid)
    asked["settings"] = asked.get("settings", {}) | key_values(arguments.set, "--set")
    labels = _labels(asked.pop("labels", None), asked.pop("task", None), asked.pop("annotations", None))
    stores = asked.pop("stores", {})
    if arguments.dry_run:
        asked.pop("raw", None)  # costs no pre-training
        print(plan(stores, labels, arguments.out, **asked))
        return 0
    found = ablate(stores, labels, arguments.out, **asked)
    print(found.to_markdown())
    print(f"\nresults.parquet, table.md, table.tex and figures in {arguments.out}")
    for cell, reason in found.failed.items():
        print(f"  failed: {cell}: {reason}")
    return 1 if found.failed else 0


def _labels(labels: str | None, task: str | None, annotations: str | None) -> Any:
    from lvmae.evaluation import load_task

    if (labels is None) == (task is None):
        raise InputError("an ablation needs labels: give --labels FILE, or --task NAME with --annotations FOLDER")
    if task is None:
        return labels
    if annotations is None:
        raise InputError(f"--task {task} needs --annotations, the folder with its annotation files")
    return load_task(task, annotations)
