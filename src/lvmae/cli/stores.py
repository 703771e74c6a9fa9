"""Commands that make and look at stores: embed, import, inspect."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lvmae.cli.command import command_of, key_values, tell_failures


def add_embed(commands: Any) -> None:
    command = command_of(
        commands,
        "embed",
        _run_embed,
        brief="Embed videos: one frozen video-text embedding per 5-second segment.",
        goes_in="video files, or folders of them",
        comes_out="a store: Parquet files that `datasets`, DuckDB and pandas read; files that failed are listed in it",
        example="lvmae embed films/ --out store",
    )
    command.add_argument("videos", nargs="+", help="video files or folders")
    command.add_argument("--out", required=True, help="where the store goes; an existing one is gone on with")
    command.add_argument(
        "--encoder", default="conse", help="name, or module:Class of your own (default: conse, offline)"
    )
    command.add_argument(
        "--encoder-option", action="append", default=[], metavar="KEY=VALUE", help="passed to the encoder"
    )
    command.add_argument(
        "--segment-seconds", type=float, default=5.0, metavar="S", help="length of a segment (default: 5)"
    )
    command.add_argument(
        "--stride", type=float, metavar="S", help="start a segment every S seconds (default: its length)"
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    command.add_argument("--retry-failures", action="store_true", help="try files again that failed before")


def _run_embed(arguments: argparse.Namespace) -> int:
    from lvmae.embedding import embed_videos

    summary = embed_videos(
        arguments.videos,
        arguments.out,
        encoder=arguments.encoder,
        encoder_options=key_values(arguments.encoder_option, "--encoder-option") or None,
        segment_seconds=arguments.segment_seconds,
        stride=arguments.stride,
        workers=arguments.workers,
        retry_failures=arguments.retry_failures,
    )
    speed = summary.seconds_of_video / max(summary.wall_seconds, 1e-9)
    print(
        f"{arguments.out}: {summary.embedded} videos embedded ({summary.segments} segments, "
        f"{summary.seconds_of_video / 60:.1f} minutes of video, {speed:.0f}x real time), {summary.skipped} there before, "
        f"{summary.failed} failed"
    )
    return tell_failures(arguments.out) if summary.failed else 0


def add_import(commands: Any) -> None:
    command = command_of(
        commands,
        "import",
        _run_import,
        brief="Import features made elsewhere, of any encoder and width.",
        goes_in="a folder of one .npy, .npz, .safetensors or .pt array (segments, width) a video; or a Parquet or HDF5 file",
        comes_out="a store; the rest of the path works on it with no video at hand",
        example="lvmae import features/ --out store --segment-seconds 5 --space languagebind-huge-5s",
    )
    command.add_argument("embeddings", help="the folder or file")
    command.add_argument("--out", required=True, help="where the store goes")
    command.add_argument(
        "--segment-seconds", type=float, required=True, metavar="S", help="seconds each row stands for"
    )
    command.add_argument("--space", required=True, help="a name for the embedding space: stores of two names never mix")
    command.add_argument("--key", help="which array of a file to take, if it holds several")


def _run_import(arguments: argparse.Namespace) -> int:
    from lvmae.importing import import_embeddings

    summary = import_embeddings(
        arguments.embeddings,
        arguments.out,
        segment_seconds=arguments.segment_seconds,
        space=arguments.space,
        key=arguments.key,
    )
    print(
        f"{arguments.out}: {summary.added} videos imported, {summary.kept} there before, {summary.failed} failed; "
        f"{summary.segments} segments of width {summary.dim} in all"
    )
    return tell_failures(arguments.out) if summary.failed else 0


def add_inspect(commands: Any) -> None:
    command = command_of(
        commands,
        "inspect",
        _run_inspect,
        brief="Say what a store, representations or a run hold.",
        goes_in="any folder that lvmae made",
        comes_out="lines of text, or JSON",
        example="lvmae inspect store",
    )
    command.add_argument("path")
    command.add_argument("--json", action="store_true", help="as JSON, with every failure")


def _run_inspect(arguments: argparse.Namespace) -> int:
    from lvmae.inspection import describe, inspect

    found = inspect(arguments.path)
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else describe(found))
    return 0
