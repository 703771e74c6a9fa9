"""Why LV-MAE loses where it does on benchmarks/learning.py: what its features hold that a probe does not get out.

    python benchmarks/learning.py --sources photographs --minutes 30
    python benchmarks/learning_why.py --out benchmarks/results/learning_why.json

Uses the corpus and the first pre-training that learning.py left in --work, and asks three things of them:

- linear: a logistic regression on the mean of the tokens, on [CLS] and on both, its strength chosen on val, all labels.
- tokens: the end-to-end Transformer on the frozen tokens instead of raw embeddings, for agreement.
- pool: agreement with a pre-training in whose pool all videos of that task agree, so that it is a rule worth learning.

Prints JSON. What is made for it (a store of tokens, a run, its representations) is kept in --work.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import learning
from lvmae.demo.procedures import CLASSES, Procedures, video
from lvmae.evaluation import probe
from lvmae.files.cache import cache_folder
from lvmae.pretraining import pretrain
from lvmae.representations import represent
from lvmae.store import EMBEDDINGS, EmbeddingStore, StoreWriter

SOURCE = "photographs"
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)


def linear(work: Path, seeds: int) -> dict[str, Any]:
    """Test accuracy in % by task and feature; nothing is drawn, so there are no seeds."""
    reps = EmbeddingStore.open(work / "reps" / f"{SOURCE}_seed-0")
    pooled = {"mean": reps.mean_features, "cls": reps.cls_features}
    pooled["both"] = np.hstack([pooled["mean"], pooled["cls"]])
    found: dict[str, Any] = {}
    for family in CLASSES:
        with Procedures(work / SOURCE).labels(family).open(newline="") as file:
            rows = list(csv.DictReader(file))
        places = {s: [reps.index(r["id"]) for r in rows if r["split"] == s] for s in ("train", "val", "test")}
        labels = {s: [r["label"] for r in rows if r["split"] == s] for s in places}
        found[family] = {}
        for name, values in pooled.items():
            fitted = [
                make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(
                    values[places["train"]], labels["train"]
                )
                for strength in STRENGTHS
            ]
            best = max(fitted, key=lambda model: model.score(values[places["val"]], labels["val"]))
            found[family][name] = round(100 * best.score(values[places["test"]], labels["test"]), 1)
    return found


def tokens(work: Path, seeds: int) -> dict[str, Any]:
    """The Transformer's test accuracies on frozen tokens, by share of labels."""
    reps, out = EmbeddingStore.open(work / "reps" / f"{SOURCE}_seed-0"), work / f"why-{SOURCE}-tokens"
    with StoreWriter(out, replace(reps.manifest, kind=EMBEDDINGS, run=None)) as writer:
        for record in reps:
            if record.id not in writer.done:
                writer.add(replace(record, cls=None, mean=None))
    return agreement(work, out, "transformer", seeds)


def pool(work: Path, seeds: int) -> dict[str, Any]:
    """The attentive probe's test accuracies after the other pre-training, by share of labels."""
    corpus, source = Procedures(work / SOURCE), learning.SOURCES[SOURCE]()
    before, ruled = EmbeddingStore.open(corpus.pool), work / f"why-{SOURCE}-rule-pool"
    with StoreWriter(ruled, before.manifest) as writer:
        for record in before:
            family, split, number = record.id.split("-")
            if record.id in writer.done:
                continue
            if family == "agreement":
                rows = video(source, family, "agrees", number=int(number), split=split)
                writer.add(replace(record, embeddings=rows))
            else:
                writer.add(record)
    run = pretrain(ruled, work / f"why-{SOURCE}-rule-run", recipe="tiny", settings={**learning.SETTINGS, "seed": 0})
    reps = work / f"why-{SOURCE}-rule-reps"
    represent(run, corpus.videos, reps)
    return agreement(work, reps, "attentive", seeds)


def agreement(work: Path, features: Path, name: str, seeds: int) -> dict[str, Any]:
    """Mean, standard deviation and each seed's figure, by share of labels."""
    found = {}
    for fraction in learning.FRACTIONS:
        (row,) = probe(
            features,
            Procedures(work / SOURCE).labels("agreement"),
            probes=(name,),
            seeds=seeds,
            label_fraction=fraction,
            settings=learning.PROBING,
        ).rows
        found[f"{100 * fraction:g} %"] = {
            "mean": round(row.mean, 1),
            "std": round(row.std, 1),
            "values": [round(value, 1) for value in row.values],
        }
    return found


ASKED: dict[str, Callable[[Path, int], dict[str, Any]]] = {"linear": linear, "tokens": tokens, "pool": pool}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=cache_folder() / "learning", help="that of benchmarks/learning.py")
    parser.add_argument("--ask", nargs="+", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--seeds", type=int, default=5, help="of labels and initial weights")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {"benchmark": "learning_why", "source": SOURCE, "seeds": arguments.seeds}
    found |= {name: ASKED[name](arguments.work, arguments.seeds) for name in arguments.ask}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
