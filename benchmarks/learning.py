"""What pre-training is worth where pooling is worth nothing: procedures that differ only in how their steps are arranged.

    python benchmarks/learning.py --out benchmarks/results/learning.json
    python benchmarks/learning.py --corpus my_module:my_corpus --out mine.json      # your own (benchmarks/corpora.py)

Three tasks (`lvmae.demo.procedures`): the order of six steps, the pattern of three steps that come twice each, and whether
the last step is the first one again. A video's embeddings as a set are the same in every class, which is checked here
again. LV-MAE is pre-trained on a pool of 3,000 videos without labels; then the same labels, 1 %, 10 % and all of 600 a
task, go to linear and attentive probes on raw embeddings, on an untrained and on the trained LV-MAE, and to a
Transformer and a Mamba trained end to end. 600 test videos a task. A seed draws the labels and the initial weights; the
pre-training has seeds of its own. The epoch is chosen on 200 further videos, whatever the share of labels.

Every cell is a file in --work: rerun the same command to resume. Prints JSON; draws FILE.png and FILE.svg beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process a core: the models are too small to share

import numpy as np
import torch
from matplotlib.figure import Figure

from corpora import load_corpus, write_corpus
from lvmae.cli.command import key_values
from lvmae.demo.procedures import CLASSES, MadeUp, Photographs, Procedures, Source, make_procedures, video
from lvmae.evaluation import ProbeSettings, probe
from lvmae.files.cache import cache_folder
from lvmae.pretraining import pretrain, read_metrics
from lvmae.progress import progress
from lvmae.representations import represent

Tasks = dict[str, dict[str, int]]
"""Source -> task -> how many classes it has."""

SOURCES: dict[str, Callable[[], Source]] = {"photographs": Photographs, "made-up": MadeUp}
FRACTIONS = (0.01, 0.1, 1.0)
REGULARISED = (
    "regularised"  # linear models of scikit-learn, their strength chosen on val, on the mean and on mean and deviation
)
UNTRAINED = "untrained"

# Tuned on `made-up`, on its val videos and two seeds: see docs/learning.md.
SETTINGS: dict[str, Any] = {
    "layers": 3, "heads": 4, "decoder_width": 64, "decoder_layers": 1, "decoder_heads": 4, "max_segments": 64, "min_seconds": 50,
    "mask": "random", "mask_ratio": 0.5, "batch_size": 32, "base_lr": 0.008, "epochs": 40, "warmup_epochs": 3, "val_fraction": 0.05,
    "validate_every": 10, "checkpoint_minutes": 2,
}  # fmt: skip
# The weights that a run begins with, as a run like any other.
STANDING_STILL = {"epochs": 1, "warmup_epochs": 0, "base_lr": 1e-12}
# The end-to-end models make fewer steps than by default on the few labels, which they have learnt by heart long before.
PROBING = ProbeSettings(baseline_min_steps=300)
# The paper's rate of the linear probe hardly moves one of width 128; this is ours, for standardized features.
STANDARDIZED = replace(PROBING, linear_lr=1e-2)


@dataclass(frozen=True)
class Cell:
    """One training or one row of probes. `features` is "raw", "untrained" or the seed of a pre-training."""

    source: str
    features: str
    family: str = ""
    probes: tuple[str, ...] = ()
    fraction: float = 1.0

    @property
    def name(self) -> str:
        if not self.family:
            return f"{self.source}_{self.features}"
        return "_".join([self.source, self.features, self.family, *self.probes, f"{self.fraction:g}"])


def cells(tasks: Tasks, pretrainings: int) -> list[tuple[Cell, str | None]]:
    """All cells in the order they are to run, what says most first, each with the name of the one it waits for."""
    frozen = ("linear", "linear-standardized", "attentive", REGULARISED)

    def probed(source: str, features: str, *probes: str, after: str | None = None) -> list[tuple[Cell, str | None]]:
        return [(Cell(source, features, task, probes, f), after) for task in tasks[source] for f in FRACTIONS]

    def learnt(source: str, features: str) -> list[tuple[Cell, str | None]]:
        return [(Cell(source, features), None), *probed(source, features, *frozen, after=f"{source}_{features}")]

    listed: list[tuple[Cell, str | None]] = []
    for source in tasks:
        listed += [*learnt(source, "seed-0"), *learnt(source, UNTRAINED), *probed(source, "raw", "transformer")]
        listed += [*probed(source, "raw", "linear", "attentive", REGULARISED), *probed(source, "raw", "mamba")]
        listed += [cell for seed in range(1, pretrainings) for cell in learnt(source, f"seed-{seed}")]
    return listed


def run(cell: Cell, work: Path, seeds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One cell, from its beginning or from where it was stopped; its result as it is written to its file."""
    corpus = Procedures(work / cell.source)
    reps = work / "reps" / f"{cell.source}_{cell.features}"
    began = time.monotonic()
    if not cell.family:
        still = cell.features == UNTRAINED
        changed = {**SETTINGS, **settings} | (
            STANDING_STILL if still else {"seed": int(cell.features.removeprefix("seed-"))}
        )
        trained = pretrain(corpus.pool, work / "runs" / reps.name, recipe="tiny", settings=changed)
        represent(trained, corpus.videos, reps)
        last = read_metrics(trained)[-1]
        score = last["score"]
        found = {"step": last["step"], "score": score}
        found |= {f"{of}_score": last[f"{of}_{score}"] for of in ("val", "interpolation", "mean")}
    else:
        tables = [
            probe(
                corpus.videos if cell.features == "raw" else reps,
                corpus.labels(cell.family),
                probes=("linear",) if name == REGULARISED else (name,),
                seeds=seeds,
                label_fraction=cell.fraction,
                **_how(name),
            ).to_dict()
            for name in cell.probes
        ]
        for name, one in zip(cell.probes, tables, strict=True):
            if name == REGULARISED:
                for row in one["rows"]:
                    row["probe"] = row["probe"].replace("linear", REGULARISED)
        found = {"rows": [row for table in tables for row in table["rows"]], "counts": tables[0]["counts"]}
    result = {**asdict(cell), **found, "seconds": round(time.monotonic() - began, 1)}
    path = work / "cells" / f"{cell.name}.json"
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result))
    beside.replace(path)
    return result


def _how(probe: str) -> dict[str, Any]:
    """The protocol of a row: the paper's letter, or for the regularised ones that of one's own labels."""
    if probe == REGULARISED:
        return {"protocol": "standard", "readouts": ("mean", "mean+std")}
    return {"protocol": "paper", "settings": STANDARDIZED if probe == "linear-standardized" else PROBING}


def run_all(
    listed: list[tuple[Cell, str | None]],
    work: Path,
    *,
    seeds: int,
    mamba_seeds: int,
    workers: int,
    minutes: float,
    settings: Mapping[str, Any],
) -> None:
    """Every cell that has no file yet, `workers` at a time; none is begun after `minutes`."""
    (work / "cells").mkdir(parents=True, exist_ok=True)
    done = {path.stem for path in (work / "cells").glob("*.json")}
    todo = [(cell, after) for cell, after in listed if cell.name not in done]
    ends = time.monotonic() + 60 * minutes
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        progress(desc="learning", unit="cells", total=len(listed), initial=len(listed) - len(todo)) as bar,
    ):
        running: dict[Future[dict[str, Any]], str] = {}
        while todo or running:
            ready = [(cell, after) for cell, after in todo if after is None or after in done]
            for cell, after in ready[: workers - len(running)] if time.monotonic() < ends else []:
                todo.remove((cell, after))
                count = mamba_seeds if cell.probes == ("mamba",) else seeds
                running[pool.submit(run, cell, work, count, settings)] = cell.name
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                done.add(running.pop(future))
                bar.update(1)


def check_sets(source: Source, videos: int = 24) -> None:
    """Raises where two classes of one draw differ in more than the order of their rows, or not even in that."""
    for family, classes in CLASSES.items():
        for number in range(videos):
            arranged = [video(source, family, label, number=number, split="test") for label in classes]
            as_sets = {tuple(sorted(row.tobytes() for row in rows)) for rows in arranged}
            if len(as_sets) > 1 or len({rows.tobytes() for rows in arranged}) < 2:
                raise AssertionError(f"{family} {number}: the classes are not arrangements of one set")


def gathered(work: Path, listed: list[tuple[Cell, str | None]]) -> Iterator[dict[str, Any]]:
    """A row for each source, task, share of labels, features and probe, over all pre-trainings that are done."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell, _ in listed:
        path = work / "cells" / f"{cell.name}.json"
        if not cell.family or not path.exists():
            continue
        result = json.loads(path.read_text())
        features = "LV-MAE" if cell.features.startswith("seed-") else cell.features
        for row in result["rows"]:
            features = "end to end" if row["probe"] in ("transformer", "mamba") else features
            found.setdefault((cell.source, cell.family, cell.fraction, features, row["probe"]), []).append(row)
    for (source, family, fraction, features, name), rows in found.items():
        values = [value for row in rows for value in row["values"]]
        yield {
            "source": source,
            "task": family,
            "labels": fraction,
            "features": features,
            "probe": name,
            "mean": round(float(np.mean(values)), 2),
            "std": round(float(np.std(values, ddof=1)), 2) if len(values) > 1 else 0.0,
            "interval": [round(float(np.mean([row["interval"][end] for row in rows])), 2) for end in (0, 1)],
            "pretrainings": len(rows) if features == "LV-MAE" else 0,
            "values": [round(value, 2) for value in values],
            "steps": rows[0]["steps"],
        }


def pretrainings(work: Path, listed: list[tuple[Cell, str | None]]) -> list[dict[str, Any]]:
    """What is known of every pre-training that is done."""
    paths = [work / "cells" / f"{cell.name}.json" for cell, _ in listed if not cell.family]
    told = [json.loads(path.read_text()) for path in paths if path.exists()]
    keys = ("source", "features", "step", "score", "val_score", "interpolation_score", "mean_score", "seconds")
    return [{key: one.get(key) for key in keys} for one in told]


METHODS = {
    ("raw", "linear"): ("raw, linear", {"color": "0.6", "ls": ":", "marker": "."}),
    ("raw", "attentive"): ("raw, attentive", {"color": "0.6", "ls": "--", "marker": "x"}),
    ("end to end", "transformer"): ("Transformer, end to end", {"color": "tab:green", "marker": "^"}),
    ("end to end", "mamba"): ("Mamba, end to end", {"color": "tab:olive", "marker": "v"}),
    (UNTRAINED, "attentive"): ("LV-MAE untrained, attentive", {"color": "tab:orange", "ls": "--", "marker": "x"}),
    ("LV-MAE", "linear"): ("LV-MAE, linear", {"color": "tab:blue", "ls": ":", "marker": "."}),
    ("LV-MAE", "linear-standardized"): (
        "LV-MAE, linear, standardized",
        {"color": "tab:blue", "ls": "--", "marker": "s"},
    ),
    ("LV-MAE", "attentive"): ("LV-MAE, attentive", {"color": "tab:blue", "marker": "o"}),
    ("raw", f"{REGULARISED} mean+std"): ("raw, regularised", {"color": "black", "ls": "-.", "marker": "d"}),
    ("LV-MAE", f"{REGULARISED} mean+std"): ("LV-MAE, regularised", {"color": "tab:purple", "ls": "-.", "marker": "d"}),
}


def draw(rows: list[dict[str, Any]], path: Path, tasks: Tasks) -> None:
    """Accuracy against the share of labels: a panel a task, a row of them a source."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    figure = Figure(figsize=(11, 3.2 * len(sources) + 0.9), layout="constrained")
    columns = max(len(tasks[source]) for source in sources)
    grid = figure.subplots(len(sources), columns, squeeze=False, sharex=True)
    for panels, source in zip(grid, sources, strict=True):
        for panel, (family, classes) in zip(panels, tasks[source].items(), strict=False):
            panel.axhline(100 / classes, color="black", lw=0.8, label="chance")
            for number, (key, (said, style)) in enumerate(METHODS.items()):
                line = [
                    r for r in rows if (r["source"], r["task"], r["features"], r["probe"]) == (source, family, *key)
                ]
                if line:
                    at = [100 * r["labels"] * 1.04 ** (number - len(METHODS) / 2) for r in line]
                    spread = [r["std"] for r in line]
                    panel.errorbar(at, [r["mean"] for r in line], spread, label=said, capsize=2, lw=1.3, ms=5, **style)
            panel.set(xscale="log", title=f"{family} ({source})", ylim=(0, 104))
            panel.set_xticks([100 * f for f in FRACTIONS], [f"{100 * f:g} %" for f in FRACTIONS])
            panel.grid(alpha=0.25)
        panels[0].set_ylabel("accuracy, %")
    for panel in grid[-1]:
        panel.set_xlabel("share of the labels")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None)


def table(rows: list[dict[str, Any]], tasks: Tasks) -> str:
    """Markdown: a line a source and method, a column a task and share of labels."""
    every = dict.fromkeys(task for of in tasks.values() for task in of)
    columns = [(family, fraction) for family in every for fraction in FRACTIONS]
    lines = [
        "| embeddings | method | "
        + " | ".join(f"{family} {100 * fraction:g} %" for family, fraction in columns)
        + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    by = {(r["source"], r["features"], r["probe"], r["task"], r["labels"]): r for r in rows}
    methods = dict.fromkeys((r["source"], r["features"], r["probe"]) for r in rows)
    for method in sorted(
        methods, key=lambda m: (list(tasks).index(m[0]), ["raw", "end to end", UNTRAINED, "LV-MAE"].index(m[1]))
    ):
        found = [by.get((*method, *column)) for column in columns]
        figures = [f"{r['mean']:.1f} ± {r['std']:.1f}" if r else "" for r in found]
        lines.append(f"| {method[0]} | {method[1]}, {method[2]} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON; the figures and the table lie beside it")
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "learning", help="where cells, runs and stores are kept"
    )
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument(
        "--corpus",
        metavar="MODULE:FUNCTION",
        help="your own generator instead of --sources: of a seed, it gives ids, embeddings, labels per task and splits",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the recipe")
    parser.add_argument("--seeds", type=int, default=5, help="of labels and initial weights")
    parser.add_argument("--mamba-seeds", type=int, help="of the slowest baseline (default: as many)")
    parser.add_argument("--pretrainings", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after that; 0 only gathers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = key_values(arguments.set, "--set")
    if arguments.corpus:
        corpus = load_corpus(arguments.corpus)
        name = arguments.corpus.replace(":", "-").replace("/", "-")
        write_corpus(corpus, arguments.work / name, arguments.corpus)
        tasks: Tasks = {name: {task: len(set(labels.values())) for task, labels in corpus.labels.items()}}
    else:
        tasks = {source: {task: len(of) for task, of in CLASSES.items()} for source in arguments.sources}
    listed = cells(tasks, arguments.pretrainings)
    if arguments.minutes > 0:
        for name in arguments.sources if not arguments.corpus else ():
            source = SOURCES[name]()
            if not (arguments.work / name / "agreement.csv").exists():  # written last
                check_sets(source)
            make_procedures(arguments.work / name, source)
        run_all(
            listed,
            arguments.work,
            seeds=arguments.seeds,
            mamba_seeds=arguments.mamba_seeds or arguments.seeds,
            workers=arguments.workers,
            minutes=arguments.minutes,
            settings=settings,
        )
    rows = list(gathered(arguments.work, listed))
    files = [arguments.work / "cells" / f"{cell.name}.json" for cell, _ in listed]
    seconds = [json.loads(file.read_text())["seconds"] for file in files if file.exists()]
    result = {
        "benchmark": "learning",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "sources": list(tasks),
        "seeds": arguments.seeds,
        "mamba_seeds": arguments.mamba_seeds or arguments.seeds,
        "settings": {**SETTINGS, **settings},
        "probing": {key: value for key, value in asdict(PROBING).items() if key != "device"},
        "linear_standardized_lr": STANDARDIZED.linear_lr,
        "cells": len(listed),
        "cells_done": len(seconds),
        "core_minutes": round(sum(seconds) / 60),
        "pretrainings": pretrainings(arguments.work, listed),
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(rows, tasks) + "\n")
        draw(rows, arguments.out, tasks)


if __name__ == "__main__":
    main()
