"""One training step, packed, against the method as it is usually run: padded to 256 tokens, plain softmax attention.

Both models have the same weights and see the same windows; forward, backward and optimiser are timed in one run, taking turns.
Workloads: `films` draws the paper's durations from videos of 5-30 minutes, `clips` from videos of 1-3 minutes.

    python benchmarks/training_step.py                                    # d 1024, 4 + 1 layers, batch 16, on the CPU
    python benchmarks/training_step.py --device cuda --compile --batch 256 --no-reference  # all 32 + 8 layers, bf16

Prints JSON; `--out FILE` writes it too. `activations` is what a forward pass keeps for the backward pass (storages counted
once, parameters left out); `peak` is how far a whole step rises above weights, gradients and optimiser state.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvmae.model import LVMAEConfig, LVMAEForPreTraining

SEGMENT_SECONDS = 5
WORKLOADS = {"films": (5 * 60, 30 * 60), "clips": (60, 3 * 60)}  # shortest and longest video, seconds
PAPER_VIDEOS = 150 * 60_000
PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12}


# -- the reference: written from the method, padding included


class ReferenceAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, places, width = x.shape
        q, k, v = self.qkv(x).view(batch, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5 + bias
        mixed = scores.softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, places, width))
        return out


class ReferenceMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class ReferenceBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = ReferenceAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = ReferenceMLP(width, inner)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), bias)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Reference(nn.Module):
    """The masked autoencoder on 256 places whatever the lengths; padded and masked places are masked out of attention.

    Its parameters have the names of `LVMAEForPreTraining`'s, whose weights it takes.
    """

    positions: Tensor
    decoder_positions: Tensor

    def __init__(self, config: LVMAEConfig) -> None:
        super().__init__()
        d, e = config.hidden_size, config.decoder_hidden_size
        self.lvmae = nn.Module()
        self.lvmae.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.lvmae.blocks = nn.ModuleList(
            ReferenceBlock(d, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.lvmae.norm = nn.LayerNorm(d, eps=1e-6)
        self.decoder = nn.Module()
        self.decoder.embed = nn.Linear(d, e)
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, e))
        self.decoder.blocks = nn.ModuleList(
            ReferenceBlock(e, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder.norm = nn.LayerNorm(e, eps=1e-6)
        self.decoder.pred = nn.Linear(e, d)
        self.register_buffer("positions", sincos(config.max_segments, d), persistent=False)
        self.register_buffer("decoder_positions", sincos(config.max_segments, e), persistent=False)

    def forward(self, embeddings: Tensor, real: Tensor, masked: Tensor) -> Tensor:
        """embeddings (B,256,D), real and masked (B,256) bool -> the loss."""
        batch = len(embeddings)
        encoder: Any = self.lvmae
        decoder: Any = self.decoder
        x = torch.cat([encoder.cls_token.expand(batch, -1, -1), embeddings + self.positions], dim=1)
        bias = additive_mask(real & ~masked)
        for block in encoder.blocks:
            x = block(x, bias)
        x = decoder.embed(encoder.norm(x))
        tokens = torch.where(masked[..., None], decoder.mask_token.to(x.dtype), x[:, 1:]) + self.decoder_positions
        x = torch.cat([x[:, :1], tokens], dim=1)
        bias = additive_mask(real)
        for block in decoder.blocks:
            x = block(x, bias)
        predicted = decoder.pred(decoder.norm(x))[:, 1:]
        error = (predicted.float() - embeddings).square().mean(-1)
        loss: Tensor = (error * masked).sum() / masked.sum()
        return loss


def sincos(count: int, width: int) -> Tensor:
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def additive_mask(seen: Tensor) -> Tensor:
    """(B,S) bool of the segments that may be looked at, [CLS] always -> (B,1,1,S+1)."""
    seen = F.pad(seen, (1, 0), value=True)
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -math.inf)[:, None, None, :]


# -- the batches


@dataclass
class Batch:
    """The same windows, packed and padded."""

    lengths: list[int]
    num_visible: list[int]
    packed: Tensor  # (1,N,D)
    packed_masked: Tensor  # (1,N)
    padded: Tensor  # (B,256,D)
    real: Tensor  # (B,256)
    padded_masked: Tensor


def draw_batch(rng: np.random.Generator, workload: str, size: int, config: LVMAEConfig, ratio: float) -> Batch:
    """The paper's dynamic sampling: a duration from [10 s, 256 segments], that many segments or all there are."""
    shortest, longest = (seconds // SEGMENT_SECONDS for seconds in WORKLOADS[workload])
    d, places = config.hidden_size, config.max_segments
    lengths, num_visible, parts, masks = [], [], [], []
    padded = torch.zeros(size, places, d)
    real = torch.zeros(size, places, dtype=torch.bool)
    padded_masked = torch.zeros(size, places, dtype=torch.bool)
    for b in range(size):
        segments = int(rng.integers(shortest, longest + 1))
        length = min(segments, int(rng.integers(2, places + 1)))
        window = F.normalize(torch.from_numpy(rng.standard_normal((length, d), dtype=np.float32)), dim=-1)
        visible = max(1, int(length * (1 - ratio)))
        masked = torch.ones(length, dtype=torch.bool)
        masked[torch.from_numpy(rng.permutation(length)[:visible])] = False
        lengths.append(length)
        num_visible.append(visible)
        parts.append(window)
        masks.append(masked)
        padded[b, :length] = window
        real[b, :length] = True
        padded_masked[b, :length] = masked
    return Batch(lengths, num_visible, torch.cat(parts)[None], torch.cat(masks)[None], padded, real, padded_masked)


# -- measuring


class Runner:
    """A model with its optimiser; `loss` runs it on a batch."""

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor], device: torch.device, precision: str) -> None:
        self.model = model
        self.loss = loss
        self.device = device
        self.autocast = precision == "bf16"
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True
        )

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.loss(batch)

    def step(self, batch: Batch) -> Tensor:
        loss = self.forward(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def timed_step(self, batch: Batch) -> float:
        synchronise(self.device)
        start = time.perf_counter()
        self.step(batch)
        synchronise(self.device)
        return time.perf_counter() - start

    def activation_bytes(self, batch: Batch) -> int:
        """What the forward pass keeps for the backward pass."""
        ours = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in ours:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.forward(batch)
        total = sum(kept.values())
        del loss
        return total

    def peak_bytes(self, batch: Batch) -> int:
        """How far a step rises above what is held before it: weights, gradients and the optimiser's state."""
        self.forward(batch).backward()  # type: ignore[no-untyped-call]
        self.optimiser.zero_grad(set_to_none=False)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(batch)
            return int(torch.cuda.max_memory_allocated() - before)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = process_bytes("VmRSS")
        self.step(batch)
        return process_bytes("VmHWM") - before


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def process_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def step_flops(config: LVMAEConfig, batch: Batch) -> float:
    """Floating-point operations of a step that the method needs on real tokens: forward and twice that backward."""

    def layer(width: int, inner: int, queries: list[int], keys: list[int]) -> float:
        per_query, per_key = 2 * width**2 + 2 * width * inner, 2 * width**2
        attention = sum(2 * q * k * width for q, k in zip(queries, keys, strict=True))
        return sum(queries) * per_query + sum(keys) * per_key + attention

    visible = [n + 1 for n in batch.num_visible]
    every = [n + 1 for n in batch.lengths]
    masked = [n - v for n, v in zip(batch.lengths, batch.num_visible, strict=True)]
    d, e, inner = config.hidden_size, config.decoder_hidden_size, config.decoder_intermediate_size
    macs = config.num_hidden_layers * layer(d, config.intermediate_size, visible, visible)
    macs += (config.decoder_num_hidden_layers - 1) * layer(e, inner, every, every) + layer(e, inner, masked, every)
    macs += d * e * (sum(visible) + sum(masked))
    return 6.0 * macs


@contextlib.contextmanager
def built(
    config: LVMAEConfig, device: torch.device, precision: str, compiled: bool, reference: bool
) -> Iterator[tuple[Runner, Runner | None]]:
    """The packed model and the reference with the same weights."""
    torch.manual_seed(0)
    packed = LVMAEForPreTraining(config)
    other: Runner | None = None
    if reference:
        padded = Reference(config)
        padded.load_state_dict(packed.state_dict())
        padded.to(device)

        def padded_loss(batch: Batch) -> Tensor:
            loss: Tensor = padded(batch.padded.to(device), batch.real.to(device), batch.padded_masked.to(device))
            return loss

        other = Runner(padded, padded_loss, device, precision)
    packed.to(device)  # type: ignore[arg-type]
    if compiled:
        for block in packed.blocks():
            block.compile(dynamic=True)

    def packed_loss(batch: Batch) -> Tensor:
        loss: Tensor = packed(
            inputs_embeds=batch.packed.to(device, non_blocking=True),
            bool_masked_pos=batch.packed_masked.to(device, non_blocking=True),
            lengths=batch.lengths,
            num_visible=batch.num_visible,
        ).loss
        return loss

    yield Runner(packed, packed_loss, device, precision), other


def measure(
    packed: Runner, reference: Runner | None, batches: list[Batch], config: LVMAEConfig, warm_up: int
) -> dict[str, Any]:
    """Times of steps that take turns, then memory on one batch."""
    videos = len(batches[0].lengths)
    tokens = [sum(batch.lengths) for batch in batches]
    result: dict[str, Any] = {"segments_a_video": round(statistics.mean(tokens) / videos, 1)}
    if reference is not None:
        with torch.no_grad():
            ours, theirs = packed.forward(batches[0]).item(), reference.forward(batches[0]).item()
        result["loss"] = {"packed": ours, "reference": theirs}
    runners = {"packed": packed} | ({"reference": reference} if reference is not None else {})
    for runner in runners.values():
        for n in range(warm_up):
            runner.step(batches[n % len(batches)])
    times: dict[str, list[float]] = {name: [] for name in runners}
    for batch in batches:
        for name, runner in runners.items():
            times[name].append(runner.timed_step(batch))
    if packed.device.type == "cuda":
        # Steps one after the other, as in training: nothing waits for the device between them.
        synchronise(packed.device)
        start = time.perf_counter()
        for batch in batches:
            packed.step(batch)
        synchronise(packed.device)
        times["packed"] = [(time.perf_counter() - start) / len(batches)] * len(batches)
    largest = max(batches, key=lambda batch: sum(batch.lengths))
    for name, runner in runners.items():
        result[name] = {
            "seconds_a_step": [round(seconds, 4) for seconds in times[name]],
            "videos_per_second": round(videos * len(batches) / sum(times[name]), 3),
            "activations_mib": round(runner.activation_bytes(largest) / 2**20, 1),
            "peak_mib": round(runner.peak_bytes(largest) / 2**20, 1),
        }
    if reference is not None:
        ours_, theirs_ = result["packed"], result["reference"]
        result["times_faster"] = round(ours_["videos_per_second"] / theirs_["videos_per_second"], 2)
        result["activations_ratio"] = round(ours_["activations_mib"] / theirs_["activations_mib"], 3)
        result["peak_ratio"] = round(ours_["peak_mib"] / theirs_["peak_mib"], 3)
    flops = sum(step_flops(config, batch) for batch in batches) / sum(times["packed"])
    result["packed"]["tflops_on_real_tokens"] = round(flops / 1e12, 3)
    if packed.device.type == "cuda":
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in PEAK_BF16_FLOPS.items() if key in name), None)
        result["packed"]["mfu"] = round(flops / peak, 4) if peak else None
        result["packed"]["hours_for_the_paper"] = round(PAPER_VIDEOS / result["packed"]["videos_per_second"] / 3600, 3)
    return result


def cpu_has_bf16() -> bool:
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().split()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def hardware(device: torch.device) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    found = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--layers", type=int, help="encoder layers, a quarter as many in the decoder; 4, or 32 on a GPU"
    )
    parser.add_argument("--batch", type=int, default=16, help="videos a step")
    parser.add_argument("--batches", type=int, help="steps timed, each on other windows; 3, or 30 on a GPU")
    parser.add_argument("--mask-ratio", type=float, default=0.5)
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "bf16"),
        help="default: fp32, and bf16 where the CPU has it; bf16 on a GPU",
    )
    parser.add_argument("--workload", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile the packed model's blocks")
    parser.add_argument("--no-reference", action="store_true", help="time the packed model alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here, e.g. benchmarks/results/training_step.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    if args.threads:
        torch.set_num_threads(args.threads)
    layers = args.layers or (32 if cuda else 4)
    config = LVMAEConfig(num_hidden_layers=layers, decoder_num_hidden_layers=max(1, layers // 4))
    report: dict[str, Any] = {
        "benchmark": "training_step",
        "hardware": hardware(device),
        "model": {"width": config.hidden_size, "layers": layers, "decoder_layers": config.decoder_num_hidden_layers},
        "batch": args.batch,
        "mask_ratio": args.mask_ratio,
        "compiled": args.compile,
        "results": {},
    }
    precisions = args.precision or (["bf16"] if cuda else ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"])
    if not cuda and "bf16" not in precisions:
        report["note"] = "no bf16: this CPU has no instructions for it"
    for precision in precisions:
        for workload in args.workload:
            rng = np.random.default_rng([args.seed, list(WORKLOADS).index(workload)])
            count = args.batches or (30 if cuda else 3)
            batches = [draw_batch(rng, workload, args.batch, config, args.mask_ratio) for _ in range(count)]
            with built(config, device, precision, args.compile, not args.no_reference) as (packed, reference):
                measured = measure(packed, reference, batches, config, warm_up=10 if cuda else 1)
            report["results"][f"{workload}, {precision}"] = measured
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
