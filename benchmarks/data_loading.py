"""Random windows from a store against one `torch.load` a segment, the released code's layout. Prints JSON.

    python benchmarks/data_loading.py --out benchmarks/results/data_loading.json

The loader of pre-training is timed too, on the windows of the paper's recipe.

Both sides give float32 windows of the same segments. The store is written and opened first, its memory map built; the .pt files are
written just before they are read, so that both sides read from the page cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lvmae.pretraining.data import TrainingData
from lvmae.recipes import named
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, as_float32


def write_store(path: Path, videos: int, segments: int, dim: int) -> EmbeddingStore:
    """A store of random unit vectors."""
    rng = np.random.default_rng(0)
    starts = np.arange(segments) * 5.0
    with StoreWriter(path, Manifest("benchmark", dim, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        for number in range(videos):
            values = rng.standard_normal((segments, dim), dtype=np.float32)
            values /= np.linalg.norm(values, axis=1, keepdims=True)
            writer.add(VideoRecord(f"v{number}", "", segments * 5.0, starts, starts + 5, values))
    return EmbeddingStore.open(path)


def loader_rate(store: EmbeddingStore, *, as_rows: bool) -> dict[str, float]:
    """Windows of the paper's recipe that one loader process makes ready, masked and planned, a second."""
    recipe = named("paper").with_settings({"val_fraction": 0, "num_workers": 0, "epochs": 6})
    data = TrainingData([store], recipe)
    steps = data.steps_per_epoch
    batches = data.batches(0, 0, 1, torch.device("cpu"), filled_up=True, as_rows=as_rows)
    for _ in range(steps):  # what is made once
        next(batches)
    began, segments = time.process_time(), 0
    for _ in range(4 * steps):
        segments += int(next(batches).plan.seen.sum()) * 2  # half of them are visible
    seconds = time.process_time() - began
    batches.close()
    windows = 4 * len(data.windows)
    return {"windows": round(windows / seconds), "segments_a_window": round(segments / windows, 1)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--segments", type=int, default=210)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--window", type=int, default=30)
    parser.add_argument("--windows", type=int, default=20_000, help="windows read from the store")
    parser.add_argument("--file-windows", type=int, default=300, help="windows read from .pt files")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        store = write_store(Path(folder) / "store", arguments.videos, arguments.segments, arguments.dim)
        wrote = time.perf_counter() - began
        began = time.perf_counter()
        store.embeddings(0)
        mapped = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(folder).glob("store/data/*"))

        videos = rng.integers(arguments.videos, size=arguments.windows)
        starts = rng.integers(arguments.segments - arguments.window + 1, size=arguments.windows)
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            for video, start in zip(videos.tolist(), starts.tolist(), strict=True):
                as_float32(store.embeddings(video, start, start + arguments.window))
            rates.append(arguments.windows / (time.perf_counter() - began))

        pt = Path(folder) / "pt"
        pt.mkdir()
        chosen = list(zip(videos.tolist(), starts.tolist(), strict=True))[: arguments.file_windows]
        paths = [[pt / f"{video}_{start + offset}.pt" for offset in range(arguments.window)] for video, start in chosen]
        for (video, start), files in zip(chosen, paths, strict=True):
            window = torch.from_numpy(store.embeddings(video, start, start + arguments.window).astype(np.float32))
            for offset, file in enumerate(files):
                torch.save(window[offset].clone(), file)
        began = time.perf_counter()
        for files in paths:
            torch.stack([torch.load(file, weights_only=True) for file in files])
        file_rate = arguments.file_windows / (time.perf_counter() - began)

        loaders = {"as_rows": loader_rate(store, as_rows=True), "with_float16_rows": loader_rate(store, as_rows=False)}
    result = {
        "benchmark": "data_loading",
        "machine": {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__},
        "store": {
            "videos": arguments.videos,
            "segments": arguments.segments,
            "dim": arguments.dim,
            "mebibytes": size >> 20,
        },
        "write_store_seconds": round(wrote, 2),
        "first_map_seconds": round(mapped, 2),
        "store_windows_per_second": round(float(np.median(rates))),
        "torch_load_windows_per_second": round(file_rate, 1),
        "ratio": round(float(np.median(rates)) / file_rate, 1),
        "loader": {
            "recipe": "paper, batches of 128, filled up, one process; the store in the page cache, similarities in the cache",
            "windows_per_second_of_cpu_time": loaders,
        },
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
