"""Commands that judge features: probe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lvmae.cli.command import command_of


def add_probe(commands: Any) -> None:
    command = command_of(
        commands,
        "probe",
        _run_probe,
        brief="Judge frozen features by linear and attentive probes.",
        goes_in="representations (or a store), and a CSV of id,label[,split]",
        comes_out="a table: mean and spread over seeds, beside chance and, with --raw, the raw embeddings",
        example="lvmae probe reps --labels labels.csv --raw store",
    )
    command.add_argument("features", help="representations or a store")
    command.add_argument(
        "--labels", required=True, help="CSV with the columns id, label and, if the split is fixed, split"
    )
    command.add_argument("--raw", metavar="STORE", help="also probe this store's raw embeddings, for comparison")
    command.add_argument(
        "--probe", action="append", choices=["linear", "attentive"], help="only this probe (default: both)"
    )
    command.add_argument("--seeds", type=int, default=5, help="repetitions (default: 5)")
    command.add_argument("--out", help="also write the table with every figure as JSON")


def _run_probe(arguments: argparse.Namespace) -> int:
    from lvmae.evaluation import probe

    table = probe(
        arguments.features,
        arguments.labels,
        raw=arguments.raw,
        probes=tuple(arguments.probe or ("linear", "attentive")),
        seeds=arguments.seeds,
    )
    print(table.to_text())
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(table.to_json() + "\n")
    return 0
