"""Commands that judge features: probe."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvmae.cli.command import command_of
from lvmae.errors import InputError

if TYPE_CHECKING:
    from lvmae.evaluation import LVUResult, ProbeTable

_FORM_OF = {".json": "json", ".md": "markdown", ".tex": "latex", ".txt": "text"}


def add_probe(commands: Any) -> None:
    command = command_of(
        commands,
        "probe",
        _run_probe,
        brief="Judge frozen features by linear and attentive probes.",
        goes_in="representations (or a store), and a CSV of id,label[,split], or a benchmark's annotation files",
        comes_out="a table: mean and spread over seeds, beside chance and, with --raw, the raw embeddings",
        example="lvmae probe reps --labels labels.csv --raw store\n"
        "         lvmae probe reps --task lvu --annotations annotations --raw store --compare",
    )
    command.add_argument("features", help="representations or a store")
    asked = command.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--labels", help="CSV with the columns id, label (a|b for several) and, if the split is fixed, split"
    )
    asked.add_argument(
        "--task",
        help="one of the paper's: breakfast, coin, lvu/director (genre, writer, year, scene, way_speaking, relationship, "
        "like_ratio, view_count), or lvu for all nine",
    )
    command.add_argument("--annotations", metavar="DIR", help="with --task: the folder of its annotation files")
    command.add_argument(
        "--kind",
        choices=["classification", "multilabel", "regression"],
        help="with --labels: what they are, instead of reading it off them",
    )
    command.add_argument("--raw", metavar="STORE", help="also probe this store's raw embeddings, for comparison")
    command.add_argument("--run", help="the run that the representations must be of; those of another are refused")
    command.add_argument(
        "--probe", action="append", choices=["linear", "attentive"], help="only this probe (default: both)"
    )
    command.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=["transformer", "mamba"],
        help="also train this model end to end on the raw embeddings; may be given twice",
    )
    command.add_argument(
        "--standardize",
        action="store_true",
        help="also a linear probe on standardized features, which makes the paper's rate fair to features of any scale",
    )
    command.add_argument(
        "--label-fraction", type=float, metavar="SHARE", help="train on this share of the train labels, such as 0.01"
    )
    command.add_argument("--seeds", type=int, default=5, help="repetitions (default: 5)")
    command.add_argument(
        "--compare", action="store_true", help="with --task: also the paper's figures, marked as published"
    )
    command.add_argument(
        "--format",
        default="text",
        choices=["text", "markdown", "latex", "json"],
        help="of what is printed (default: text)",
    )
    command.add_argument(
        "--out", metavar="FILE", help="also write it, by its suffix as .md, .tex, .txt or, with every figure, as JSON"
    )
    command.add_argument(
        "--missing",
        metavar="FILE",
        help="list the annotated videos that are not in the store as CSV (default: beside --out, where any are)",
    )


def _run_probe(arguments: argparse.Namespace) -> int:
    if arguments.labels and (arguments.annotations or arguments.compare):
        raise InputError("--annotations and --compare go with --task, the paper's benchmarks, and not with --labels")
    if arguments.task and not arguments.annotations:
        raise InputError(
            f"--task {arguments.task} needs --annotations, the folder that holds the benchmark's annotation files"
        )
    if arguments.task and arguments.kind:
        raise InputError("--kind goes with --labels; what a benchmark's labels are is known")
    for written in (arguments.out, arguments.missing):
        if written:
            _make_room(Path(written))
    result = _probed(arguments)
    _write(result, arguments)  # first: what is printed may have no reader
    print(result.render(arguments.format, compare=arguments.compare))
    return 0


def _probed(arguments: argparse.Namespace) -> ProbeTable | LVUResult:
    from lvmae.evaluation import load_task, probe, probe_lvu

    probes = list(arguments.probe or ("linear", "attentive"))
    if arguments.standardize:
        probes.append("linear-standardized")
    options: dict[str, Any] = {
        "raw": arguments.raw,
        "probes": list(dict.fromkeys((*probes, *arguments.baseline))),
        "seeds": arguments.seeds,
        "run": arguments.run,
        "label_fraction": arguments.label_fraction,
    }
    if arguments.task == "lvu":
        return probe_lvu(arguments.features, arguments.annotations, **options)
    if arguments.task:
        return probe(arguments.features, load_task(arguments.task, arguments.annotations), **options)
    return probe(arguments.features, arguments.labels, kind=arguments.kind, **options)


def _write(result: ProbeTable | LVUResult, arguments: argparse.Namespace) -> None:
    from lvmae.evaluation.tables import missing_csv

    listed = Path(arguments.missing) if arguments.missing else None
    if arguments.out:
        out = Path(arguments.out)
        form = _FORM_OF.get(out.suffix.lower(), "json")
        out.write_text(result.render(form, compare=arguments.compare) + "\n", encoding="utf-8")
        if listed is None and result.absent():
            listed = out.with_suffix(".missing.csv")
    if listed is not None:
        listed.write_text(missing_csv(result), encoding="utf-8")
        print(f"{len(result.absent())} annotated videos that are not in the store: {listed}", file=sys.stderr)


def _make_room(path: Path) -> None:
    """Sees that a file can be written before the work is done that it is to hold."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written; name a file in a folder that can be written to")
