"""The `lvmae` command: each subcommand parses its options and calls one public function.

Nothing heavy is imported until a command runs, so that `--help` answers at once. A user's error is one sentence on standard
error; exit code 2 for a request that cannot be carried out, 1 for work that failed, 75 for an outage, 130 for Ctrl-C, 143 for
SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

import lvmae
from lvmae.cli import (
    ablation,
    checkpoints,
    duplicates,
    evaluation,
    figures,
    labelling,
    library,
    machine,
    model,
    search,
    store,
    upkeep,
)
from lvmae.cli.command import Parser, command_of, expand_home, in_options
from lvmae.cli.console import console
from lvmae.cli.journal import flush_output, journal, write_summary
from lvmae.errors import InputError, LVMAEError, Terminated
from lvmae.files.urls import without_secrets
from lvmae.files.writing import reason
from lvmae.process import say
from lvmae.trust import UntrustedCodeError, trusting

_LEAST_VIDEOS = 48  # of a demonstration
_DOWNLOADING = frozenset({"embed", "push", "quickstart", "search", "serve"})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    with console():
        arguments = build_parser().parse_args(argv)
        expand_home(arguments)
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """One command, and what ends it as an exit code."""
    # Threads that spin while they wait slow a busy machine down many times; read by OpenMP when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.command not in _DOWNLOADING:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading weights from the disk
    began = time.time()
    error: str | None = None
    try:
        with journal(arguments):
            code, error = _carry_out(arguments)
            write_summary(arguments, began=began, code=code, error=error)
    except LVMAEError as problem:  # of the log and the summary themselves
        error, code = str(problem), problem.exit_code
    if error:
        say(error)
    return code


def _carry_out(arguments: argparse.Namespace) -> tuple[int, str | None]:
    """The exit code, and what is to be said of an error."""
    name = f"lvmae {arguments.command}"
    try:
        with trusting() if getattr(arguments, "trust_code", False) else contextlib.nullcontext():
            code: int = arguments.call(arguments)
        flush_output()
    except UntrustedCodeError as error:
        return error.exit_code, f"{name}: {error}; or give --trust-code."
    except LVMAEError as error:
        return error.exit_code, f"{name}: {without_secrets(in_options(str(error), arguments))}"
    except BrokenPipeError:
        raise
    except OSError as error:  # a disk that refuses what is written to it, wherever that was
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{name}: {without_secrets(f'{where}{reason(error)}')}"
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted; rerun the same command to resume"
        return stop.exit_code if isinstance(stop, Terminated) else 130, f"\n{name}: {said}"
    return code, None


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lvmae",
        description="Learn from, represent, search and understand long videos (LV-MAE).",
        epilog="Typical order: embed -> pretrain -> represent -> probe, interpret. `lvmae demo` runs all of it.",
    )
    parser.add_argument("--version", action="version", version=f"lvmae {lvmae.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        store.add_embed,
        store.add_merge,
        store.add_import,
        store.add_inspect,
        upkeep.add_verify,
        upkeep.add_remove,
        upkeep.add_migrate,
        upkeep.add_cache,
        model.add_pretrain,
        model.add_push,
        model.add_represent,
        checkpoints.add_import_checkpoint,
        checkpoints.add_export_checkpoint,
        evaluation.add_probe,
        labelling.add_predict,
        labelling.add_suggest,
        ablation.add_ablate,
        library.add_caption,
        library.add_interpret,
        search.add_search,
        search.add_relocate,
        figures.add_stats,
        figures.add_compare,
        figures.add_export,
        library.add_serve,
        library.add_timeline,
        duplicates.add_duplicates,
        _add_quickstart,
        _add_demo,
        machine.add_doctor,
    ):
        add(commands)
    return parser


def _add_quickstart(commands: Any) -> None:
    command = command_of(
        commands,
        "quickstart",
        _run_quickstart,
        brief="Embed a folder of videos and open a search page, in one command.",
        goes_in="videos: files, folders, URLs or manifests",
        comes_out="a store, chapters and the search page (until Ctrl-C); with enough videos, also a run and a report",
        example="lvmae quickstart films/",
    )
    command.add_argument("videos", nargs="+", help="video files, folders, URLs or manifests")
    command.add_argument("--out", default="quickstart", help="folder for everything (default: quickstart)")
    command.add_argument(
        "--encoder",
        default="conse",
        help="name of an encoder, or your own module:Class (default: conse, works offline)",
    )
    command.add_argument("--dry-run", action="store_true", help="print the expected cost; do nothing")
    command.add_argument("--no-serve", action="store_true", help="do not start the search page")
    command.add_argument("--no-open", action="store_true", help="do not open a browser; print the page's address")


def _run_quickstart(arguments: argparse.Namespace) -> int:
    from lvmae.quickstart import quickstart

    return quickstart(
        arguments.videos,
        arguments.out,
        encoder=arguments.encoder,
        dry_run=arguments.dry_run,
        serve=not arguments.no_serve,
        open_browser=not arguments.no_open,
    )


def _add_demo(commands: Any) -> None:
    command = command_of(
        commands,
        "demo",
        _run_demo,
        brief="Make a small corpus of videos and run every step on it.",
        goes_in="nothing",
        comes_out="videos, store, run, representations, a table and report.html in one folder",
        example="lvmae demo --out demo",
    )
    command.add_argument("--out", default="demo", help="folder for everything (default: demo)")
    command.add_argument(
        "--videos", type=int, help="number of short videos, at least 48 (default: the demo's own number)"
    )
    command.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def _run_demo(arguments: argparse.Namespace) -> int:
    from lvmae.demo import run_demo

    if arguments.videos is not None and arguments.videos < _LEAST_VIDEOS:
        raise InputError(
            f"a demonstration needs {_LEAST_VIDEOS} videos or more, not {arguments.videos}: its probes have too few to learn from"
        )

    return run_demo(arguments.out, videos=arguments.videos, seed=arguments.seed)
