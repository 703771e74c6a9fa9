"""One training step against the method padded: as it is usually run, and as well as padding can be run.

- ours: the step of `lvmae pretrain`. On a GPU compiled and recorded as one CUDA graph, on a CPU as it is.
- reference: padded to 256 places whatever the lengths, plain softmax attention, no gathering of visible places.
- best_padded (GPU, or --best): padded to the batch's longest rounded up to 64, visible places gathered, SDPA, compiled, recorded,
  the same optimiser.

All have the same weights and see the same windows; forward, backward and optimiser are timed in one run, taking turns.
Workloads: `films` draws the paper's durations from videos of 5-30 minutes, `clips` from videos of 1-3 minutes.

    python benchmarks/training_step.py                                    # d 1024, 4 + 1 layers, batch 16, on the CPU
    python benchmarks/training_step.py --device cuda --batch 16 128 --kernels      # all 32 + 8 layers, bf16

Prints JSON; `--out FILE` writes it too. `activations` is what a forward pass keeps for the backward pass (storages counted
once, parameters left out); `peak` is how far a whole step rises above weights, gradients and optimiser state. `kernels` is where
the time of one step goes, in ms, idle time included, so that it sums to the step's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.model.plan import Capacity, Plan, make_plan
from lvmae.pretraining.captured import CapturedStep
from lvmae.pretraining.data import MicroBatch
from lvmae.pretraining.optimisation import adamw, compile_blocks
from lvmae.sequences import dealt_batches

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


# -- as well as padding can be run


@dataclass
class PaddedBatch:
    """Windows padded to the longest of the batch, rounded up to 64."""

    embeddings: Tensor  # (B,S,D) float16
    real: Tensor  # (B,S)
    masked: Tensor  # (B,S)
    visible: Tensor  # (B,K) places of the visible segments
    visible_real: Tensor  # (B,K)

    def tensors(self) -> list[Tensor]:
        return [self.embeddings, self.real, self.masked, self.visible, self.visible_real]

    def clone(self) -> PaddedBatch:
        return PaddedBatch(*(tensor.clone() for tensor in self.tensors()))

    def to(self, device: torch.device) -> PaddedBatch:
        return PaddedBatch(*(tensor.to(device) for tensor in self.tensors()))


def padded_block(block: Any, x: Tensor, seen: Tensor) -> Tensor:
    """x (B,S,D), seen (B,1,1,S) -> (B,S,D)."""
    batch, places, width = x.shape
    qkv = block.attn.qkv(block.norm1(x)).view(batch, places, 3, block.attn.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).reshape(batch, places, width)
    x = x + block.attn.proj(mixed)
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


class BestPadded(nn.Module):
    """The masked autoencoder on padded batches, with the weights of an `LVMAEForPreTraining`."""

    positions: Tensor
    decoder_positions: Tensor

    def __init__(self, model: LVMAEForPreTraining, compiled: bool) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.register_buffer("positions", sincos(config.max_segments, config.hidden_size), persistent=False)
        self.register_buffer(
            "decoder_positions", sincos(config.max_segments, config.decoder_hidden_size), persistent=False
        )
        self.block: Callable[[Any, Tensor, Tensor], Tensor] = padded_block
        if compiled:
            self.block = torch.compile(padded_block, fullgraph=True, dynamic=True)

    def forward(self, batch: PaddedBatch) -> Tensor:
        encoder, decoder = self.model.lvmae, self.model.decoder
        y = F.normalize(batch.embeddings.float(), dim=-1)
        count, places, width = y.shape
        visible = batch.visible[..., None]
        x = torch.gather(y, 1, visible.expand(-1, -1, width)) + self.positions[batch.visible]
        x = torch.cat([encoder.cls_token.float().expand(count, 1, width), x], 1)
        seen = F.pad(batch.visible_real, (1, 0), value=True)[:, None, None]
        for block in encoder.blocks:
            x = self.block(block, x, seen)
        z = decoder.embed(encoder.norm(x))
        rows = torch.cat(
            [decoder.mask_token.to(z.dtype).expand(count, places, -1), z.new_zeros(count, 1, z.shape[2])], 1
        )
        target = torch.where(batch.visible_real, batch.visible, places)[..., None].expand(-1, -1, z.shape[2])
        rows = rows.scatter(1, target, z[:, 1:])[:, :places].float() + self.decoder_positions[:places]
        rows = torch.cat([z[:, :1].float(), rows], 1)
        seen = F.pad(batch.real, (1, 0), value=True)[:, None, None]
        for block in decoder.blocks:
            rows = self.block(block, rows, seen)
        error = (decoder.pred(decoder.norm(rows))[:, 1:].float() - y).square().mean(-1)
        loss: Tensor = (error * batch.masked).sum() / batch.masked.sum()
        return loss


# -- the batches


@dataclass
class Batch:
    """The same windows in three forms."""

    lengths: list[int]
    num_visible: list[int]
    ours: MicroBatch  # with rows of the table of all windows
    padded: Tensor  # (B,256,D) float32
    real: Tensor  # (B,256)
    padded_masked: Tensor
    best: PaddedBatch


def draw_batches(
    rng: np.random.Generator, workload: str, size: int, count: int, config: LVMAEConfig, ratio: float, filled_up: bool
) -> tuple[list[Batch], Tensor]:
    """The paper's dynamic sampling: a duration from [10 s, 256 segments], that many segments or all there are.

    Dealt by length as in pre-training. The second value is the table of all windows, (segments, D) float16.
    """
    shortest, longest = (seconds // SEGMENT_SECONDS for seconds in WORKLOADS[workload])
    videos = rng.integers(shortest, longest + 1, size * count)
    lengths = np.minimum(videos, rng.integers(2, config.max_segments + 1, size * count))
    visible = np.maximum(1, (lengths * (1 - ratio)).astype(int))
    table = F.normalize(
        torch.from_numpy(rng.standard_normal((int(lengths.sum()), config.hidden_size), dtype=np.float32)), dim=-1
    ).half()
    firsts = np.cumsum(lengths) - lengths
    masks = []
    for length, seen in zip(lengths, visible, strict=True):
        mask = np.ones(length, dtype=bool)
        mask[rng.permutation(length)[:seen]] = False
        masks.append(mask)
    dealt = dealt_batches(lengths, 0, 0, size)
    sizes = [(size, int(visible[items].sum()), int((lengths - visible)[items].sum())) for items in dealt]
    capacity = Capacity.of(sizes, config.max_segments) if filled_up else None
    batches = []
    for items in dealt:
        plan: Plan = make_plan(
            lengths[items],
            np.concatenate([masks[item] for item in items]),
            capacity=capacity,
            longest=config.max_segments,
        )
        rows = np.concatenate([np.arange(firsts[item], firsts[item] + lengths[item]) for item in items])
        rows = np.pad(rows, (0, len(plan.sequence) - len(rows)))
        padded, real, padded_masked = padded_to(config.max_segments, items, table, firsts, masks)
        places = min(config.max_segments, -(-int(lengths[items].max()) // 64) * 64)
        kept = -(-int(visible[items].max()) // 32) * 32
        seen_at = torch.zeros(size, kept, dtype=torch.int64)
        seen_real = torch.zeros(size, kept, dtype=torch.bool)
        for b, item in enumerate(items):
            seen_at[b, : visible[item]] = torch.from_numpy(np.flatnonzero(~masks[item]))
            seen_real[b, : visible[item]] = True
        best = PaddedBatch(
            padded[:, :places].half(), real[:, :places], padded_masked[:, :places].float(), seen_at, seen_real
        )
        batches.append(
            Batch(
                lengths[items].tolist(),
                visible[items].tolist(),
                MicroBatch(torch.from_numpy(rows), plan),
                padded,
                real,
                padded_masked,
                best,
            )
        )
    return batches, table


def padded_to(
    places: int, items: list[int], table: Tensor, firsts: np.ndarray, masks: list[np.ndarray]
) -> tuple[Tensor, Tensor, Tensor]:
    padded = torch.zeros(len(items), places, table.shape[1])
    real = torch.zeros(len(items), places, dtype=torch.bool)
    masked = torch.zeros(len(items), places, dtype=torch.bool)
    for b, item in enumerate(items):
        length = len(masks[item])
        padded[b, :length] = table[firsts[item] : firsts[item] + length].float()
        real[b, :length] = True
        masked[b, :length] = torch.from_numpy(masks[item])
    return padded, real, masked


# -- measuring


class Runner:
    """A model with its optimiser; `inputs` takes of a batch what `loss` computes on."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Callable[[Batch], Any],
        loss: Callable[[Any], Tensor],
        device: torch.device,
        precision: str,
        captured: bool = False,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.device = device
        self.autocast = precision == "bf16"
        self._loss = loss
        self.optimiser = adamw(model, betas=(0.9, 0.95), weight_decay=0.05)
        for group in self.optimiser.param_groups:
            group["lr"] = 1e-5
        self.warm_up = 0.0
        self.captured = CapturedStep(self.loss, self._update, self.optimiser, device) if captured else None

    def _update(self) -> None:
        self.optimiser.step()

    def loss(self, inputs: Any) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self._loss(inputs)

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.inputs(batch))

    def step(self, batch: Batch) -> Tensor:
        if self.captured is not None and (done := self.captured(self.inputs(batch), 1e-5)) is not None:
            return done[0]
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
            # Without a graph, whose memory stays held: what it computes is the same.
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.forward(batch).backward()  # type: ignore[no-untyped-call]
            return int(torch.cuda.max_memory_allocated() - before)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = process_bytes("VmRSS")
        self.step(batch)
        return process_bytes("VmHWM") - before

    def kernels(self, batches: list[Batch]) -> dict[str, float]:
        """Milliseconds of a step by kind of kernel; "idle" is what the device waits."""
        self.step(batches[0])
        synchronise(self.device)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            start = time.perf_counter()
            for batch in batches:
                self.step(batch)
            synchronise(self.device)
            wall = (time.perf_counter() - start) * 1e3
        found: dict[str, float] = {}
        for event in profile.key_averages():
            kind = next(
                (kind for kind, marks in KERNELS.items() if any(m in event.key.lower() for m in marks)), "other"
            )
            found[kind] = found.get(kind, 0.0) + event.self_device_time_total / 1e3
        table = {kind: round(ms / len(batches), 3) for kind, ms in sorted(found.items(), key=lambda item: -item[1])}
        return table | {
            "idle": round((wall - sum(found.values())) / len(batches), 3),
            "step": round(wall / len(batches), 3),
        }


KERNELS = {
    "attention": ("flash", "fmha", "attention"),
    "matrix products": ("gemm", "cutlass", "cublas", "nvjet", "xmma"),
    "optimiser": ("adam", "multi_tensor"),
    "copies": ("memcpy", "memset", "copy"),
    "norms and elementwise": ("triton", "layer_norm", "elementwise", "gelu", "reduce"),
    "gathers": ("index", "gather", "scatter"),
}


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


def built(
    config: LVMAEConfig, device: torch.device, precision: str, table: Tensor, names: list[str]
) -> dict[str, Runner]:
    """The models, each with the same weights."""
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    first = LVMAEForPreTraining(config)
    weights = first.state_dict()
    runners = {}
    if "ours" in names:
        ours = LVMAEForPreTraining(config)
        ours.load_state_dict(weights)
        ours.to(device)  # type: ignore[arg-type]
        if cuda:
            compile_blocks(ours)
        rows = table.to(device)

        def our_loss(micro: MicroBatch) -> Tensor:
            tokens = F.normalize(rows.index_select(0, micro.tokens).float(), dim=-1)
            loss: Tensor = ours(inputs_embeds=tokens, plan=micro.plan).loss
            return loss

        runners["ours"] = Runner(ours, lambda batch: batch.ours.to(device), our_loss, device, precision, captured=cuda)
    if "reference" in names:
        padded = Reference(config)
        padded.load_state_dict(weights)
        padded.to(device)
        runners["reference"] = Runner(
            padded,
            lambda batch: [x.to(device) for x in (batch.padded, batch.real, batch.padded_masked)],
            lambda inputs: padded(*inputs),
            device,
            precision,
        )
    if "best_padded" in names:
        base = LVMAEForPreTraining(config)
        base.load_state_dict(weights)
        best = BestPadded(base, compiled=cuda)
        best.to(device)
        runners["best_padded"] = Runner(
            best, lambda batch: batch.best.to(device), best, device, precision, captured=cuda
        )
    return runners


def measure(
    batches: list[Batch], config: LVMAEConfig, runners: dict[str, Runner], *, warm_up: int, kernels: bool
) -> dict[str, Any]:
    """Times of steps that take turns, then memory on one batch."""
    videos = len(batches[0].lengths)
    tokens = [sum(batch.lengths) for batch in batches]
    device = next(iter(runners.values())).device
    result: dict[str, Any] = {"segments_a_video": round(statistics.mean(tokens) / videos, 1)}
    with torch.no_grad():
        result["loss"] = {name: runner.forward(batches[0]).item() for name, runner in runners.items()}
    for runner in runners.values():
        began = time.perf_counter()
        # Every size of batch once: each is compiled or recorded for itself.
        for batch in batches if runner.captured else batches[:warm_up]:
            runner.step(batch)
        synchronise(device)
        runner.warm_up = time.perf_counter() - began
    times: dict[str, list[float]] = {name: [] for name in runners}
    if device.type == "cuda":
        # Steps one after the other, as in training: nothing waits for the device between them.
        for name, runner in runners.items():
            start = time.perf_counter()
            for batch in batches:
                runner.step(batch)
            synchronise(device)
            times[name] = [(time.perf_counter() - start) / len(batches)] * len(batches)
    else:
        for batch in batches:
            for name, runner in runners.items():
                times[name].append(runner.timed_step(batch))
    largest = max(batches, key=lambda batch: sum(batch.lengths))
    flops = sum(step_flops(config, batch) for batch in batches)
    for name, runner in runners.items():
        rate = flops / sum(times[name])
        result[name] = {
            "seconds_a_step": sorted({round(seconds, 5) for seconds in times[name]}),
            "videos_per_second": round(videos * len(batches) / sum(times[name]), 3),
            "warm_up_seconds": round(runner.warm_up, 1),
            "activations_mib": round(runner.activation_bytes(largest) / 2**20, 1),
            "tflops_on_real_tokens": round(rate / 1e12, 3),
        }
        if device.type == "cuda":
            gpu = torch.cuda.get_device_name()
            peak = next((value for key, value in PEAK_BF16_FLOPS.items() if key in gpu), None)
            result[name]["mfu"] = round(rate / peak, 4) if peak else None
            result[name]["recorded"] = runner.captured is not None and not runner.captured.failed
            if kernels and runner.captured:
                result[name]["kernels_ms"] = table = runner.kernels(batches[:5])
                result[name]["idle_share"] = round(table["idle"] / table["step"], 4)
        result[name]["peak_mib"] = round(runner.peak_bytes(largest) / 2**20, 1)
    return result


def compare(result: dict[str, Any]) -> None:
    """Adds how ours stands beside the others, and how long the paper's pre-training takes with it."""
    for other in ("reference", "best_padded"):
        if "videos_per_second" in result.get(other, {}):
            result[f"ours_over_{other}"] = {
                key: round(result["ours"][key] / result[other][key], 3)
                for key in ("videos_per_second", "activations_mib", "peak_mib")
            }
    result["hours_for_the_paper"] = round(PAPER_VIDEOS / result["ours"]["videos_per_second"] / 3600, 3)


def measure_alone(
    name: str, build: Callable[[list[str]], dict[str, Runner]], measured: Callable[[dict[str, Runner]], dict[str, Any]]
) -> dict[str, Any]:
    """On a GPU one model after the other: the padded ones leave no room for a second. Where one has none, it says so."""
    runners: dict[str, Runner] = {}
    try:
        runners = build([name])
        return measured(runners)
    except torch.cuda.OutOfMemoryError:
        return {name: {"out_of_memory": True}}
    finally:
        runners.clear()
        gc.collect()
        torch.cuda.empty_cache()


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
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="videos a step")
    parser.add_argument("--batches", type=int, help="steps timed, each on other windows; 3, or 12 on a GPU")
    parser.add_argument("--mask-ratio", type=float, default=0.5)
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "bf16"),
        help="default: fp32, and bf16 where the CPU has it; bf16 on a GPU",
    )
    parser.add_argument("--workload", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--no-reference", action="store_true", help="leave out the reference, which is slow")
    parser.add_argument("--best", action="store_true", help="the best padded step on a CPU too")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--kernels", action="store_true", help="on a GPU, where the time of a step goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here, e.g. benchmarks/results/training_step.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    if args.threads:
        torch.set_num_threads(args.threads)
    layers = args.layers or (32 if cuda else 4)
    config = LVMAEConfig(
        hidden_size=args.width, num_hidden_layers=layers, decoder_num_hidden_layers=max(1, layers // 4)
    )
    report: dict[str, Any] = {
        "benchmark": "training_step",
        "hardware": hardware(device),
        "model": {"width": config.hidden_size, "layers": layers, "decoder_layers": config.decoder_num_hidden_layers},
        "batch": args.batch,
        "mask_ratio": args.mask_ratio,
        "results": {},
    }
    precisions = args.precision or (["bf16"] if cuda else ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"])
    if not cuda and "bf16" not in precisions:
        report["note"] = "no bf16: this CPU has no instructions for it"
    names = ["ours", *([] if args.no_reference else ["reference"]), *(["best_padded"] if cuda or args.best else [])]
    count = args.batches or (12 if cuda else 3)
    for precision in precisions:
        for workload in args.workload:
            for size in args.batch:
                rng = np.random.default_rng([args.seed, list(WORKLOADS).index(workload)])
                batches, table = draw_batches(rng, workload, size, count, config, args.mask_ratio, filled_up=cuda)
                build = functools.partial(built, config, device, precision, table)
                measured = functools.partial(
                    measure, batches, config, warm_up=3 if cuda else 1, kernels=args.kernels and cuda
                )
                found: dict[str, Any] = {"loss": {}}
                for result in (
                    (measure_alone(name, build, measured) for name in names) if cuda else [measured(build(names))]
                ):
                    found |= {**result, "loss": {**found["loss"], **result.get("loss", {})}}
                compare(found)
                report["results"][f"{workload}, batch {size}, {precision}"] = found
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
