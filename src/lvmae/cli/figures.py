"""Commands for statistics, comparison and export of stores: stats, compare, export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lvmae.cli.command import command_of, takes_trust
from lvmae.errors import InputError


def add_stats(commands: Any) -> None:
    command = command_of(
        commands,
        "stats",
        _run_stats,
        brief="Print statistics of a store.",
        goes_in="a store or representations",
        comes_out="hours, durations, sizes, failures, still segments, most central and most unusual videos",
        example="lvmae stats store --out stats.png",
    )
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument("--out", metavar="FILE", help="output file, ending in .json, .txt or .png")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--pictures", action="store_true", help="also read the videos, to count black segments")


def _run_stats(arguments: argparse.Namespace) -> int:
    from lvmae.library.statistics import check_format, statistics

    if arguments.out:
        check_format(arguments.out)
    found = statistics(arguments.store, pictures=arguments.pictures)
    if arguments.out:
        found.save(arguments.out)
    print((found.to_json() if arguments.json else found.to_text()).rstrip("\n"))
    return 0


def add_compare(commands: Any) -> None:
    command = command_of(
        commands,
        "compare",
        _run_compare,
        brief="Compare two stores of the same videos, made by different encoders.",
        goes_in="two stores or representations that share video ids",
        comes_out="the overlap of nearest neighbours, and linear CKA, over the videos in both",
        example="lvmae compare store other",
    )
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument("other", help="folder or URL of the other store")
    command.add_argument(
        "--k", type=int, default=10, metavar="N", help="number of nearest videos to compare (default: 10)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _run_compare(arguments: argparse.Namespace) -> int:
    from lvmae.library.compare import compare

    found = compare(arguments.store, arguments.other, k=arguments.k)
    print((found.to_json() if arguments.json else found.to_text()).rstrip("\n"))
    return 0


def add_export(commands: Any) -> None:
    command = command_of(
        commands,
        "export",
        _run_export,
        brief="Export a store to files for other tools.",
        goes_in="a store or representations",
        comes_out="a Parquet table of segments, for embedding-atlas, DuckDB and pandas; or WebVTT chapters",
        example="lvmae export store --to segments.parquet",
    )
    takes_trust(command)
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="output file ending in .parquet; or the word webvtt, with --out FOLDER",
    )
    command.add_argument(
        "--out", metavar="FOLDER", help="with webvtt: folder for one file per video (default: chapters)"
    )
    command.add_argument("--captions", metavar="FILE", help="captions, for the column text")
    command.add_argument(
        "--projection", default="pca", choices=["pca", "umap"], help="method for the 2-D map (default: pca)"
    )
    command.add_argument("--no-pictures", action="store_true", help="leave out pictures")
    command.add_argument(
        "--neighbours", type=int, default=10, metavar="N", help="number of neighbours listed per row (default: 10)"
    )


def _run_export(arguments: argparse.Namespace) -> int:
    from lvmae.library.exporting import export_chapters, export_segments

    if arguments.to == "webvtt":
        written = export_chapters(arguments.store, arguments.out or "chapters")
        print(f"{arguments.out or 'chapters'}: the chapters of {len(written)} videos")
        return 0
    if Path(arguments.to).suffix.lower() != ".parquet":
        raise InputError(f"--to is a file that ends in .parquet, or webvtt, not {arguments.to!r}")
    if arguments.out:
        raise InputError("--out goes with --to webvtt")
    rows = export_segments(
        arguments.store,
        arguments.to,
        captions=arguments.captions,
        projection=arguments.projection,
        pictures=not arguments.no_pictures,
        neighbours=arguments.neighbours,
    )
    print(f"{arguments.to}: {rows} segments")
    return 0
