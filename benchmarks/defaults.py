"""One factor at a time: what each setting of a recipe is worth, on a corpus whose videos have a style of their own.

    python benchmarks/defaults.py --corpus corpora:styled --out benchmarks/results/defaults.json

Every cell is one pre-training from a base recipe with one thing changed, its frozen features read by logistic regression
(standardised, strength chosen on val), from the mean of the tokens and from their mean and standard deviation. The settings are
chosen on val; test is read once, for the cell that val chose, the base, the untrained model and raw embeddings. A cell that is
done is a file in --work: rerun the same command to resume. One thread; `nice` it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from corpora import load_corpus, write_corpus
from lvmae.files.cache import cache_folder
from lvmae.pretraining import pretrain, read_metrics
from lvmae.representations import represent
from lvmae.store import EmbeddingStore

BASE: dict[str, Any] = {
    "max_segments": 36, "min_seconds": 100, "epochs": 50, "warmup_epochs": 4, "batch_size": 16, "validate_every": 10,
    "log_every": 50, "checkpoint_minutes": 60, "checkpoint_every": 100000, "num_workers": 0, "val_fraction": 0.1,
}  # fmt: skip
# What changes from cell to cell, what says most first.
CELLS: list[dict[str, Any]] = [
    {}, {"center": "video"}, {"embedding_scale": 64}, {"center": "video", "embedding_scale": 64}, {"untrained": True},
    {"center": "video", "untrained": True},
    {"loss": "contrastive"}, {"center": "video", "loss": "contrastive"}, {"loss": "residual"}, {"mask": "blocks"},
    {"center": "video", "mask": "blocks"}, {"center": "video", "embedding_scale": 64, "loss": "contrastive"},
    {"embedding_scale": 1}, {"center": "store"}, {"loss": "clusters", "loss_options": ("clusters=32",)}, {"loss": "latent"},
    {"loss": "mse"}, {"layers": 4}, {"mask_ratio": 0.6}, {"mask": "semantic", "temperature": 0.1},
]  # fmt: skip
STRENGTHS = np.logspace(-4, 2, 7)


def named(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "base"


def readouts(store: EmbeddingStore) -> dict[str, NDArray[Any]]:
    """(V, ...) of each readout."""
    tokens = [np.asarray(store.embeddings(i), np.float32) for i in range(len(store))]
    mean = np.stack([rows.mean(axis=0) for rows in tokens])
    return {"mean": mean, "mean+std": np.hstack([mean, np.stack([rows.std(axis=0) for rows in tokens])])}


def accuracies(store: EmbeddingStore, corpus: Any, *, test: bool) -> dict[str, dict[str, dict[str, float]]]:
    """readout -> task -> "val" and, only where it is asked for, "test", in %."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    split = np.array([corpus.splits[id_] for id_ in store.ids])
    for readout, features in readouts(store).items():
        for task, labels in corpus.labels.items():
            label = np.array([labels.get(id_, "") for id_ in store.ids])
            parts = {name: (split == name) & (label != "") for name in ("train", "val", "test")}
            best, chosen = -1.0, None
            for strength in STRENGTHS:
                fitted = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
                fitted.fit(features[parts["train"]], label[parts["train"]])
                score = float(fitted.score(features[parts["val"]], label[parts["val"]]))
                if score > best:
                    best, chosen = score, fitted
            figures = {"val": round(100 * best, 1)}
            if test and chosen is not None:
                figures["test"] = round(100 * float(chosen.score(features[parts["test"]], label[parts["test"]])), 1)
            found.setdefault(readout, {})[task] = figures
    return found


def mean_of(figures: Mapping[str, Mapping[str, float]], split: str = "val") -> float:
    return float(np.mean([task[split] for task in figures.values()]))


def run(changed: dict[str, Any], seed: int, stores: tuple[Path, Path], work: Path, corpus: Any) -> dict[str, Any]:
    """One cell; its result is kept in a file."""
    slug = "".join(c if c.isalnum() else "-" for c in named(changed))
    path = work / "cells" / f"{slug}_{seed}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    began = time.monotonic()
    settings = {**BASE, **{key: value for key, value in changed.items() if key != "untrained"}, "seed": seed}
    if "untrained" in changed:
        settings |= {"epochs": 1, "warmup_epochs": 0, "base_lr": 1e-12}
    trained = pretrain(stores[0], work / "runs" / f"{slug}_{seed}", recipe="tiny", settings=settings)
    reps = represent(trained, stores[1], work / "reps" / f"{slug}_{seed}", device="cpu")
    final = read_metrics(trained)[-1]
    score = final["score"]
    found = {
        "changed": named(changed),
        "seed": seed,
        "score": score,
        **{name: final[f"{name}_{score}"] for name in ("val", "interpolation", "mean")},
        "read": accuracies(reps, corpus, test=True),
        "seconds": round(time.monotonic() - began, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def table(rows: list[dict[str, Any]], raw: Mapping[str, Any], tasks: list[str], tested: set[str]) -> str:
    """Markdown: val of every cell, both readouts; test of those that are to be looked at."""
    head = ["changed", "held out: model / interpolating / mean", *tasks, "mean of tasks, mean", "mean+std"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(tasks) + 2)]
    for split in ("val", "test"):
        for name in ["raw embeddings", *dict.fromkeys(row["changed"] for row in rows)]:
            if split == "test" and name not in tested:
                continue
            group = [row for row in rows if row["changed"] == name]
            read = [row["read"] for row in group] or [raw]
            best = {task: float(np.mean([r["mean+std"][task][split] for r in read])) for task in tasks}
            pooled = [float(np.mean([mean_of(r[readout], split) for r in read])) for readout in ("mean", "mean+std")]
            held = (
                " / ".join(f"{np.mean([row[of] for row in group]):.3f}" for of in ("val", "interpolation", "mean"))
                if group
                else ""
            )
            score = f"{group[0]['score'].replace('_', ' ')} {held}" if group else ""
            cells = [f"{name}, {split} ({len(group)} seeds)" if group else f"{name}, {split}", score]
            cells += [f"{best[task]:.1f}" for task in tasks] + [f"{value:.1f}" for value in pooled]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the cells, or what is left of them within --minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="corpora:styled", help="module:function that makes it from a seed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=cache_folder() / "defaults")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after that; 0 only gathers")
    parser.add_argument("--base", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the base")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    BASE.update(pair.split("=", 1) for pair in arguments.base)
    corpus = load_corpus(arguments.corpus)
    write_corpus(corpus, arguments.work, arguments.corpus)
    stores = arguments.work / "pool", arguments.work / "videos"
    ends = time.monotonic() + 60 * arguments.minutes
    rows = []
    for seed in range(arguments.seeds):
        for changed in CELLS:
            if time.monotonic() > ends:
                break
            rows.append(run(changed, seed, stores, arguments.work, corpus))
            print(
                rows[-1]["changed"],
                seed,
                rows[-1]["seconds"],
                mean_of(rows[-1]["read"]["mean"]),
                mean_of(rows[-1]["read"]["mean+std"]),
                flush=True,
            )
    raw = accuracies(EmbeddingStore.open(stores[1]), corpus, test=True)
    names = [name for name in dict.fromkeys(row["changed"] for row in rows) if "untrained" not in name]
    chosen = max(
        names, key=lambda n: np.mean([mean_of(row["read"]["mean+std"]) for row in rows if row["changed"] == n])
    )
    text = table(
        rows,
        raw,
        list(corpus.labels),
        {"raw embeddings", "base", "untrained=True", "center=video, untrained=True", chosen},
    )
    print(text)
    if arguments.out:
        result = {
            "benchmark": "defaults",
            "corpus": arguments.corpus,
            "base": BASE,
            "chosen": chosen,
            "raw": raw,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
