"""Shared by the commands: descriptions, settings given as key=value, reports of failures."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from lvmae.devices import CHOICES, PRECISIONS
from lvmae.errors import InputError
from lvmae.files.urls import without_secrets


def command_of(commands: Any, name: str, run: Any, *, brief: str, goes_in: str, comes_out: str, example: str) -> Any:
    """Adds a subcommand whose help says what goes in, what comes out, and an example."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=f"{brief}\n\nin:      {goes_in}\nout:     {comes_out}\nexample: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(call=run)
    return command


def in_options(sentence: str, arguments: argparse.Namespace) -> str:
    """A sentence of the library in the command's words: a parameter that it names, `like_this`, as the option --like-this."""
    named = vars(arguments)
    return re.sub(r"`(\w+)`", lambda m: f"--{m[1].replace('_', '-')}" if m[1] in named else str(m[0]), sentence)


def takes_trust(command: Any) -> None:
    """Adds the option that lets code run which the command's data names; `lvmae.cli` carries it out."""
    command.add_argument(
        "--trust-code",
        action="store_true",
        help="allow code that the data names as module:Class, such as an encoder; it can do anything that you can",
    )


def add_device(command: Any) -> None:
    """Adds the option that says where a model computes."""
    command.add_argument("--device", default="auto", help=f"{CHOICES} (default: auto)")


def add_precision(command: Any) -> None:
    """Adds the option that says in what numbers a model computes."""
    command.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="fp32, bf16, or auto: bf16 on CUDA, else fp32 (default: auto)",
    )


def add_ranks(group: Any) -> None:
    """Adds the options of one process among several, anywhere, that share a job."""
    group.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="this is process R of --world-size, counted from 0; `lvmae merge` joins the results",
    )
    group.add_argument("--world-size", type=int, metavar="N", help="number of processes")
    group.add_argument(
        "--slurm", action="store_true", help="take --rank and --world-size from SLURM_PROCID and SLURM_NTASKS"
    )


def rank_of(arguments: argparse.Namespace) -> tuple[int | None, int | None]:
    """The rank and the world size that were given, None for a process that is alone. Raises InputError."""
    if not arguments.slurm:
        return arguments.rank, arguments.world_size
    if arguments.rank is not None or arguments.world_size is not None:
        raise InputError("--slurm takes the rank and the world size from Slurm; give it, or the two, but not both")
    try:
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    except (KeyError, ValueError):
        raise InputError(
            "--slurm needs SLURM_PROCID and SLURM_NTASKS, which srun sets; run it as a step of a job"
        ) from None


def key_values(pairs: list[str], option: str) -> dict[str, str]:
    """Pairs given as key=value; InputError for one that is not."""
    settings = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise InputError(f"{option} {pair!r} is not of the form key=value")
        settings[key] = value
    return settings


def printable(text: str) -> str:
    """The text with escapes for what would move the cursor: a name may hold line breaks."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show(text: str) -> None:
    """Prints text; what the console's encoding does not have becomes a question mark."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


class Parser(argparse.ArgumentParser):
    """A parser for which what begins with a dash may be a value: ids of YouTube and names of files do.

    A word with one dash is an option only if there is one of exactly this name. One with two is a value if it has the eleven
    characters of an id and resembles no option; any other is after `--`, as everywhere.
    """

    def _parse_optional(self, arg_string: str) -> Any:
        options = self._option_string_actions
        word = arg_string.partition("=")[0]
        if arg_string.startswith("-") and len(arg_string) > 1 and word not in options:
            if not arg_string.startswith("--") and f"-{word}" not in options:
                return None
            abbreviates = any(option.startswith(word) for option in options)
            if re.fullmatch(r"--[\w-]{9}", arg_string) and not abbreviates and not get_close_matches(word, options):
                return None
        return super()._parse_optional(arg_string)


def expand_home(arguments: argparse.Namespace) -> None:
    """Makes `~/` and `~name/` the home folder in every argument, and after the `=` of NAME=PATH.

    A shell does it only for a word that is not quoted and begins so: not in --out=~/run, and not for what a script passes.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, str):
            setattr(arguments, name, _at_home(value))
        elif isinstance(value, list):
            setattr(arguments, name, [_at_home(one) if isinstance(one, str) else one for one in value])


def _at_home(word: str) -> str:
    found = re.fullmatch(r"([\w.-]+=)?(~|~[\w.-]*/.*)", word, re.DOTALL)
    return (found[1] or "") + os.path.expanduser(found[2]) if found else word  # noqa: PTH111 (text, not a path)


def tell_changed(changed: Sequence[str], command: str, most: int = 5) -> None:
    """Prints which files are not what they were when they were stored."""
    if changed:
        names = ", ".join(printable(without_secrets(name)) for name in changed[:most])
        names += f" and {len(changed) - most} more" if len(changed) > most else ""
        print(
            f"  {len(changed)} changed since they were stored, and were not updated: {names}; "
            f"`lvmae {command} --refresh` updates them"
        )


def tell_failures(store: str, most: int = 20, *, also: Sequence[Any] = ()) -> int:
    """Prints a store's failures, and `also` those that it does not list, and returns the exit code that says so."""
    from lvmae.store import EmbeddingStore

    failures = EmbeddingStore(store).failures
    listed = {failure.id for failure in failures}
    failures += [failure for failure in also if failure.id not in listed]
    for failure in failures[:most]:
        what = f"kept {failure.kept:.1f} s of" if failure.kept else "failed:"
        print(f"  {what} {printable(failure.path)}: {failure.reason}")
    if len(failures) > most:
        print(f"  and {len(failures) - most} more; `lvmae inspect {store} --json` lists all")
    return 1
