"""How many labels a person has to give: the videos that `lvmae suggest` names, against videos drawn at random.

    python benchmarks/labelling.py --out benchmarks/results/labelling.json

An archive is made, without videos: 1,200 of 12 kinds, the commonest 15 times as frequent as the rarest, each kind of three
sorts that look different. 800 are to be labelled and 400 test. From 20 random labels on, 20 more are given a round: those
that a probe kept on the labels so far (`fit_probe`, `suggest`) names, or random ones. Asked is with how many labels the
probe reaches 95 % of the accuracy that it has with all 800. Takes about two minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmae.evaluation import Task, fit_probe, predict, suggest
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord

KINDS, SORTS, DIM, VIDEOS, POOL = 12, 3, 32, 1200, 800
FIRST, MORE, MOST = 20, 20, 320
AIM = 0.95


def archive(folder: Path, seed: int) -> tuple[EmbeddingStore, NDArray[np.int64]]:
    """A store of 1,200 videos of 8 segments, and the kind of each."""
    rng = np.random.default_rng([seed, 7])
    often = 1 / np.arange(1, KINDS + 1) ** 1.1
    kinds = rng.choice(KINDS, size=VIDEOS, p=often / often.sum())
    middles = rng.normal(size=(KINDS, SORTS, DIM))
    manifest = Manifest(f"made-{seed}", DIM, {"kind": "fixed", "seconds": 5.0}, {"name": "made"})
    starts = 5.0 * np.arange(8)
    with StoreWriter(folder / f"store-{seed}", manifest) as writer:
        for number, kind in enumerate(kinds.tolist()):
            own = middles[kind, int(rng.integers(SORTS))] + 0.6 * rng.normal(size=DIM)
            tokens = own + 1.5 * rng.normal(size=(8, DIM))
            writer.add(VideoRecord(f"v{number:04d}", "", 40.0, starts, starts + 5, tokens))
    return EmbeddingStore.open(folder / f"store-{seed}"), kinds


def accuracy(store: EmbeddingStore, kinds: NDArray[np.int64], rows: list[int]) -> tuple[float, Any]:
    """Of the test videos, by a probe kept on the labels of some rows; and the probe."""
    seen = sorted({int(kinds[row]) for row in rows})
    targets = np.array([seen.index(int(kinds[row])) for row in rows])
    classes = tuple(f"kind-{kind:02d}" for kind in seen)
    task = Task("kinds", "classification", tuple(f"v{row:04d}" for row in rows), targets, classes)
    kept = fit_probe(store, task, readouts=["mean"])
    said = predict(kept, store).answers()
    right = [said[row] == f"kind-{int(kinds[row]):02d}" for row in range(POOL, VIDEOS)]
    return 100 * float(np.mean(right)), kept


def curve(store: EmbeddingStore, kinds: NDArray[np.int64], seed: int, how: str) -> list[tuple[int, float]]:
    """(labels, accuracy) of one way to choose."""
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(POOL).tolist()
    rows, found = order[:FIRST], []
    while True:
        reached, kept = accuracy(store, kinds, rows)
        found.append((len(rows), reached))
        if len(rows) >= MOST:
            return found
        if how == "random":
            rows = order[: len(rows) + MORE]
            continue
        test = [f"v{row:04d}" for row in range(POOL, VIDEOS)]
        kept = replace(kept, labelled=tuple(f"v{row:04d}" for row in rows))
        named = suggest(kept, store, MORE, by=how, labelled=test)
        rows = [*rows, *(int(one.id[1:]) for one in named)]


def main() -> None:
    """Runs all seeds and ways, prints a table and writes every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    ways = ("random", "margin")
    curves: dict[str, list[list[tuple[int, float]]]] = {way: [] for way in ways}
    whole = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            store, kinds = archive(Path(folder), seed)
            whole.append(accuracy(store, kinds, list(range(POOL)))[0])
            for way in ways:
                curves[way].append(curve(store, kinds, seed, way))
    aims = [AIM * value for value in whole]
    print(
        f"All {POOL} labels: {np.mean(whole):.1f} % of {VIDEOS - POOL} test videos; 95 % of it: {np.mean(aims):.1f} %."
    )
    needed: dict[str, list[int | None]] = {}
    for way in ways:
        needed[way] = [
            next((n for n, reached in one if reached >= aim), None) for one, aim in zip(curves[way], aims, strict=True)
        ]
        at = {n: np.mean([dict(one)[n] for one in curves[way]]) for n in (20, 60, 100, 160, 220, 320)}
        shown = ", ".join(f"{n}: {value:.1f}" for n, value in at.items())
        print(f"{way:8}  labels to 95 %: {needed[way]}  accuracy by labels: {shown}")
    if arguments.out:
        result = {"whole": whole, "needed": needed, "curves": curves, "seconds": round(time.monotonic() - began, 1)}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
