"""A probe over LVU's genre: 20 epochs of the attentive block and 30 of the linear one, at the paper's width. Prints JSON.

    python benchmarks/probe_speed.py --out benchmarks/results/probe_speed.json

3,063 videos to train on, 597 to choose the epoch, 647 to test, of 1 to 5 minutes, so 12 to 60 segments, d 1024, float16: as
many as the annotation files have, made-up features. Measured, with the paper's settings to the letter:

- `seeds`: `probe` on a store of representations, 5 seeds, as it is typed: fits side by side, one a core, one thread each;
- `one_seed`: a fit alone, on one thread and on all;
- `plain_block`: the same block as written, all queries, keys and values, with torch's own attention, over the same padded batches;
  some steps of it, beside as many of the probe, because the whole would take hours.

Wall time and CPU time in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before anything loads torch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvmae.evaluation import ProbeSettings, Task, probe
from lvmae.evaluation.features import Features, load_features
from lvmae.evaluation.fitting import fit
from lvmae.evaluation.probes import AttentiveProbe, heads_for
from lvmae.store import REPRESENTATIONS, EmbeddingStore, Manifest, StoreWriter, VideoRecord

SPLITS = {"train": 3063, "val": 597, "test": 647}
CLASSES = 4
BATCH = 16
PARTS = ["plain_block", "one_seed", "seeds"]


def write_store(path: Path, dim: int) -> EmbeddingStore:
    """Representations of as many videos as genre has."""
    rng = np.random.default_rng(0)
    run = {"path": "run", "fingerprint": "none", "store": "store"}
    manifest = Manifest("benchmark", dim, {"kind": "fixed", "seconds": 5.0}, {}, kind=REPRESENTATIONS, run=run)
    with StoreWriter(path, manifest) as writer:
        for number in range(sum(SPLITS.values())):
            length = int(np.clip(rng.normal(30, 8), 12, 60))
            tokens = rng.standard_normal((length, dim), dtype=np.float32)
            tokens[:, number % CLASSES :: CLASSES] += 0.05
            starts, mean = np.arange(length) * 5.0, tokens.mean(axis=0)
            writer.add(VideoRecord(f"v{number:05d}", "", 5.0 * length, starts, starts + 5, tokens, mean, mean))
    return EmbeddingStore.open(path)


class PlainBlock(nn.Module):
    """The attentive probe as the method has it: one pre-norm transformer block over [CLS] and all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            dim, heads_for(dim), 4 * dim, 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor, cls: Tensor) -> Tensor:
        x = torch.cat([cls[:, None], tokens], dim=1)
        x = self.block(x, src_key_padding_mask=F.pad(~mask, (1, 0), value=False))
        return self.head(self.norm(x[:, 0]))  # type: ignore[no-any-return]


def timed(work: Callable[[], Any], threads: int) -> dict[str, float]:
    """Wall and CPU seconds of some work on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    torch.set_num_threads(before)
    return {name: round(value, 2) for name, value in found.items()}


def steps_of(model: nn.Module, features: Features, count: int) -> Callable[[], None]:
    """Forward, backward and Adam over `count` batches of training videos, the same for every model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    targets = torch.arange(sum(SPLITS.values())) % CLASSES

    def work() -> None:
        order = np.random.default_rng(0).permutation(SPLITS["train"])[: count * BATCH].reshape(count, BATCH)
        for rows in order:
            loss = F.cross_entropy(model(*features.batch(rows, torch.device("cpu"))), targets[torch.from_numpy(rows)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of the plain block")
    parser.add_argument("--out")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    arguments = parser.parse_args()
    cores = torch.get_num_threads()
    settings = ProbeSettings.paper(device="cpu")
    names = np.repeat(list(SPLITS), list(SPLITS.values()))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LVMAE_CACHE"] = str(Path(folder) / "cache")  # of its own: what is fitted once is kept there
        store = write_store(Path(folder) / "reps", arguments.dim)
        targets = np.arange(len(names)) % CLASSES
        task = Task("lvu/genre", "classification", tuple(store.ids), targets, tuple("abcd"), names, benchmark=True)
        features = load_features(store, np.arange(len(store)))
        found: dict[str, Any] = {
            "benchmark": "probe_speed",
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": cores,
                "load": round(os.getloadavg()[0], 1),
                "torch": torch.__version__,
            },
            "videos": SPLITS,
            "segments": int(store.lengths.sum()),
            "dim": arguments.dim,
        }
        if "plain_block" in arguments.parts:
            generator = torch.Generator().manual_seed(0)
            ours = AttentiveProbe(arguments.dim, CLASSES, generator, learn_cls=False)
            plain = PlainBlock(arguments.dim)
            for model in (ours, plain):
                steps_of(model, features, 2)()  # warm
            found["plain_block"] = {
                "steps": arguments.steps,
                "probe": timed(steps_of(ours, features, arguments.steps), 1),
                "as_written": timed(steps_of(plain, features, arguments.steps), 1),
            }
            found["plain_block"]["ratio_cpu"] = round(
                found["plain_block"]["as_written"]["cpu_s"] / found["plain_block"]["probe"]["cpu_s"], 1
            )
        if "one_seed" in arguments.parts:
            found["one_seed"] = {
                f"{name}, {threads} threads": timed(lambda n=name: fit(n, features, task, 0, settings), threads)  # type: ignore[misc]
                for name in ("linear", "attentive")
                for threads in sorted({1, cores})
            }
        if "seeds" in arguments.parts:
            found["seeds"] = {"seeds": arguments.seeds}
            for name in ("linear", "attentive"):
                spent = timed(lambda n=name: probe(store, task, probes=[n], seeds=arguments.seeds), cores)  # type: ignore[misc]
                found["seeds"][name] = spent | {"wall_s_a_seed": round(spent["wall_s"] / arguments.seeds, 2)}
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
