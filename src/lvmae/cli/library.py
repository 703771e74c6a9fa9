"""Commands that read what is in videos: caption, interpret, serve, timeline."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lvmae.cli.command import add_device, add_precision, command_of, takes_trust
from lvmae.errors import InputError
from lvmae.process import is_terminal
from lvmae.sequences import STRATEGIES


def add_caption(commands: Any) -> None:
    command = command_of(
        commands,
        "caption",
        _run_caption,
        brief="Ask a vision LLM for a caption of each segment.",
        goes_in="a store, its videos, and any OpenAI-compatible endpoint: a local vLLM or Ollama, or a hosted one",
        comes_out="a CSV of video,start,end,text; rerun the same command to resume",
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
    if estimate.dollars and not arguments.yes and is_terminal(sys.stdin):
        print("Continue? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was asked")
            return 1
    summary = job.run()
    print(summary.to_text(arguments.out))
    return 1 if summary.failures else 0


def add_interpret(commands: Any) -> None:
    command = command_of(
        commands,
        "interpret",
        _run_interpret,
        brief="Read masked reconstructions back as captions.",
        goes_in="a run, its store and, if you have them, captions (CSV, JSONL, SRT or VTT)",
        comes_out="retrieval figures beside the floors, and one HTML page that needs no network",
        example="lvmae interpret run store --captions captions.csv --out report.html",
    )
    takes_trust(command)
    command.add_argument("run")
    command.add_argument("store")
    command.add_argument("--captions", help="columns video, start, end, text; without it, the encoder's own vocabulary")
    command.add_argument("--out", required=True, help="the HTML page")
    command.add_argument(
        "--mask", default="random", help=f"{', '.join(STRATEGIES)}, or module:function (default: random)"
    )
    command.add_argument("--ratio", type=float, default=0.4, help="share of segments to mask (default: 0.4)")
    command.add_argument("--seed", type=int, default=0)
    add_device(command)
    add_precision(command)
    command.add_argument("--probe-table", metavar="JSON", help="show this table of `lvmae probe --out` on the page")


def _run_interpret(arguments: argparse.Namespace) -> int:
    from lvmae.interpretation import interpret

    tables = (
        [_probe_scores(Path(arguments.probe_table), arguments.run, arguments.store)] if arguments.probe_table else []
    )

    found = interpret(
        arguments.run,
        arguments.store,
        captions=arguments.captions,
        out=arguments.out,
        ratio=arguments.ratio,
        mask=arguments.mask,
        seed=arguments.seed,
        tables=tables,
        device=arguments.device,
        precision=arguments.precision,
    )
    print(found.to_markdown())
    print(f"report: {arguments.out}")
    return 0


def _probe_scores(path: Path, run: str, store: str) -> Any:
    from lvmae.evaluation import ProbeTable
    from lvmae.report import ScoreTable

    try:
        table = ProbeTable.from_json(path.read_text())
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path} is not a table that `lvmae probe --out` wrote") from None
    _check_source(path, table.source, run, store)
    columns, rows = table.cells()
    return ScoreTable(f"Probes: {table.task}", columns, rows, " ".join(table.notes()))


def _check_source(path: Path, source: dict[str, str], run: str, store: str) -> None:
    """Refuses a table of probes on the features of another run, or on another space; older tables do not say."""
    from lvmae.runs import find_run, run_fingerprint
    from lvmae.store import EmbeddingStore

    if not source:
        return
    if source["run"] and source["run"] != run_fingerprint(find_run(run)):
        raise InputError(f"{path} is a table of probes on {source['store']}, which another run than {run} made")
    space = EmbeddingStore.open(store).space_id
    if source["space_id"] != space and not source["space_id"].startswith(f"{space}+lvmae-"):
        raise InputError(
            f"{path} is a table of probes on {source['store']}, of the space {source['space_id']}, and {store} is of {space}"
        )


def add_serve(commands: Any) -> None:
    command = command_of(
        commands,
        "serve",
        _run_serve,
        brief="Search a library in the browser, by any text, as you type.",
        goes_in="a store of an encoder that reads text; pictures come from the videos, where they still are",
        comes_out="a page at http://127.0.0.1:8000, until Ctrl-C",
        example="lvmae serve store",
    )
    takes_trust(command)
    command.add_argument("store")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    command.add_argument(
        "--host", default="127.0.0.1", help="any but this machine's own asks for the token (default: 127.0.0.1)"
    )
    command.add_argument(
        "--token", help="what a visitor must know; made up and printed where it is needed and not given"
    )
    command.add_argument(
        "--token-file", metavar="FILE", help="read it from a file (otherwise from LVMAE_TOKEN, where that is set)"
    )
    command.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="let /v1/embeddings fetch videos from this host; may be repeated (default: from none)",
    )


def _run_serve(arguments: argparse.Namespace) -> int:
    from lvmae.serving import read_token, serve

    if arguments.token and arguments.token_file:
        raise InputError("give --token or --token-file, not both")
    serve(
        arguments.store,
        host=arguments.host,
        port=arguments.port,
        token=arguments.token or read_token(arguments.token_file),
        allow_hosts=arguments.allow_host,
    )
    return 0


def add_timeline(commands: Any) -> None:
    command = command_of(
        commands,
        "timeline",
        _run_timeline,
        brief="Cut a video into chapters where it turns to something else.",
        goes_in="a store and the id of one of its videos",
        comes_out="a line a chapter; with --out WebVTT chapters, JSON, text or a picture, by the suffix",
        example="lvmae timeline store film --out film.vtt",
    )
    takes_trust(command)
    command.add_argument("store")
    command.add_argument("video", help="its id; `lvmae inspect store` shows some")
    command.add_argument("--out", metavar="FILE", help="ends in .vtt, .json, .txt or .png")
    command.add_argument(
        "--spans",
        metavar="FILE",
        help="show these spans too: a table of id, start, end, label, as `lvmae predict` writes it",
    )
    number = command.add_mutually_exclusive_group()
    number.add_argument("--chapters", type=int, metavar="N", help="exactly so many")
    number.add_argument(
        "--min-seconds",
        type=float,
        metavar="S",
        help="least length of a chapter (default: 10, or a fortieth of the video)",
    )


def _run_timeline(arguments: argparse.Namespace) -> int:
    from lvmae.files.table_files import read_table
    from lvmae.library.chapters import check_format, timeline
    from lvmae.library.spans import spans_of

    if arguments.out:
        check_format(arguments.out)
    spans = []
    if arguments.spans:
        if (arguments.out or "").lower().endswith(".vtt"):
            raise InputError("chapters in WebVTT have no place for spans; write .json, .txt or .png")
        spans = [span for span, _ in spans_of(read_table(arguments.spans), arguments.spans)]
    found = timeline(arguments.store, arguments.video, chapters=arguments.chapters, min_seconds=arguments.min_seconds)
    found = found.with_spans(spans)
    if arguments.out:
        found.save(arguments.out)
        print(f"{arguments.out}: {len(found.chapters)} chapters")
    else:
        print(found.to_text())
    return 0
