"""The command that finds near-duplicates: duplicates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lvmae.cli.command import command_of
from lvmae.errors import InputError


def add_duplicates(commands: Any) -> None:
    command = command_of(
        commands,
        "duplicates",
        _run_duplicates,
        brief="Find near-duplicate videos and spans.",
        goes_in="a store; if its videos can be read, their pictures decide",
        comes_out="a table of pairs with start and end in both videos; --out writes CSV or JSON",
        example="lvmae duplicates store --out duplicates.csv --exclude-into exclude.txt",
    )
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument("--out", metavar="FILE", help="output file, ending in .csv or .json")
    command.add_argument("--exclude-into", metavar="FILE", help="write the ids to exclude so that no duplicates remain")
    command.add_argument(
        "--no-pictures", action="store_true", help="compare vectors only: faster, but look-alikes count as copies"
    )
    command.add_argument(
        "--min-seconds", type=float, default=3.0, metavar="S", help="minimum length of a span (default: 3)"
    )


def _run_duplicates(arguments: argparse.Namespace) -> int:
    from lvmae.files.id_lists import write_ids
    from lvmae.files.writing import write_text
    from lvmae.library.chapters import clock
    from lvmae.library.duplicates import duplicate_ids, find_duplicates, to_csv, to_json

    forms = {".csv": to_csv, ".json": to_json}
    if arguments.out and Path(arguments.out).suffix.lower() not in forms:
        raise InputError(f"{arguments.out} must end in .csv or .json: the suffix sets the format")
    found = find_duplicates(arguments.store, pictures=not arguments.no_pictures, min_seconds=arguments.min_seconds)
    if arguments.out:
        write_text(arguments.out, forms[Path(arguments.out).suffix.lower()](found))
    if arguments.exclude_into:
        write_ids(arguments.exclude_into, duplicate_ids(found))
    pairs = len({(one.a, one.b) for one in found})
    print(f"{pairs} pairs of videos share {len(found)} spans")
    for one in found:
        spans = (f"{clock(one.a_start)}-{clock(one.a_end)}", f"{clock(one.b_start)}-{clock(one.b_end)}")
        print(f"{one.score:>6.3f}  {one.a} {spans[0]}  {one.b} {spans[1]}  by {one.checked}")
    return 0
