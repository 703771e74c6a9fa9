"""What only a GPU can show: the official numbers, packed = padded = recorded, and a run that is killed.

The same checks run on the CPU, in small and without recording. `make gpu-train` runs this file by itself, on machines that have no
more than pre-training needs, so it shares nothing with the other tests.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.model.attention import attend, padded_attention
from lvmae.model.plan import Capacity, make_plan
from lvmae.pretraining import read_metrics
from lvmae.pretraining.captured import CapturedStep, make_moments
from lvmae.pretraining.data import MicroBatch
from lvmae.pretraining.optimisation import adamw, compile_blocks, uncompile_blocks
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord

GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")],
)
DEVICES = ["cpu", GPU]
PARITY = Path(os.environ.get("LVMAE_PARITY") or Path(__file__).resolve().parents[3] / "shared" / "parity")
BF16 = 0.02  # of the largest value: bfloat16 has 8 bits, a half unit is 0.002, and some layers add up


@pytest.fixture(autouse=True)
def _exact_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def official(request: pytest.FixtureRequest) -> tuple[LVMAEForPreTraining, dict[str, torch.Tensor]]:
    if not (PARITY / "official_tiny.pth").exists():
        pytest.skip(f"bring official_tiny.pth and official_tiny.safetensors to {PARITY}, or set LVMAE_PARITY")
    model = LVMAEForPreTraining.from_official_checkpoint(PARITY / "official_tiny.pth")
    return model, load_file(PARITY / "official_tiny.safetensors")


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert (found.float().cpu() - expected).abs().max() <= tolerance * expected.abs().max()


def official_batch(values: dict[str, torch.Tensor], device: str, capacity: Capacity | None = None) -> MicroBatch:
    lengths = values["lengths"].tolist()
    real = torch.arange(values["masked"].shape[1])[None] < values["lengths"][:, None]
    plan = make_plan(lengths, values["masked"][real].numpy(), capacity=capacity)
    rows = values["embeddings"][real]
    return MicroBatch(F.pad(rows, (0, 0, 0, len(plan.sequence) - len(rows))), plan).to(torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_official_numbers(official: Any, device: str, precision: str) -> None:
    """As it is, filled up with dummies, compiled; on CUDA in bf16 through flash attention."""
    model, values = official
    model.to(device)
    tolerance = 1e-5 if precision == "fp32" else BF16
    lengths = values["lengths"].tolist()
    masked = int(values["masked"].sum())
    size = (len(lengths), sum(lengths) - masked, masked)
    for capacity in (None, Capacity.of([size], 16, step=8)):
        batch = official_batch(values, device, capacity)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = model(batch.tokens, plan=batch.plan, output_predictions=True)
        close(output.loss.detach().reshape(1), values["loss"], tolerance)
        close(output.predictions[:masked].detach(), values["pred"][values["masked"]], tolerance)
        model.zero_grad()
        output.loss.backward()
        gradients = {"encoder": model.lvmae.blocks[0].attn.qkv.weight, "decoder": model.decoder.pred.weight}
        close(gradients["encoder"].grad, values["grad.blocks.0.attn.qkv.weight"], 4 * tolerance)
        close(gradients["decoder"].grad, values["grad.decoder_pred.weight"], 4 * tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_the_official_numbers_through_a_recorded_step(official: Any) -> None:
    for precision, tolerance in (("fp32", 1e-5), ("bf16", BF16)):
        model, values = copy.deepcopy(official[0]).cuda(), official[1]
        step, _ = recorded_step(model, precision)
        done = step(official_batch(values, "cuda"), 0.0)
        assert done is not None, "the step was not recorded"
        close(done[0].reshape(1), values["loss"], tolerance)


def test_packed_padded_and_filled_up_are_one() -> None:
    check_forms("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_packed_padded_and_filled_up_are_one_on_the_gpu() -> None:
    check_forms("cuda")


def check_forms(device: str) -> None:
    model, batches = small_model().to(device), small_batches(device)
    for lengths, masks, rows, micro in batches:
        planned = model(micro.tokens, plan=micro.plan).loss
        packed = model(rows[None], bool_masked_pos=torch.from_numpy(masks)[None].to(device), lengths=lengths).loss
        padded = torch.nn.utils.rnn.pad_sequence(rows.split(lengths), batch_first=True)
        real = torch.arange(padded.shape[1], device=device)[None] < torch.tensor(lengths, device=device)[:, None]
        hidden = torch.zeros_like(real)
        hidden[real] = torch.from_numpy(masks).to(device)
        as_padded = model(padded, real.long(), hidden).loss
        assert packed.item() == pytest.approx(planned.item(), rel=1e-5)
        assert as_padded.item() == pytest.approx(planned.item(), rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_attention_with_sequences_that_have_no_queries(device: str) -> None:
    """Absent videos have a [CLS] and nothing to predict; flash attention has to take that, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = [5, 0, 130, 0, 3], [9, 1, 257, 1, 4]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    starts = [torch.tensor([0, *np.cumsum(n)], dtype=torch.int32, device=device) for n in (queries, keys)]
    qkv = [torch.randn(n, 4, 64, generator=generator) for n in (sum(queries), sum(keys), sum(keys))]
    ours = [x.to(device, dtype).requires_grad_() for x in qkv]
    exact = [x.to(device).requires_grad_() for x in qkv]
    found, expected = attend(*ours, *starts, 257), padded_attention(*exact, *starts, 257)
    close(found.detach(), expected.detach().cpu(), BF16)
    weight = torch.randn(found.shape, generator=generator).to(device)
    for a, b in zip(
        torch.autograd.grad((found.float() * weight).sum(), ours),
        torch.autograd.grad((expected * weight).sum(), exact),
        strict=True,
    ):
        assert a.isfinite().all()
        close(a, b.cpu(), BF16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_steps_are_the_steps(precision: str) -> None:
    """Recording changes no weight, no moment and no step count; six steps follow those that are run one kernel after another."""
    first = small_model().cuda()
    plain, recorded = copy.deepcopy(first), copy.deepcopy(first)
    step, optimizer = recorded_step(recorded, precision)
    make_moments(optimizer)
    batches = [micro for *_, micro in small_batches("cuda")]
    before = [p.detach().clone() for p in recorded.parameters()]
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in recorded.parameters()]
    step._graphs[tuple(t.shape for t in batches[0].tensors())] = step._record(batches[0])
    torch.cuda.synchronize()
    for p, was, state in zip(recorded.parameters(), before, moments, strict=True):
        assert torch.equal(p, was)
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in state.items())
    other = adamw(plain, betas=(0.9, 0.95), weight_decay=0.05)
    for number in range(6):
        rate = 1e-3 * (number + 1)  # the rate is no constant of the graph
        micro = batches[number % len(batches)]
        done = step(micro, rate)
        assert done is not None, "the step was not recorded"
        for group in other.param_groups:
            group["lr"] = rate
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = plain(micro.tokens, plan=micro.plan).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        other.step()
        other.zero_grad()
        assert done[0].item() == pytest.approx(loss.item(), rel=1e-4 if precision == "fp32" else BF16)
        assert done[1].item() == pytest.approx(norm.item(), rel=1e-3 if precision == "fp32" else 5 * BF16)
        assert next(iter(optimizer.state.values()))["step"].item() == number + 1


def recorded_step(model: LVMAEForPreTraining, precision: str) -> tuple[CapturedStep[MicroBatch], torch.optim.AdamW]:
    uncompile_blocks(model)
    compile_blocks(model)
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.05)

    def loss(micro: MicroBatch) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            return model(micro.tokens, plan=micro.plan).loss

    def update() -> torch.Tensor:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return norm

    return CapturedStep(loss, update, optimizer, torch.device("cuda")), optimizer


def small_model() -> LVMAEForPreTraining:
    torch.manual_seed(0)
    return LVMAEForPreTraining(
        LVMAEConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
        )
    )


def small_batches(device: str) -> list[tuple[list[int], np.ndarray, torch.Tensor, MicroBatch]]:
    """Three batches of one capacity, the last with fewer sequences."""
    rng = np.random.default_rng(0)
    drawn = []
    for count in (6, 6, 2):
        lengths = rng.integers(2, 257, count).tolist()
        masks = [rng.permutation(n) >= max(1, n // 2) for n in lengths]
        drawn.append((lengths, np.concatenate(masks)))
    sizes = [(len(lengths), int((~masks).sum()), int(masks.sum())) for lengths, masks in drawn]
    capacity = Capacity.of(sizes, 256, step=16)
    found = []
    for lengths, masks in drawn:
        rows = F.normalize(torch.from_numpy(rng.standard_normal((sum(lengths), 64), dtype=np.float32)), dim=-1)
        plan = make_plan(lengths, masks, capacity=capacity)
        micro = MicroBatch(F.pad(rows, (0, 0, 0, capacity.tokens - len(rows))), plan).to(torch.device(device))
        found.append((lengths, masks, rows.to(device), micro))
    return found


def write_store(path: Path) -> EmbeddingStore:
    rng = np.random.default_rng(0)
    with StoreWriter(path, Manifest("made", 64, {"kind": "fixed", "seconds": 5.0}, {"name": "made"})) as writer:
        for number in range(40):
            length = int(rng.integers(12, 60))
            starts = np.arange(length) * 5.0
            values = rng.standard_normal((length, 64))
            writer.add(VideoRecord(f"v{number}", "", length * 5.0, starts, starts + 5, values))
    return EmbeddingStore.open(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_run_that_is_killed_resumes(tmp_path: Path) -> None:
    """Flash attention and index_add add in any order: the curves agree within what bfloat16 rounds."""
    write_store(tmp_path / "store")
    settings = {"layers": 2, "heads": 4, "decoder_layers": 2, "decoder_width": 32, "decoder_heads": 2, "epochs": 12}
    settings |= {"warmup_epochs": 2, "batch_size": 8, "checkpoint_every": 7, "log_every": 1, "num_workers": 2}
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [
        sys.executable,
        "-m",
        "lvmae",
        "pretrain",
        str(tmp_path / "store"),
        "--recipe",
        "paper",
        *options,
        "--out",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert subprocess.run([*command, str(whole)], check=False).returncode == 0
    process = subprocess.Popen([*command, str(killed)])
    while process.poll() is None and sum("lr" in r for r in read_metrics(killed)) < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((killed / "checkpoints").glob("step-*")), "it was killed before its first checkpoint"
    assert subprocess.run([*command, str(killed)], check=False).returncode == 0
    ours, theirs = ([r["loss"] for r in read_metrics(run) if "lr" in r] for run in (killed, whole))
    assert ours == pytest.approx(theirs, rel=BF16)
