"""`lvmae pretrain` and `lvmae represent` end to end, on a made store of films. Prints JSON.

    python benchmarks/pretraining.py                                     # on a GPU: the paper's recipe, 4,000 films of 5-30 minutes
    python benchmarks/pretraining.py --videos 60 --epochs 3 --dim 64 --set layers=2 --set heads=4    # anywhere, in small

The rate is that of the steps after the first epoch, read from the curves as they grow: starting, compiling and recording are
`seconds_before`, and are left out of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvmae.pretraining import read_metrics
from lvmae.recipes import named
from lvmae.representations import represent
from lvmae.runs import load_run_encoder
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord


def write_store(path: Path, videos: int, dim: int, shortest: int, longest: int) -> EmbeddingStore:
    """Films of random segments: what they hold does not change how long anything takes."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((longest * 4, dim), dtype=np.float32).astype(np.float16)
    with StoreWriter(path, Manifest("made", dim, {"kind": "fixed", "seconds": 5.0}, {"name": "made"})) as writer:
        for number in range(videos):
            length = int(rng.integers(shortest, longest + 1))
            first = int(rng.integers(len(pool) - length))
            starts = np.arange(length) * 5.0
            writer.add(
                VideoRecord(f"v{number:06d}", "", length * 5.0, starts, starts + 5, pool[first : first + length])
            )
    return EmbeddingStore.open(path)


def pretrained(store: Path, out: Path, videos: int, settings: list[str], extra: list[str]) -> dict[str, Any]:
    """Runs the command, and looks at the curves while it does."""
    given = dict(pair.split("=", 1) for pair in settings)
    recipe = named("paper").with_settings(given)
    trained = videos - round(videos * recipe.val_fraction)
    steps = -(-trained // recipe.batch_size)
    command = [sys.executable, "-m", "lvmae", "pretrain", str(store), "--out", str(out), "--recipe", "paper", *extra]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *(word for pair in settings for word in ("--set", pair))])
    seen: list[tuple[int, float]] = []
    while process.poll() is None:
        time.sleep(0.05)
        step = max((r["step"] for r in read_metrics(out) if "lr" in r), default=0)
        if step >= steps and (not seen or step > seen[-1][0]):
            seen.append((step, time.perf_counter()))
    if process.returncode:
        raise SystemExit(f"lvmae pretrain failed with exit code {process.returncode}")
    (first, start), (last, end) = seen[0], seen[-1]
    return {
        "steps_timed": last - first,
        "videos_per_second": round((last - first) * trained / steps / (end - start), 1) if last > first else None,
        "seconds_before": round(start - began, 1),
        "seconds_in_all": round(time.perf_counter() - began, 1),
        "final_loss": read_metrics(out)[-1]["loss"],
    }


def encoded(run: Path, store: EmbeddingStore, out: Path, device: torch.device) -> dict[str, Any]:
    """`represent` end to end, and its encoder alone, on what is on the device already."""
    began = time.perf_counter()
    represent(run, store, out, device=str(device))
    seconds = time.perf_counter() - began
    model = load_run_encoder(run)
    module: torch.nn.Module = model
    module.to(device)
    lengths = [128] * 64
    rows = torch.nn.functional.normalize(torch.randn(1, sum(lengths), store.dim, device=device), dim=-1)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        model(rows, lengths=lengths)
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            model(rows, lengths=lengths)
        if device.type == "cuda":
            torch.cuda.synchronize()
        alone = time.perf_counter() - start
    return {
        "segments": int(store.lengths.sum()),
        "segments_per_second": round(float(store.lengths.sum()) / seconds),
        "segments_per_second_on_the_device": round(5 * sum(lengths) / alone),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4000)
    parser.add_argument("--minutes", type=float, nargs=2, default=[5, 30], help="shortest and longest film")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--represented", type=int, default=400, help="films that are represented")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shortest, longest = (max(2, round(minutes * 12)) for minutes in arguments.minutes)
    settings = [f"epochs={arguments.epochs}", "warmup_epochs=1", "validate_every=1000", "watch_every=0", *arguments.set]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        began = time.perf_counter()
        write_store(place / "store", arguments.videos, arguments.dim, shortest, longest)
        wrote = time.perf_counter() - began
        small = write_store(place / "small", arguments.represented, arguments.dim, shortest, longest)
        training = pretrained(place / "store", place / "run", arguments.videos, settings, [])
        result = {
            "benchmark": "pretraining",
            "machine": {"torch": torch.__version__, "device": device.type},
            "films": arguments.videos,
            "dim": arguments.dim,
            "write_store_seconds": round(wrote, 1),
            "pretrain": training,
            "represent": encoded(place / "run", small, place / "reps", device),
        }
    if device.type == "cuda":
        result["machine"]["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
