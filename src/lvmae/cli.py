"""The `lvmae` command: each subcommand parses its options and calls one public function.

Nothing heavy is imported until a command runs, so that `--help` answers at once. A user's error is one sentence on standard
error; exit code 2 for a request that cannot be carried out, 1 for work that failed, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lvmae
from lvmae.errors import InputError, LVMAEError

_DOWNLOADING = frozenset({"embed", "push", "search", "serve"})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    # Threads that spin while they wait slow a busy machine down many times; read by OpenMP when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.command not in _DOWNLOADING:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading weights from the disk
    _tell()
    try:
        code: int = arguments.call(arguments)
    except LVMAEError as error:
        print(f"lvmae {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted; run the same command again to go on"
        print(f"\nlvmae {arguments.command}: {said}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `lvmae inspect store | head`.
        sys.stderr.close()
        return 1
    return code


def _tell() -> None:
    """Shows what our own loggers say, on standard error, as plain sentences."""
    logger = logging.getLogger("lvmae")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lvmae",
        description="Learn from, represent, search and understand long videos (LV-MAE).",
        epilog="The path: embed -> pretrain -> represent -> probe, interpret. `lvmae demo` walks it.",
    )
    parser.add_argument("--version", action="version", version=f"lvmae {lvmae.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _embed,
        _import,
        _inspect,
        _pretrain,
        _push,
        _represent,
        _probe,
        _caption,
        _interpret,
        _search,
        _serve,
        _timeline,
        _demo,
    ):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, *, brief: str, goes_in: str, comes_out: str, example: str) -> Any:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=f"{brief}\n\nin:      {goes_in}\nout:     {comes_out}\nexample: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(call=run)
    return command


def _key_values(pairs: list[str], option: str) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise InputError(f"{option} {pair!r} is not of the form key=value")
        settings[key] = value
    return settings


def _embed(commands: Any) -> None:
    command = _command(
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
        encoder_options=_key_values(arguments.encoder_option, "--encoder-option") or None,
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
    return _tell_failures(arguments.out) if summary.failed else 0


def _tell_failures(store: str, most: int = 20) -> int:
    from lvmae.store import EmbeddingStore

    failures = EmbeddingStore(store).failures
    for failure in failures[:most]:
        print(f"  failed: {failure.path}: {failure.reason}")
    if len(failures) > most:
        print(f"  and {len(failures) - most} more; `lvmae inspect {store} --json` lists all")
    return 1


def _import(commands: Any) -> None:
    command = _command(
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
    return _tell_failures(arguments.out) if summary.failed else 0


def _inspect(commands: Any) -> None:
    command = _command(
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


def _pretrain(commands: Any) -> None:
    command = _command(
        commands,
        "pretrain",
        _run_pretrain,
        brief="Pre-train LV-MAE on embeddings, self-supervised.",
        goes_in="one or more stores of one embedding space",
        comes_out="a run: the model, its card, curves and checkpoints; killed or stopped, the same command goes on",
        example="lvmae pretrain store --out run --recipe tiny --set epochs=50",
    )
    command.add_argument("stores", nargs="+", metavar="store")
    command.add_argument("--out", required=True, help="where the run goes")
    command.add_argument("--recipe", default="base", help="named configuration, or a run's recipe.json (default: base)")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting of the recipe"
    )


def _run_pretrain(arguments: argparse.Namespace) -> int:
    from lvmae.pretraining import pretrain

    stores = arguments.stores if len(arguments.stores) > 1 else arguments.stores[0]
    pretrain(stores, arguments.out, recipe=arguments.recipe, settings=_key_values(arguments.set, "--set"))
    return 0


def _push(commands: Any) -> None:
    command = _command(
        commands,
        "push",
        _run_push,
        brief="Upload a finished run to a model hub.",
        goes_in="a run, and the name of a repository; the token is the one of `hf auth login`, or HF_TOKEN",
        comes_out="a repository with the model, its card, curves and recipe",
        example="lvmae push run someone/long-videos",
    )
    command.add_argument("run")
    command.add_argument("repo", help="user/name; made if it does not exist")
    command.add_argument("--private", action="store_true", help="make it a private one")


def _run_push(arguments: argparse.Namespace) -> int:
    from lvmae.pretraining.hub import push_run

    print(push_run(arguments.run, arguments.repo, private=arguments.private))
    return 0


def _represent(commands: Any) -> None:
    command = _command(
        commands,
        "represent",
        _run_represent,
        brief="Compute the frozen model's features of every video, once.",
        goes_in="a run and a store",
        comes_out="representations: [CLS], mean and per-segment features with times, as Parquet",
        example="lvmae represent run store --out reps",
    )
    command.add_argument("run")
    command.add_argument("store")
    command.add_argument("--out", required=True, help="where the representations go")


def _run_represent(arguments: argparse.Namespace) -> int:
    from lvmae.representations import represent

    features = represent(arguments.run, arguments.store, arguments.out)
    print(f"{len(features)} videos, {int(features.lengths.sum())} segments of width {features.dim} in {arguments.out}")
    return 0


def _probe(commands: Any) -> None:
    command = _command(
        commands,
        "probe",
        _run_probe,
        brief="Judge frozen features by linear and attentive probes.",
        goes_in="representations (or a store), and a CSV of id,label[,split]",
        comes_out="a table: mean and spread over seeds, beside chance and, with --raw, the raw embeddings",
        example="lvmae probe reps --labels labels.csv --raw store",
    )
    command.add_argument("features", help="representations or a store")
    command.add_argument(
        "--labels", required=True, help="CSV with the columns id, label and, if the split is fixed, split"
    )
    command.add_argument("--raw", metavar="STORE", help="also probe this store's raw embeddings, for comparison")
    command.add_argument(
        "--probe", action="append", choices=["linear", "attentive"], help="only this probe (default: both)"
    )
    command.add_argument("--seeds", type=int, default=5, help="repetitions (default: 5)")
    command.add_argument("--out", help="also write the table with every figure as JSON")


def _run_probe(arguments: argparse.Namespace) -> int:
    from lvmae.evaluation import probe

    table = probe(
        arguments.features,
        arguments.labels,
        raw=arguments.raw,
        probes=tuple(arguments.probe or ("linear", "attentive")),
        seeds=arguments.seeds,
    )
    print(table.to_text())
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(table.to_json() + "\n")
    return 0


def _caption(commands: Any) -> None:
    command = _command(
        commands,
        "caption",
        _run_caption,
        brief="Ask a vision LLM for a caption of each segment.",
        goes_in="a store, its videos, and any OpenAI-compatible endpoint: a local vLLM or Ollama, or a hosted one",
        comes_out="a CSV of video,start,end,text; stopped or killed, the same command goes on",
        example="lvmae caption store --out captions.csv --endpoint http://127.0.0.1:11434/v1 --model qwen2.5vl",
    )
    command.epilog = "A key is read from LVMAE_API_KEY, or else OPENAI_API_KEY, and is written nowhere."
    command.add_argument("store")
    command.add_argument("--out", required=True, help="the CSV; what is in it is not asked for again")
    command.add_argument("--endpoint", required=True, metavar="URL", help="mostly ends in /v1")
    command.add_argument("--model", required=True, metavar="NAME", help="a model that takes pictures")
    command.add_argument(
        "--frames", type=int, metavar="N", help="of each segment, evenly spaced (default: 8; paper: 20)"
    )
    command.add_argument("--frame-height", type=int, metavar="PIXELS", help="of the pictures sent (default: 360)")
    command.add_argument("--prompt", help="what to ask (default: one or two sentences on who, where and what)")
    command.add_argument("--max-tokens", type=int, metavar="N", help="longest answer; 0: the server's (default: 300)")
    command.add_argument("--concurrency", type=int, metavar="N", help="requests at once (default: 4)")
    command.add_argument("--requests-per-minute", type=float, metavar="N", help="retries included (default: any)")
    command.add_argument("--timeout", type=float, metavar="S", help="of one request (default: 120)")
    command.add_argument("--retries", type=int, metavar="N", help="further tries of a segment (default: 5)")
    command.add_argument("--price-in", type=float, metavar="USD", help="per million tokens, for the estimate")
    command.add_argument("--price-out", type=float, metavar="USD", help="likewise, for tokens answered")
    command.add_argument("--yes", action="store_true", help="where there is a price: do not ask before starting")
    command.add_argument("--dry-run", action="store_true", help="only estimate")


def _run_caption(arguments: argparse.Namespace) -> int:
    from lvmae.captioning import CaptionJob

    others = {"call", "command", "yes", "dry_run"}
    job = CaptionJob(**{k: v for k, v in vars(arguments).items() if k not in others and v is not None})
    estimate = job.estimate()
    print(estimate.to_text(), flush=True)
    if arguments.dry_run:
        return 0
    if estimate.dollars and not arguments.yes and sys.stdin.isatty():
        print("Go on? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was asked")
            return 1
    summary = job.run()
    print(summary.to_text(arguments.out))
    return 1 if summary.failures else 0


def _interpret(commands: Any) -> None:
    command = _command(
        commands,
        "interpret",
        _run_interpret,
        brief="Read masked reconstructions back as captions.",
        goes_in="a run, its store and, if you have them, captions (CSV, JSONL, SRT or VTT)",
        comes_out="retrieval figures beside the floors, and one HTML page that needs no network",
        example="lvmae interpret run store --captions captions.csv --out report.html",
    )
    command.add_argument("run")
    command.add_argument("store")
    command.add_argument("--captions", help="columns video, start, end, text; without it, the encoder's own vocabulary")
    command.add_argument("--out", required=True, help="the HTML page")
    command.add_argument(
        "--mask", default="random", help="random, semantic, redundant or semantic-sampled (default: random)"
    )
    command.add_argument("--ratio", type=float, default=0.4, help="share of segments to mask (default: 0.4)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--probe-table", metavar="JSON", help="show this table of `lvmae probe --out` on the page")


def _run_interpret(arguments: argparse.Namespace) -> int:
    from lvmae.interpretation import interpret

    tables = [_probe_scores(Path(arguments.probe_table))] if arguments.probe_table else []

    found = interpret(
        arguments.run,
        arguments.store,
        captions=arguments.captions,
        out=arguments.out,
        ratio=arguments.ratio,
        mask=arguments.mask,
        seed=arguments.seed,
        tables=tables,
    )
    print(found.to_markdown())
    print(f"report: {arguments.out}")
    return 0


def _probe_scores(path: Path) -> Any:
    from lvmae.evaluation import ProbeTable
    from lvmae.report import ScoreTable

    try:
        table = ProbeTable.from_json(path.read_text())
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path} is not a table that `lvmae probe --out` wrote") from None
    columns, rows = table.cells()
    return ScoreTable(f"Probes: {table.task}", columns, rows, " ".join(table.notes()))


def _search(commands: Any) -> None:
    command = _command(
        commands,
        "search",
        _run_search,
        brief="Find the moments that match a text, or the videos most like one.",
        goes_in="a store and a text; or a store or representations and a video's id",
        comes_out="a table of videos, times and cosines, or JSON",
        example='lvmae search store "a dog on a beach"',
    )
    command.add_argument("store", help="a store, or representations with --video")
    command.add_argument("text", nargs="?", help="what to look for, in words")
    command.add_argument("--video", metavar="ID", help="find the videos most like this one")
    command.add_argument(
        "--features",
        choices=["mean", "cls"],
        help="with --video: compare the mean of the segments (the default), or the [CLS] of representations",
    )
    command.add_argument("--top", type=int, default=10, metavar="N", help="how many (default: 10)")
    command.add_argument(
        "--exact", action="store_true", help="read every vector, also where there is or would be an index"
    )
    command.add_argument("--json", action="store_true", help="as JSON")


def _run_search(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lvmae.searching import Library, similar_videos
    from lvmae.timeline import clock

    if (arguments.text is None) == (arguments.video is None):
        raise InputError("give either a text to look for or --video ID")
    if arguments.features and arguments.video is None:
        raise InputError("--features says how videos are compared: give --video ID with it")
    if arguments.video is not None:
        videos = similar_videos(
            arguments.store,
            arguments.video,
            arguments.top,
            features=arguments.features or "mean",
            exact=arguments.exact,
        )
        found = [asdict(video) for video in videos]
        rows = [[f"{video.score:.3f}", clock(video.duration), video.video] for video in videos]
    else:
        moments = Library(arguments.store, exact=arguments.exact).search(arguments.text, arguments.top)
        found = [asdict(moment) for moment in moments]
        rows = [[f"{m.score:.3f}", f"{clock(m.start)}-{clock(m.end)}", m.video] for m in moments]
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    width = max(len(row[1]) for row in rows)
    for score, time, video in rows:
        print(f"{score:>6}  {time:<{width}}  {video}")
    return 0


def _serve(commands: Any) -> None:
    command = _command(
        commands,
        "serve",
        _run_serve,
        brief="Search a library in the browser, by any text, as you type.",
        goes_in="a store of an encoder that reads text; pictures come from the videos, where they still are",
        comes_out="a page at http://127.0.0.1:8000, until Ctrl-C",
        example="lvmae serve store",
    )
    command.add_argument("store")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    command.add_argument(
        "--host", default="127.0.0.1", help="any but this machine's own asks for the token (default: 127.0.0.1)"
    )
    command.add_argument(
        "--token", help="what a visitor must know; made up and printed where it is needed and not given"
    )


def _run_serve(arguments: argparse.Namespace) -> int:
    from lvmae.serving import serve

    serve(arguments.store, host=arguments.host, port=arguments.port, token=arguments.token)
    return 0


def _timeline(commands: Any) -> None:
    command = _command(
        commands,
        "timeline",
        _run_timeline,
        brief="Cut a video into chapters where it turns to something else.",
        goes_in="a store and the id of one of its videos",
        comes_out="a line a chapter; with --out WebVTT chapters, JSON, text or a picture, by the suffix",
        example="lvmae timeline store film --out film.vtt",
    )
    command.add_argument("store")
    command.add_argument("video", help="its id; `lvmae inspect store` shows some")
    command.add_argument("--out", metavar="FILE", help="ends in .vtt, .json, .txt or .png")
    number = command.add_mutually_exclusive_group()
    number.add_argument("--chapters", type=int, metavar="N", help="exactly so many")
    number.add_argument(
        "--min-seconds",
        type=float,
        metavar="S",
        help="least length of a chapter (default: 10, or a fortieth of the video)",
    )


def _run_timeline(arguments: argparse.Namespace) -> int:
    from lvmae.timeline import check_format, timeline

    if arguments.out:
        check_format(arguments.out)
    found = timeline(arguments.store, arguments.video, chapters=arguments.chapters, min_seconds=arguments.min_seconds)
    if arguments.out:
        found.save(arguments.out)
        print(f"{arguments.out}: {len(found.chapters)} chapters")
    else:
        print(found.to_text())
    return 0


def _demo(commands: Any) -> None:
    command = _command(
        commands,
        "demo",
        _run_demo,
        brief="Make a corpus of long videos and walk the whole path on it.",
        goes_in="nothing",
        comes_out="videos, store, run, representations, a table and report.html in one folder",
        example="lvmae demo --out demo",
    )
    command.add_argument("--out", default="demo", help="folder for everything (default: demo)")
    command.add_argument(
        "--videos", type=int, help="how many short videos (default: the demo's own number, 48 at least)"
    )
    command.add_argument("--seed", type=int, default=0)


def _run_demo(arguments: argparse.Namespace) -> int:
    from lvmae.demo import run_demo

    return run_demo(arguments.out, videos=arguments.videos, seed=arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
