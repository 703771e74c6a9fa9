"""Commands that make and use models: pretrain, push, represent."""

from __future__ import annotations

import argparse
from typing import Any

from lvmae.cli.command import add_device, add_precision, add_ranks, command_of, key_values, rank_of, takes_trust
from lvmae.cli.journal import takes_journal
from lvmae.sequences import STRATEGIES


def _takes_dry_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="print the expected segments, steps, bytes and time; write nothing"
    )


def add_pretrain(commands: Any) -> None:
    command = command_of(
        commands,
        "pretrain",
        _run_pretrain,
        brief="Pre-train LV-MAE on the embeddings of a store, without labels.",
        goes_in="one or more stores with the same embedding space",
        comes_out="a run: the model, its card, curves and checkpoints; rerun the same command to resume",
        example="lvmae pretrain store --out run --recipe tiny --set epochs=50",
    )
    command.add_argument("stores", nargs="+", metavar="store")
    command.add_argument("--out", required=True, help="folder of the run")
    command.add_argument(
        "--recipe", default="base", help="name of a recipe, or the recipe.json of a run (default: base)"
    )
    command.add_argument(
        "--only",
        metavar="FILE",
        help="train only on these videos: a text file with one id per line, or a table with a column id",
    )
    command.add_argument(
        "--exclude",
        metavar="FILE",
        help="do not use these videos at all, such as the test videos of a benchmark",
    )
    _takes_dry_run(command)
    command.add_argument("--init", metavar="RUN", help="start from the weights of this run or official checkpoint")
    takes_trust(command)
    takes_journal(command)
    add_device(command)
    command.add_argument(
        "--watch",
        metavar="LABELS",
        help="labels (columns id, label, split): probe the features of held-out videos during training; test labels are "
        "not read",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change a setting of the recipe, such as mask ({', '.join(STRATEGIES)}, or module:function) or loss (an "
        "unknown name prints the list)",
    )


def _run_pretrain(arguments: argparse.Namespace) -> int:
    from lvmae.pretraining import pretrain, read_metrics

    stores = arguments.stores if len(arguments.stores) > 1 else arguments.stores[0]
    if arguments.dry_run:
        from lvmae.estimation import estimate_pretraining

        print(
            estimate_pretraining(stores, recipe=arguments.recipe, settings=key_values(arguments.set, "--set")).to_text()
        )
        return 0
    run = pretrain(
        stores,
        arguments.out,
        recipe=arguments.recipe,
        settings=key_values(arguments.set, "--set"),
        only=arguments.only,
        exclude=arguments.exclude,
        init=arguments.init,
        watch=arguments.watch,
        device=arguments.device,
    )
    arguments.came_out = {"run": str(run), "figures": read_metrics(run)[-1]}
    return 0


def add_push(commands: Any) -> None:
    command = command_of(
        commands,
        "push",
        _run_push,
        brief="Upload a finished run to a model hub.",
        goes_in="a run and the name of a repository; log in with `hf auth login`, or set HF_TOKEN",
        comes_out="a repository with the model, its card, curves and recipe",
        example="lvmae push run someone/long-videos",
    )
    command.add_argument("run", help="folder of a run")
    command.add_argument("repo", help="user/name; created if it does not exist")
    command.add_argument("--private", action="store_true", help="create a private repository")


def _run_push(arguments: argparse.Namespace) -> int:
    from lvmae.pretraining.hub import push_run

    print(push_run(arguments.run, arguments.repo, private=arguments.private))
    return 0


def add_represent(commands: Any) -> None:
    command = command_of(
        commands,
        "represent",
        _run_represent,
        brief="Compute the features of every video in a store with a trained model.",
        goes_in="a run and a store",
        comes_out="representations: [CLS], mean and per-segment features with times, as Parquet",
        example="lvmae represent run store --out reps",
    )
    command.add_argument("run", help="folder of a run")
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument("--out", required=True, help="folder of the representations")
    _takes_dry_run(command)
    command.add_argument(
        "--layers",
        default="last",
        metavar="last|all|K,...",
        help="also store the mean token of these layers; `lvmae probe` then chooses a layer on val (default: last)",
    )
    add_device(command)
    add_precision(command)
    add_ranks(command.add_argument_group("many machines"))


def _run_represent(arguments: argparse.Namespace) -> int:
    from lvmae.representations import represent

    if arguments.dry_run:
        from lvmae.estimation import estimate_representing

        print(estimate_representing(arguments.run, arguments.store).to_text())
        return 0

    rank, world_size = rank_of(arguments)
    features = represent(
        arguments.run,
        arguments.store,
        arguments.out,
        device=arguments.device,
        precision=arguments.precision,
        layers=arguments.layers,
        rank=rank,
        world_size=world_size,
    )
    print(f"{len(features)} videos, {int(features.lengths.sum())} segments of width {features.dim} in {features.path}")
    return 0
