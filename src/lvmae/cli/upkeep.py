"""Commands that maintain stores, runs and the cache: verify, migrate, remove, cache."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lvmae.cli.command import command_of
from lvmae.errors import InputError


def add_verify(commands: Any) -> None:
    command = command_of(
        commands,
        "verify",
        _run_verify,
        brief="Check every byte of a store, representations or a run; report damage and loss.",
        goes_in="a store, representations or a run",
        comes_out="a list of problems with the affected videos; exit code 1 if there are any",
        example="lvmae verify store",
    )
    command.add_argument("path", help="store, representations or run")
    command.add_argument(
        "--repair",
        action="store_true",
        help="move damaged files aside; the rest stays usable, and `lvmae embed` restores the lost videos",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _run_verify(arguments: argparse.Namespace) -> int:
    from lvmae.upkeep import verify

    found = verify(arguments.path, repair=arguments.repair)
    if arguments.json:
        print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return 1 if found.problems else 0
    for problem in found.problems:
        concerned = (
            f" ({len(problem.ids)} videos: {', '.join(problem.ids[:5])}{' ...' if len(problem.ids) > 5 else ''})"
        )
        print(f"  {problem.file}: {problem.what}{concerned if problem.ids else ''}")
    for line in (*found.repaired, *(f"note: {note}" for note in found.notes)):
        print(f"  {line}")
    videos = f", {found.videos} videos" if found.kind != "run" else ""
    what = f"{len(found.problems)} problems" if found.problems else "no damage"
    print(f"{found.path}: {found.kind}, {found.files} files, {found.bytes / 1e6:.1f} MB{videos} read; {what}")
    if found.problems and not arguments.repair:
        print(f"repair: lvmae verify {arguments.path} --repair")
    return 1 if found.problems else 0


def add_migrate(commands: Any) -> None:
    command = command_of(
        commands,
        "migrate",
        _run_migrate,
        brief="Update a store or a run that an older version of lvmae wrote.",
        goes_in="a store, representations or a run",
        comes_out="the same folder; stores get hashes of all shards, runs the current fingerprints of their stores",
        example="lvmae migrate store",
    )
    command.add_argument("path", help="store, representations or run")


def _run_migrate(arguments: argparse.Namespace) -> int:
    from lvmae.upkeep import migrate

    print(f"{arguments.path}: {migrate(arguments.path)}")
    return 0


def add_remove(commands: Any) -> None:
    command = command_of(
        commands,
        "remove",
        _run_remove,
        brief="Remove videos from a store permanently: embeddings, failures, captions and cached copies.",
        goes_in="a store or representations, and ids",
        comes_out="the store without these videos; `lvmae embed` does not add them again unless --readmit is given",
        example="lvmae remove store film-017",
    )
    command.add_argument("store", help="store or representations")
    command.add_argument("ids", nargs="*", metavar="ID", help="ids of videos, as `lvmae inspect` shows them")
    command.add_argument("--ids-from", metavar="FILE", help="text file with one id per line")
    command.add_argument(
        "--captions",
        nargs="+",
        default=[],
        metavar="FILE",
        help="caption files (CSV): also remove their rows about these videos",
    )


def _run_remove(arguments: argparse.Namespace) -> int:
    from lvmae.upkeep import remove

    ids = list(arguments.ids)
    if arguments.ids_from:
        try:
            ids += [line for line in Path(arguments.ids_from).read_text("utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise InputError(f"{arguments.ids_from} cannot be read: {error}") from None
    if not ids:
        raise InputError("name at least one id, or a file of them with --ids-from")
    done = remove(arguments.store, ids, captions=arguments.captions)
    print(
        f"{arguments.store}: {done.videos} videos removed ({done.rows} rows), {done.copies} cached copies deleted; "
        "`lvmae embed` adds them again only with --readmit"
    )
    if done.note:
        print(f"note: {done.note}")
    return 0


def add_cache(commands: Any) -> None:
    command = command_of(
        commands,
        "cache",
        _run_cache,
        brief="List or prune the cache: memory maps of stores, search indexes, unpacked weights.",
        goes_in="nothing; LVMAE_CACHE sets the folder of the cache, LVMAE_CACHE_LIMIT (such as 20GB) its maximum size",
        comes_out="a list of the entries; deleted entries are recreated when needed",
        example="lvmae cache --prune",
    )
    command.add_argument(
        "--prune", action="store_true", help="delete copies of deleted stores, and files of older versions"
    )
    command.add_argument(
        "--max-size",
        metavar="SIZE",
        help="delete the least recently used entries until the cache has at most this size (500M, 20GB)",
    )
    command.add_argument("--all", action="store_true", help="delete everything")
    command.add_argument("--json", action="store_true", help="print JSON")


def _run_cache(arguments: argparse.Namespace) -> int:
    from lvmae.files import cache

    removed = []
    if arguments.prune or arguments.all or arguments.max_size:
        removed = cache.prune(
            gone=arguments.prune,
            everything=arguments.all,
            max_bytes=cache.bytes_of(arguments.max_size) if arguments.max_size else None,
        )
    left = cache.entries()
    if arguments.json:
        shown = [{**asdict(entry), "path": str(entry.path)} for entry in left]
        print(json.dumps({"folder": str(cache.cache_folder()), "removed": len(removed), "entries": shown}, indent=2))
        return 0
    groups: dict[tuple[str, str], list[Any]] = {}
    for entry in left:
        groups.setdefault((entry.kind, entry.of), []).append(entry)
    for (kind, of), some in sorted(groups.items(), key=lambda item: -sum(entry.size for entry in item[1])):
        days = (time.time() - max(entry.used for entry in some)) / 86400
        size = sum(entry.size for entry in some) / 1e6
        print(f"{size:10.1f} MB  {len(some):5d}  {kind:<14} used {days:.0f} days ago  {of or '(not noted)'}")
    freed = sum(entry.size for entry in removed) / 1e6
    print(
        f"{cache.cache_folder()}: {len(left)} entries, {sum(entry.size for entry in left) / 1e6:.1f} MB"
        + (f"; {len(removed)} deleted, {freed:.1f} MB" if removed else "")
    )
    return 0
