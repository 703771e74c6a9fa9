"""Commands that use a saved probe: predict, suggest."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from lvmae.cli.command import command_of, show
from lvmae.errors import InputError
from lvmae.process import say

_SUFFIXES = (".csv", ".parquet", ".json")


def add_predict(commands: Any) -> None:
    command = command_of(
        commands,
        "predict",
        _run_predict,
        brief="Predict classes with calibrated scores for every video of a store, with a saved probe.",
        goes_in="a probe from `lvmae probe ... --save`, and a store or representations of the same space",
        comes_out="one row per video, or per span; --out writes CSV, Parquet or JSON, by its suffix",
        example="lvmae probe reps --labels labels.csv --save PROBE\n         lvmae predict PROBE reps --out predictions.csv",
    )
    command.add_argument("probe", help="folder of the saved probe")
    command.add_argument("store", help="representations or a store, in the same space as the probe")
    command.add_argument("--out", metavar="FILE", help="output file (default: print a table)")


def add_suggest(commands: Any) -> None:
    command = command_of(
        commands,
        "suggest",
        _run_suggest,
        brief="List the videos to label next: those that a saved probe would learn most from.",
        goes_in="a probe from `lvmae probe ... --save`, and the store with the unlabelled videos",
        comes_out="ids with the probe's predictions; --out writes a label file to fill in",
        example="lvmae suggest PROBE reps --count 20 --out next.csv",
    )
    command.add_argument("probe", help="folder of the saved probe")
    command.add_argument("store", help="representations or a store, in the same space as the probe")
    command.add_argument("--count", type=int, default=20, help="number of videos (default: 20)")
    command.add_argument(
        "--by",
        default="margin",
        choices=["margin", "entropy"],
        help="measure of the probe's uncertainty (default: margin)",
    )
    command.add_argument("--labels", metavar="FILE", help="also skip the videos in this label file")
    command.add_argument(
        "--out", metavar="FILE", help="write a CSV with the columns id, label (empty), suggestion, score"
    )


def _run_predict(arguments: argparse.Namespace) -> int:
    from lvmae.evaluation import SavedProbe, predict, predict_spans
    from lvmae.evaluation.saved import SEGMENTS
    from lvmae.files.tables import write_parquet_rows
    from lvmae.files.writing import write_json, write_text

    if arguments.out and Path(arguments.out).suffix.lower() not in _SUFFIXES:
        raise InputError(f"--out {arguments.out}: the suffix sets the format; choose {', '.join(_SUFFIXES)}")
    saved = SavedProbe.load(arguments.probe)
    failed: tuple[str, ...] = ()
    if saved.of == SEGMENTS:
        spans = predict_spans(saved, arguments.store)
        records = [{"id": s.video, "start": s.start, "end": s.end, "label": s.label, "score": s.score} for s in spans]
    else:
        found = predict(saved, arguments.store)
        records, failed = found.records(), found.failed
    if not arguments.out:
        show(_csv(records))
    elif arguments.out.lower().endswith(".json"):
        write_json(arguments.out, records)
    elif arguments.out.lower().endswith(".parquet"):
        columns = {key: type(value) for key, value in records[0].items()} if records else {"id": str}
        write_parquet_rows(arguments.out, records, columns)
    else:
        write_text(arguments.out, _csv(records) + "\n")
    if failed:
        say(f"{len(failed)} videos have values that are not finite and are left out: {', '.join(failed[:5])}")
    if arguments.out:
        say(f"{len(records)} rows: {arguments.out}")
    return 0


def _run_suggest(arguments: argparse.Namespace) -> int:
    from lvmae.evaluation import suggest
    from lvmae.evaluation.labels import labelled_ids
    from lvmae.files.writing import write_text

    known = labelled_ids(arguments.labels, arguments.store) if arguments.labels else []
    found = suggest(arguments.probe, arguments.store, arguments.count, by=arguments.by, labelled=known)
    if arguments.out:
        rows = [{"id": one.id, "label": "", "suggestion": one.predicted, "score": round(one.score, 4)} for one in found]
        write_text(arguments.out, _csv(rows) + "\n")
        say(f"{len(rows)} videos to label: {arguments.out}; fill in the column label and add the rows to your labels")
        return 0
    show("\n".join(f"{one.id}  {one.predicted}  {one.score:.2f}" for one in found))
    return 0


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return text.getvalue().rstrip("\n")
