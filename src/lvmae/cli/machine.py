"""The command that examines this machine: doctor."""

from __future__ import annotations

import argparse
from typing import Any

from lvmae.cli.command import command_of
from lvmae.cli.console import print_json


def add_doctor(commands: Any) -> None:
    command = command_of(
        commands,
        "doctor",
        _run_doctor,
        brief="Check this machine and every part of lvmae; include the output in bug reports.",
        goes_in="nothing",
        comes_out="versions, devices, codecs, cache, free disk and extras; exit code 1 if something is wrong",
        example="lvmae doctor --json",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _run_doctor(arguments: argparse.Namespace) -> int:
    from lvmae.doctor import examine, to_text

    found = examine()
    if arguments.json:
        print_json(found)
    else:
        print(to_text(found))
    return 1 if found["problems"] else 0
