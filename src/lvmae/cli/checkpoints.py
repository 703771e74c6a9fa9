"""Commands for checkpoints of the authors' code: import-checkpoint, export-checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from lvmae.cli.command import command_of


def add_import_checkpoint(commands: Any) -> None:
    command = command_of(
        commands,
        "import-checkpoint",
        _run_import,
        brief="Convert a checkpoint of the authors' code to a run.",
        goes_in="an official checkpoint (.pth); nothing in it is executed",
        comes_out="a run with config.json and model.safetensors, for represent, interpret and pretrain --init",
        example="lvmae import-checkpoint official.pth --out run --store store",
    )
    command.add_argument("checkpoint", help="the .pth file")
    command.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    command.add_argument(
        "--store",
        help="a store of the embeddings it was trained on: the run records its space and refuses stores of other spaces",
    )


def add_export_checkpoint(commands: Any) -> None:
    command = command_of(
        commands,
        "export-checkpoint",
        _run_export,
        brief="Convert a run to a checkpoint for the authors' code.",
        goes_in="a run; refused if it uses a setting that their format cannot store",
        comes_out="an official checkpoint (.pth)",
        example="lvmae export-checkpoint run --out official.pth",
    )
    command.add_argument("run", help="folder of a run")
    command.add_argument("--out", required=True, metavar="FILE", help="the .pth file to write")


def _run_import(arguments: argparse.Namespace) -> int:
    from lvmae.runs import import_checkpoint

    run = import_checkpoint(arguments.checkpoint, arguments.out, store=arguments.store)
    known = "" if arguments.store else "; which embeddings it was trained on is not known: --store says it"
    print(f"{run}: a run made of {arguments.checkpoint}{known}")
    return 0


def _run_export(arguments: argparse.Namespace) -> int:
    from lvmae.runs import export_checkpoint

    print(f"{export_checkpoint(arguments.run, arguments.out)}: a checkpoint made of {arguments.run}")
    return 0
