"""Commands that make and look at stores: embed, merge, import, inspect."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from lvmae.cli.command import add_ranks, command_of, key_values, printable, rank_of, tell_changed, tell_failures
from lvmae.cli.console import print_json
from lvmae.cli.journal import takes_journal
from lvmae.errors import InputError, OutageError
from lvmae.files.urls import without_secrets


def add_embed(commands: Any) -> None:
    command = command_of(
        commands,
        "embed",
        _run_embed,
        brief="Embed videos: compute one vector for each 5-second segment, with a frozen encoder.",
        goes_in="videos: files, folders, URLs, or manifests (CSV, TSV or Parquet; column path, optional: id, start, end)",
        comes_out="a store: a folder of Parquet files, readable by `datasets`, DuckDB and pandas; it also lists failed files",
        example="lvmae embed films/ --out store",
    )
    command.add_argument("videos", nargs="+", help="video files, folders, URLs or manifests")
    command.add_argument("--out", required=True, help="folder or URL of the store; an existing store is resumed")
    command.add_argument(
        "--encoder",
        default="conse",
        help="name of an encoder, or your own module:Class (default: conse, works offline)",
    )
    command.add_argument(
        "--encoder-option", action="append", default=[], metavar="KEY=VALUE", help="option for the encoder; repeatable"
    )
    command.add_argument(
        "--segments",
        default="fixed",
        metavar="KIND",
        help="fixed: equal lengths; shots: one segment per shot (default: fixed)",
    )
    command.add_argument(
        "--segment-seconds",
        type=float,
        metavar="S",
        help="segment length (default: 5); for shots, the maximum (default: 10)",
    )
    command.add_argument(
        "--stride", type=float, metavar="S", help="start a segment every S seconds (default: the segment length)"
    )
    command.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="segments per encoder batch (default: 16)"
    )
    command.add_argument("--workers", type=int, metavar="N", help="number of worker processes (default: one per core)")
    command.add_argument(
        "--dry-run", action="store_true", help="print the expected hours, segments, bytes and time; embed nothing"
    )
    bad = command.add_argument_group("bad files")
    bad.add_argument("--retry-failures", action="store_true", help="retry files that failed before")
    bad.add_argument("--refresh", action="store_true", help="embed changed files again")
    bad.add_argument(
        "--keep-partial", action="store_true", help="if a file is truncated, keep the part before the damage"
    )
    bad.add_argument("--readmit", action="store_true", help="allow videos that `lvmae remove` removed")
    bad.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="skip a file after S seconds without progress (default: 300)",
    )
    bad.add_argument(
        "--outage-after",
        type=int,
        default=5,
        metavar="N",
        help="stop with exit code 75 after N unreachable files in a row (default: 5)",
    )
    command.add_argument(
        "--devices",
        metavar="LIST",
        help="devices for encoders, such as cuda:0,cuda:1; one process each (default: every GPU; without a GPU, the workers)",
    )
    command.add_argument(
        "--commit-seconds", type=float, default=10.0, metavar="S", help="save at least every S seconds (default: 10)"
    )
    command.add_argument("--wait", action="store_true", help="if another process writes to the store, wait for it")
    takes_journal(command)
    many = command.add_argument_group("many machines")
    add_ranks(many)
    many.add_argument("--engine", default="local", help="local or ray (default: local)")
    many.add_argument("--address", help="address of the Ray cluster (default: a cluster on this machine)")
    many.add_argument("--worker-cpus", type=float, metavar="N", help="CPUs per Ray worker (default: 1)")
    many.add_argument(
        "--worker-gpus",
        type=float,
        metavar="N",
        help="GPUs per Ray encoder; the workers then only decode (default: none)",
    )
    many.add_argument(
        "--encoder-resource",
        action="append",
        default=[],
        metavar="NAME=N",
        help="instead of GPUs: a Ray resource of your nodes, and the amount per encoder",
    )


def _run_embed(arguments: argparse.Namespace) -> int:
    from lvmae.embedding import embed_videos

    if arguments.dry_run:
        return _estimate_embed(arguments)
    rank, world_size = rank_of(arguments)
    summary = embed_videos(
        arguments.videos,
        arguments.out,
        encoder=arguments.encoder,
        encoder_options=key_values(arguments.encoder_option, "--encoder-option") or None,
        segment_kind=arguments.segments,
        segment_seconds=arguments.segment_seconds,
        stride=arguments.stride,
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        retry_failures=arguments.retry_failures,
        keep_partial=arguments.keep_partial,
        readmit=arguments.readmit,
        timeout=arguments.timeout,
        rank=rank,
        world_size=world_size,
        engine=arguments.engine,
        address=arguments.address,
        worker_cpus=arguments.worker_cpus,
        worker_gpus=arguments.worker_gpus,
        encoder_resources=_amounts(arguments.encoder_resource) or None,
        devices=arguments.devices,
        outage_after=arguments.outage_after,
        commit_seconds=arguments.commit_seconds,
        wait=arguments.wait,
        refresh=arguments.refresh,
    )
    arguments.came_out = asdict(summary)
    speed = summary.seconds_of_video / max(summary.wall_seconds, 1e-9)
    print(
        f"{summary.store}: {summary.embedded} videos embedded ({summary.segments} segments, "
        f"{summary.seconds_of_video / 60:.1f} minutes of video, {speed:.0f}x real time), {summary.skipped} already stored, "
        f"{summary.failed} failed" + (f", {summary.partial} only in part" if summary.partial else "")
    )
    if summary.left_out:
        print(f"  left out of the folders: {printable(summary.left_out)}")
    tell_changed(summary.changed, "embed")
    code = tell_failures(summary.store, also=summary.failures) if summary.failures else 0
    for file in summary.postponed:
        print(f"  postponed: {printable(without_secrets(file.path))}: {file.reason}")
    if summary.postponed:
        print("  files that are postponed do not count as bad: rerun the same command later")
    return OutageError.exit_code if summary.postponed else code


def _estimate_embed(arguments: argparse.Namespace) -> int:
    from lvmae.estimation import estimate_embedding

    estimate = estimate_embedding(
        arguments.videos,
        arguments.out,
        encoder=arguments.encoder,
        encoder_options=key_values(arguments.encoder_option, "--encoder-option") or None,
        segment_kind=arguments.segments,
        segment_seconds=arguments.segment_seconds,
        stride=arguments.stride,
        workers=arguments.workers,
    )
    print(estimate.to_text())
    return 0


def _amounts(pairs: list[str]) -> dict[str, float]:
    try:
        return {name: float(amount) for name, amount in key_values(pairs, "--encoder-resource").items()}
    except ValueError as error:
        raise InputError(f"--encoder-resource is of the form NAME=NUMBER: {error}") from None


def add_merge(commands: Any) -> None:
    command = command_of(
        commands,
        "merge",
        _run_merge,
        brief="Merge several stores into one, such as those of a job's ranks.",
        goes_in="stores with the same embedding space and segment rule, or the folder with the stores of a job's ranks",
        comes_out="one store; a video in several stores must be identical in all of them",
        example="lvmae merge ranks/ --out store",
    )
    command.add_argument("stores", nargs="+", help="stores, or folders of rank stores")
    command.add_argument(
        "--out", required=True, help="folder or URL of the merged store; if it exists, videos are added"
    )


def _run_merge(arguments: argparse.Namespace) -> int:
    from lvmae.store import merge_stores

    summary = merge_stores(arguments.stores, arguments.out)
    print(
        f"{arguments.out}: {summary.added} videos of {summary.stores} stores added, {summary.skipped} already stored, "
        f"{summary.failed} failed" + (f", {summary.partial} only in part" if summary.partial else "")
    )
    return tell_failures(arguments.out) if summary.failed or summary.partial else 0


def add_import(commands: Any) -> None:
    command = command_of(
        commands,
        "import",
        _run_import,
        brief="Import features that you computed elsewhere, with any encoder.",
        goes_in="a folder of one .npy, .npz, .safetensors, .pt or .csv array (segments, width) a video; a table; HDF5",
        comes_out="a store; every later step works on it without the videos",
        example="lvmae import features/ --out store --segment-seconds 5 --space languagebind-huge-5s",
    )
    command.add_argument("embeddings", help="the folder or file")
    command.add_argument("--out", required=True, help="folder or URL of the store")
    command.add_argument("--segment-seconds", type=float, required=True, metavar="S", help="seconds of video per row")
    command.add_argument(
        "--space", required=True, help="name of the embedding space; stores with different names never mix"
    )
    command.add_argument("--key", help="name of the array to read, if a file holds several")
    command.add_argument("--transpose", action="store_true", help="the arrays are (width, segments)")
    command.add_argument(
        "--dim", type=int, metavar="D", help="width of an embedding (default: the width of most arrays)"
    )
    command.add_argument("--refresh", action="store_true", help="import videos again whose values have changed")


def _run_import(arguments: argparse.Namespace) -> int:
    from lvmae.importing import TurnedError, import_embeddings

    try:
        summary = import_embeddings(
            arguments.embeddings,
            arguments.out,
            segment_seconds=arguments.segment_seconds,
            space=arguments.space,
            key=arguments.key,
            dim=arguments.dim,
            transpose=arguments.transpose,
            refresh=arguments.refresh,
        )
    except TurnedError:
        print("hint: --transpose exchanges the axes of (width, segments) arrays; --dim D says how wide an embedding is")
        raise
    print(
        f"{arguments.out}: {summary.added} videos imported, {summary.kept} already stored, {summary.failed} failed; "
        f"{summary.segments} segments of width {summary.dim} in all"
    )
    if summary.left_out:
        print(f"  left out of the folder: {printable(summary.left_out)}")
    tell_changed(summary.changed, "import")
    return tell_failures(arguments.out) if summary.failed else 0


def add_inspect(commands: Any) -> None:
    command = command_of(
        commands,
        "inspect",
        _run_inspect,
        brief="Describe a store, representations or a run.",
        goes_in="any folder that lvmae wrote",
        comes_out="lines of text, or JSON",
        example="lvmae inspect store",
    )
    command.add_argument("path", help="folder of a store, representations or a run")
    command.add_argument("--json", action="store_true", help="as JSON, with every failure")


def _run_inspect(arguments: argparse.Namespace) -> int:
    from lvmae.inspection import describe, inspect

    found = inspect(arguments.path)
    if arguments.json:
        print_json(found)
    else:
        print(describe(found))
    return 0
