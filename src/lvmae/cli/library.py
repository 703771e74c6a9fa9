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
        brief="Caption every segment with a vision LLM.",
        goes_in="a store, its videos, and an OpenAI-compatible endpoint: a local vLLM or Ollama, or a hosted one",
        comes_out="a CSV of video,start,end,text; rerun the same command to resume",
        example="lvmae caption store --out captions.csv --endpoint http://127.0.0.1:11434/v1 --model qwen2.5vl",
    )
    command.epilog = "A key is read from LVMAE_API_KEY, or else OPENAI_API_KEY, and is written nowhere."
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument("--out", required=True, help="the CSV; segments that it already holds are skipped")
    command.add_argument(
        "--endpoint", required=True, metavar="URL", help="address of the endpoint; usually ends in /v1"
    )
    command.add_argument("--model", required=True, metavar="NAME", help="name of a model that accepts images")
    command.add_argument(
        "--frames", type=int, metavar="N", help="frames per segment, evenly spaced (default: 8; paper: 20)"
    )
    command.add_argument("--frame-height", type=int, metavar="PIXELS", help="height of the images sent (default: 360)")
    command.add_argument("--prompt", help="prompt (default: asks for one or two sentences on who, where and what)")
    command.add_argument(
        "--max-tokens", type=int, metavar="N", help="maximum length of an answer; 0: the server's limit (default: 300)"
    )
    command.add_argument("--concurrency", type=int, metavar="N", help="concurrent requests (default: 4)")
    command.add_argument(
        "--requests-per-minute", type=float, metavar="N", help="maximum rate, retries included (default: no limit)"
    )
    command.add_argument("--timeout", type=float, metavar="S", help="timeout of one request (default: 120)")
    command.add_argument("--retries", type=int, metavar="N", help="retries per segment (default: 5)")
    command.add_argument(
        "--price-in", type=float, metavar="USD", help="price of a million input tokens, for the estimate"
    )
    command.add_argument(
        "--price-out", type=float, metavar="USD", help="price of a million output tokens, for the estimate"
    )
    command.add_argument("--yes", action="store_true", help="start without asking, even if there is a price")
    command.add_argument("--dry-run", action="store_true", help="only print the estimate")


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
        brief="Show what the model reconstructs for masked segments, as captions.",
        goes_in="a run, its store and optionally captions (CSV, JSONL, SRT or VTT)",
        comes_out="retrieval figures compared with simple baselines, and one HTML page that works offline",
        example="lvmae interpret run store --captions captions.csv --out report.html",
    )
    takes_trust(command)
    command.add_argument("run", help="folder of a run")
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument(
        "--captions", help="captions with columns video, start, end, text (default: the encoder's own vocabulary)"
    )
    command.add_argument("--out", required=True, help="the HTML page")
    command.add_argument(
        "--mask", default="random", help=f"{', '.join(STRATEGIES)}, or module:function (default: random)"
    )
    command.add_argument("--ratio", type=float, default=0.4, help="fraction of segments to mask (default: 0.4)")
    command.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    add_device(command)
    add_precision(command)
    command.add_argument("--probe-table", metavar="JSON", help="a table from `lvmae probe --out` to show on the page")


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
        brief="Open a page in the browser that searches a store by text, as you type.",
        goes_in="a store whose encoder reads text; pictures come from the videos, if they are still there",
        comes_out="a page at http://127.0.0.1:8000, until Ctrl-C",
        example="lvmae serve store",
    )
    takes_trust(command)
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument("--port", type=int, default=8000, help="port; 0 chooses a free one (default: 8000)")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; visitors from other machines need the token (default: 127.0.0.1)",
    )
    command.add_argument("--token", help="token for visitors (default: if one is needed, it is generated and printed)")
    command.add_argument(
        "--token-file", metavar="FILE", help="read the token from a file (default: from LVMAE_TOKEN, if set)"
    )
    command.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="allow /v1/embeddings to fetch videos from this host; repeatable (default: none)",
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
        brief="Cut a video into chapters where its content changes.",
        goes_in="a store and the id of one of its videos",
        comes_out="one line per chapter; --out writes WebVTT chapters, JSON, text or a picture, by its suffix",
        example="lvmae timeline store film --out film.vtt",
    )
    takes_trust(command)
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument("video", help="id of the video; `lvmae inspect store` shows some")
    command.add_argument("--out", metavar="FILE", help="output file, ending in .vtt, .json, .txt or .png")
    command.add_argument(
        "--spans",
        metavar="FILE",
        help="also show these spans: a table of id, start, end, label, as `lvmae predict` writes it",
    )
    number = command.add_mutually_exclusive_group()
    number.add_argument("--chapters", type=int, metavar="N", help="exact number of chapters")
    number.add_argument(
        "--min-seconds",
        type=float,
        metavar="S",
        help="minimum length of a chapter (default: 10, or 1/40 of the video)",
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
