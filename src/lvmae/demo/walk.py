"""The whole path on a made corpus: embed -> pretrain -> represent -> probe -> interpret -> report.

Each step is a command line, printed and then run in this process, so that the libraries are loaded once. The same steps run
with an untrained model too: it shows what a probe finds without any learning. Every step resumes an earlier call.

Out, in one folder: videos, labels and captions (`lvmae.demo.corpus`), store, run, reps,
probe.json, table.json and report.html; run-untrained, reps-untrained and probe-untrained.json are the untrained model's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lvmae.cli.steps import run_step
from lvmae.demo.corpus import STORIES, Corpus, make_corpus

if TYPE_CHECKING:
    from lvmae.evaluation import ProbeTable

VIDEOS = 72
_PROBES = ("--probe", "linear", "--probe", "knn", "--readout", "mean")  # seconds; the attentive one takes minutes
# One epoch at a rate that changes nothing: the weights the real run begins with, as a run like any other.
_UNTRAINED = ("epochs=1", "warmup_epochs=0", "base_lr=1e-12")


def run_demo(
    out: str | os.PathLike[str] = "demo",
    *,
    videos: int | None = None,
    film_minutes: float = 25.0,
    seed: int = 0,
    seeds: int = 5,
    settings: Sequence[str] = (),
) -> int:
    """Makes the corpus in `out`, runs every step, and prints the table and the path of the report.

    Args:
        out: folder for everything.
        videos: short videos in the corpus; None for the demonstration's own number.
        film_minutes: length of the one long video.
        seed: of the corpus.
        seeds: repetitions of each probe.
        settings: of pre-training, as `lvmae pretrain --set` takes them.

    Returns:
        The exit code 0.

    Raises:
        InputError: where the corpus cannot be made.
        StepFailedError: where a step fails.
    """
    began = time.monotonic()
    root = Path(out)
    videos = VIDEOS if videos is None else videos
    print(f"Filming {videos} stories and a film of {film_minutes:g} minutes: {root / 'videos'}", flush=True)
    corpus = make_corpus(root, videos=videos, seed=seed, film_minutes=film_minutes)
    print(_storyline(corpus), flush=True)

    store, page = root / "store", root / "report.html"
    run_step("embed", corpus.videos, "--out", store)
    run_step("inspect", store)
    trained = _learn(corpus, store, settings=settings, probing=["--raw", store, "--seeds", seeds, *_PROBES])
    untrained = _learn(
        corpus, store, settings=[*settings, *_UNTRAINED], probing=["--seeds", seeds, *_PROBES], suffix="-untrained"
    )
    table = _beside(trained, untrained)
    (root / "table.json").write_text(table.to_json(), encoding="utf-8")
    told = ["--captions", corpus.captions, "--probe-table", root / "table.json"]
    run_step("interpret", root / "run", store, *told, "--out", page)

    print(
        f"\nWhich of {len(STORIES)} orders a video tells its events in, read from frozen features:\n\n{table.to_text()}\n"
    )
    print(_reconstruction(root / "run"))
    print(f"report: {page.resolve()}")
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def _learn(
    corpus: Corpus, store: Path, *, settings: Sequence[str], probing: Sequence[object], suffix: str = ""
) -> ProbeTable:
    """pretrain -> represent -> probe, in folders ending in `suffix`; the table of the last."""
    from lvmae.evaluation import ProbeTable  # not above: the processes that film import this package, and need no torch

    run, reps, table = (corpus.root / f"{name}{suffix}" for name in ("run", "reps", "probe"))
    table = table.with_suffix(".json")
    changed = [part for setting in settings for part in ("--set", setting)]
    run_step("pretrain", store, "--out", run, "--recipe", "tiny", *changed)
    run_step("represent", run, store, "--out", reps)
    run_step("probe", reps, "--labels", corpus.labels, *probing, "--out", table)
    return ProbeTable.from_json(table.read_text(encoding="utf-8"))


def _beside(trained: ProbeTable, untrained: ProbeTable) -> ProbeTable:
    """The rows of the untrained model between the raw embeddings' and the trained one's; all on the same splits."""
    floor = tuple(replace(row, features=f"{row.features}, untrained") for row in untrained.rows)
    last = [row for row in trained.rows if row.features == untrained.rows[0].features]
    return replace(trained, rows=(*(row for row in trained.rows if row not in last), *floor, *last))


def _reconstruction(run: Path) -> str:
    """What pre-training reached on the videos it held out, and what has to be known of the table above it."""
    from lvmae.pretraining import read_metrics, verdict

    said = "Pre-training saw no labels, but most of the videos that the probes are tested on.\n"
    final = read_metrics(run)[-1]
    return said + f"{verdict(final)}\n"


def _storyline(corpus: Corpus) -> str:
    orders = "\n".join(f"  {label}: {' > '.join(order)}" for label, order in STORIES.items())
    minutes = sum(plan.seconds for plan in corpus.plans) / 60
    return (
        f"{len(corpus.plans)} videos, {minutes:.0f} minutes. Every story shows the same events, each once, for a random time, with "
        f"other things before, between and after; its class is their order:\n{orders}"
    )
