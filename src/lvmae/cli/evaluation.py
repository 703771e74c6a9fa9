"""The command that evaluates features: probe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvmae.cli.command import add_device, command_of, show
from lvmae.errors import InputError
from lvmae.files.writing import write_text

if TYPE_CHECKING:
    from lvmae.evaluation import FamilyResult, ProbeTable, SavedProbe, SpanTable

_FORM_OF = {".json": "json", ".md": "markdown", ".tex": "latex", ".txt": "text", ".csv": "csv"}


def add_probe(commands: Any) -> None:
    command = command_of(
        commands,
        "probe",
        _run_probe,
        brief="Evaluate frozen features with linear and attentive probes.",
        goes_in="representations or a store; labels as a CSV with id,label[,split], or a benchmark's annotation files",
        comes_out="a table: mean and spread over seeds, chance level and, with --raw, the raw embeddings",
        example="lvmae probe reps --labels labels.csv --raw store\n"
        "         lvmae probe reps --task lvu --annotations annotations --raw store --compare",
    )
    command.add_argument("features", help="representations or a store")
    asked = command.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--labels",
        help="CSV, TSV, JSONL or Parquet with the columns id, label (a|b for several) and optionally split; "
        "with columns start and end (seconds), the labels describe spans of time",
    )
    asked.add_argument(
        "--task",
        help="a benchmark of the paper: breakfast, coin, lvu/director (genre, writer, year, scene, way_speaking, relationship, "
        "like_ratio, view_count), or lvu for all nine; or your own module:Class",
    )
    command.add_argument("--annotations", metavar="DIR", help="with --task: folder of the annotation files")
    command.add_argument(
        "--kind",
        choices=["classification", "multilabel", "regression"],
        help="with --labels: kind of task (default: detected from the labels)",
    )
    command.add_argument("--raw", metavar="STORE", help="also probe this store's raw embeddings, for comparison")
    command.add_argument("--run", help="refuse representations that are not from this run")
    command.add_argument(
        "--protocol",
        choices=["standard", "paper"],
        help="standard: regularised linear models, nearest neighbours and the attentive probe, all tuned on val (default "
        "with --labels); paper: exactly the paper's training (default with --task)",
    )
    command.add_argument(
        "--probe",
        action="append",
        choices=["linear", "knn", "attentive"],
        help="only this probe; repeatable (default: all probes of the protocol)",
    )
    command.add_argument(
        "--readout",
        action="append",
        choices=["mean", "cls", "both", "mean+std", "mean+center", "mean+std+center", "layers"],
        help="input of the linear probe: mean of the tokens, [CLS], both, or mean and standard deviation; repeatable "
        "(default: all)",
    )
    command.add_argument("--class-weight", choices=["balanced"], help="give all classes the same weight in training")
    add_device(command)
    command.add_argument(
        "--group",
        metavar="COLUMN",
        help="with --labels: column of groups, such as films; a group is never divided between splits",
    )
    command.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=["transformer", "mamba"],
        help="also train this model end to end on the raw embeddings; repeatable",
    )
    command.add_argument(
        "--standardize",
        action="store_true",
        help="also run a linear probe on standardized features: the paper's learning rate then suits features of any scale",
    )
    command.add_argument(
        "--label-fraction", type=float, metavar="SHARE", help="train on this fraction of the train labels, such as 0.01"
    )
    command.add_argument("--seeds", type=int, default=5, help="repetitions (default: 5)")
    command.add_argument("--compare", action="store_true", help="with --task: also show the paper's published figures")
    command.add_argument(
        "--format",
        default="text",
        choices=["text", "markdown", "latex", "json", "csv"],
        help="format of the printed table (default: text)",
    )
    command.add_argument(
        "--out",
        metavar="FILE",
        help="also write the table to this file: .md, .tex, .txt, .csv, or .json with every figure",
    )
    command.add_argument(
        "--predictions",
        metavar="FILE",
        help="write the label, prediction and scores of every test video, as .csv or .parquet",
    )
    command.add_argument(
        "--detect",
        action="store_true",
        help="with labels on spans: also detect spans; reports mAP at overlaps of 0.3 to 0.7",
    )
    command.add_argument(
        "--save",
        metavar="PROBE",
        help="save a linear probe for `lvmae predict` and `suggest`, fitted to all labels except a fixed test split",
    )
    command.add_argument(
        "--missing",
        metavar="FILE",
        help="write a CSV of the annotated videos that are not in the store (default: beside --out, if there are any)",
    )


def _run_probe(arguments: argparse.Namespace) -> int:
    if arguments.labels and (arguments.annotations or arguments.compare):
        raise InputError("--annotations and --compare go with --task, the paper's benchmarks, and not with --labels")
    if arguments.task and not arguments.annotations:
        raise InputError(
            f"--task {arguments.task} needs --annotations, the folder that holds the benchmark's annotation files"
        )
    if arguments.task and arguments.kind:
        raise InputError("--kind goes with --labels; a benchmark has a fixed kind of labels")
    if arguments.task and arguments.group:
        raise InputError("--group goes with --labels; a benchmark's splits are fixed")
    for written in (arguments.out, arguments.missing, arguments.predictions):
        if written:
            _make_room(Path(written))
    _suffix(arguments.out, _FORM_OF, "--out")
    _suffix(arguments.predictions, (".csv", ".parquet"), "--predictions")
    if arguments.save and arguments.task and "/" not in arguments.task and _family_parts(arguments.task):
        raise InputError(f"--save keeps one probe; name one task of {arguments.task}")
    result = _probed(arguments)
    said = _write(result, arguments)
    if arguments.save:
        said.append(_save(arguments))
    show(result.render(arguments.format, compare=arguments.compare))
    for line in said:
        print(line, file=sys.stderr)
    return 0


def _family_parts(task: str) -> tuple[str, ...]:
    from lvmae.evaluation import family_of

    return family_of(task).parts


def _save(arguments: argparse.Namespace) -> str:
    """Saves a probe; returns the line to print about it."""
    from lvmae.evaluation import fit_probe, fit_span_probe, load_task
    from lvmae.evaluation.labels import is_on_spans

    if arguments.labels and is_on_spans(arguments.labels):
        saved = fit_span_probe(arguments.features, arguments.labels, class_weight=arguments.class_weight)
        return _kept(saved, arguments.save)
    labels = load_task(arguments.task, arguments.annotations) if arguments.task else arguments.labels
    saved = fit_probe(
        arguments.features,
        labels,
        kind=arguments.kind,
        readouts=arguments.readout,
        class_weight=arguments.class_weight,
        group=arguments.group,
    )
    return _kept(saved, arguments.save)


def _kept(saved: SavedProbe, path: str) -> str:
    saved.save(path)
    metric, score = saved.agreement or ("", 0.0)
    return (
        f"kept {path}: linear, on the {saved.readout}, fitted to {len(saved.labelled)} videos; "
        f"{metric} in cross-validation {score:.4g}"
    )


def _suffix(path: str | None, known: Collection[str], option: str) -> None:
    if path and Path(path).suffix.lower() not in known:
        raise InputError(f"{option} {path}: the suffix sets the format; choose {', '.join(known)}")


def _refuse_beside_spans(arguments: argparse.Namespace) -> None:
    """Refuses options that have no effect on labels of spans: those use a linear probe on segment tokens."""
    given = {
        "--kind": arguments.kind,
        "--group": arguments.group,
        "--readout": arguments.readout,
        "--baseline": arguments.baseline,
        "--standardize": arguments.standardize,
        "--label-fraction": arguments.label_fraction,
        "--predictions": arguments.predictions,
        "--run": arguments.run,
        "--protocol paper": arguments.protocol == "paper",
        "--probe": [name for name in arguments.probe or () if name != "linear"],
    }
    wrong = [option for option, value in given.items() if value]
    if wrong:
        raise InputError(f"{wrong[0]} goes with labels of whole videos; {arguments.labels} labels spans of time")


def _probed(arguments: argparse.Namespace) -> ProbeTable | FamilyResult | SpanTable:
    from lvmae.evaluation import family_of, load_task, probe, probe_family, probe_spans
    from lvmae.evaluation.labels import is_on_spans

    on_spans = bool(arguments.labels) and is_on_spans(arguments.labels)
    if arguments.detect and not on_spans:
        raise InputError("--detect goes with labels on spans of time, a table of id, start, end and label")
    if on_spans:
        _refuse_beside_spans(arguments)
        return probe_spans(
            arguments.features,
            arguments.labels,
            raw=arguments.raw,
            detect=arguments.detect,
            seeds=arguments.seeds,
            class_weight=arguments.class_weight,
        )
    probes = arguments.probe
    if arguments.standardize or arguments.baseline:
        from lvmae.evaluation.settings import PROBES_OF

        protocol = arguments.protocol or ("paper" if arguments.task else "standard")
        probes = [
            *(probes or PROBES_OF[protocol]),
            *["linear-standardized"] * arguments.standardize,
            *arguments.baseline,
        ]
    options: dict[str, Any] = {
        "raw": arguments.raw,
        "probes": probes,
        "seeds": arguments.seeds,
        "run": arguments.run,
        "label_fraction": arguments.label_fraction,
        "protocol": arguments.protocol,
        "readouts": arguments.readout,
        "class_weight": arguments.class_weight,
        "device": arguments.device,
    }
    if arguments.task:
        family = family_of(arguments.task)
        if family.parts and "/" not in arguments.task:
            return probe_family(arguments.task, arguments.features, arguments.annotations, **options)
        return probe(arguments.features, load_task(arguments.task, arguments.annotations), **options)
    return probe(arguments.features, arguments.labels, kind=arguments.kind, group=arguments.group, **options)


def _write(result: ProbeTable | FamilyResult | SpanTable, arguments: argparse.Namespace) -> list[str]:
    """Writes all requested files before anything is printed; returns the lines to print about them."""
    from lvmae.evaluation.tables import missing_csv, write_predictions

    listed = Path(arguments.missing) if arguments.missing else None
    said = []
    if arguments.out:
        out = Path(arguments.out)
        text = result.render(_FORM_OF[out.suffix.lower()], compare=arguments.compare)
        write_text(out, text + "\n")
        if listed is None and result.absent():
            listed = out.with_suffix(".missing.csv")
    if arguments.predictions:
        rows = write_predictions(result, arguments.predictions)
        said.append(f"{rows} predictions of test videos: {arguments.predictions}")
    if listed is not None:
        write_text(listed, missing_csv(result))
        said.append(f"{len(result.absent())} annotated videos that are not in the store: {listed}")
    return said


def _make_room(path: Path) -> None:
    """Checks that a file can be written, before the work starts."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written; name a file in a folder that can be written to")
