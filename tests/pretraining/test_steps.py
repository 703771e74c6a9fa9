"""One meaning of a step, however it is shared, read, compiled or recorded."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_parallel import assert_same_curves, launch

from conftest import small, write_store
from lvmae.errors import WorkError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.pretraining import pretrain, read_metrics
from lvmae.pretraining.captured import make_moments
from lvmae.pretraining.data import MicroBatch, TrainingData
from lvmae.pretraining.optimisation import adamw, compile_blocks
from lvmae.pretraining.step import Step
from lvmae.store import EmbeddingStore

CPU = torch.device("cpu")
SHORT = small(epochs=1, val_fraction=0)


def model() -> LVMAEForPreTraining:
    torch.manual_seed(0)
    return LVMAEForPreTraining(
        LVMAEConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            max_segments=36,
        )
    )


def gradient(net: LVMAEForPreTraining, parts: list[MicroBatch], table: torch.Tensor | None = None) -> torch.Tensor:
    """Of the sum of the parts' losses."""
    net.zero_grad()
    for part in parts:
        tokens = part.tokens if table is None else table[part.tokens]
        rows = torch.nn.functional.normalize(tokens.float(), dim=-1, eps=1e-30)
        net(inputs_embeds=rows, plan=part.plan).loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("order", ["dealt", "shuffled"])
@pytest.mark.parametrize("filled_up", [False, True])
def test_one_step_however_it_is_shared(tmp_path: Path, order: str, filled_up: bool) -> None:
    """A batch of 16, 2 ranks with 8 each, 4 accumulated parts of 4; the last batch of the epoch has 3 videos."""
    store = EmbeddingStore.open(write_store(tmp_path / "store", [4 + 7 * n % 33 for n in range(19)]))
    net = model()
    steps = []
    for world, accumulation in ((1, 1), (2, 1), (1, 4)):
        recipe = small(batch_size=16, accumulation=accumulation, epochs=1, order=order, val_fraction=0)
        data = TrainingData([store], recipe)
        ranks = [list(data.batches(0, rank, world, CPU, filled_up=filled_up)) for rank in range(world)]
        whole = [[part for rank in ranks for part in rank[k * accumulation : (k + 1) * accumulation]] for k in range(2)]
        assert [sum(float(part.plan.weights.sum()) for part in parts) for parts in whole] == pytest.approx([1, 1])
        steps.append([gradient(net, parts) for parts in whole])
    for other in steps[1:]:
        for found, exact in zip(other, steps[0], strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * exact.abs().max().item())


def test_filled_up_batches_have_one_size_and_the_same_gradients(tmp_path: Path) -> None:
    store = EmbeddingStore.open(write_store(tmp_path / "store", [4 + 5 * n % 31 for n in range(22)]))
    data = TrainingData([store], small(batch_size=5, epochs=2, val_fraction=0))
    table = data.table(CPU)
    net = model()
    exact = list(data.batches(0, 0, 1, CPU))
    filled = list(data.batches(0, 0, 1, CPU, filled_up=True))
    rows = list(data.batches(0, 0, 1, CPU, filled_up=True, as_rows=True))
    assert len(exact) == len(filled) == len(rows) == 10
    for epoch in (filled[:5], filled[5:], rows[:5]):
        assert len({tuple(tensor.shape for tensor in batch.tensors()) for batch in epoch}) == 1
    for one, other, indexed in zip(exact, filled, rows, strict=True):
        assert len(one.tokens) <= len(other.tokens)
        torch.testing.assert_close(table[indexed.tokens][: len(one.tokens)], one.tokens, rtol=0, atol=0)
        wanted = gradient(net, [one])
        for found in (gradient(net, [other]), gradient(net, [indexed], table)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_moments_that_are_made_beforehand_are_those_of_the_first_step() -> None:
    nets = [model(), model()]
    optimizers = [adamw(net, betas=(0.9, 0.95), weight_decay=0.05) for net in nets]
    before = copy.deepcopy(nets[1].state_dict())
    make_moments(optimizers[1])
    assert all(torch.equal(value, before[name]) for name, value in nets[1].state_dict().items())
    for net, optimizer in zip(nets, optimizers, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        for n, parameter in enumerate(net.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 + n)
        optimizer.step()
        make_moments(optimizer)  # does not touch what is there
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        one, other = optimizers[0].state[ours], optimizers[1].state[theirs]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def alone(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(store, tmp_path_factory.mktemp("run") / "alone", recipe=small())


def test_a_step_that_cannot_be_recorded_is_run_as_it_is(
    store: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Recording fails here, without CUDA, after all that comes before it: nothing of that may change the run."""
    monkeypatch.setattr(Step, "_captures", lambda _: True)
    out = pretrain(store, tmp_path / "run", recipe=small())
    assert (out / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    said = [record.message for record in caplog.records if "cannot be recorded as a CUDA graph" in record.message]
    assert len(said) == 1


def test_embeddings_on_the_device_change_nothing(store: Path, alone: Path, tmp_path: Path) -> None:
    out = pretrain(store, tmp_path / "run", recipe=small(data="device"))
    assert (out / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def short(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(store, tmp_path_factory.mktemp("run") / "short", recipe=SHORT)


def test_compiled_blocks_follow_the_run(
    store: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced, forward and backward, but no code generated: that takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    out = pretrain(store, tmp_path / "run", recipe=dataclasses.replace(SHORT, compile=True))
    assert_same_curves(out, short, 1e-4)
    torch._dynamo.reset()


def test_what_cannot_be_compiled_says_so_or_runs_as_it_is(
    store: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: Any) -> None:
        raise RuntimeError("there is no C++ compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    torch._dynamo.reset()
    with pytest.raises(WorkError, match=r"cannot be compiled here .*: set compile=false and run the same command"):
        pretrain(store, tmp_path / "run", recipe=dataclasses.replace(SHORT, compile=True))
    # By itself it compiles on GPUs alone; here it is told to.
    plain = Step.__init__

    def on_its_own(self: Step, *args: Any) -> None:
        plain(self, *args)
        compile_blocks(self.accelerator.unwrap_model(self.model))

    monkeypatch.setattr(Step, "__init__", on_its_own)
    out = pretrain(store, tmp_path / "run", recipe=SHORT)
    assert (out / "metrics.jsonl").read_bytes() == (short / "metrics.jsonl").read_bytes()
    assert sum("it runs as it is, which is slower" in record.message for record in caplog.records) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("sharded", [False, True])
def test_compiled_blocks_in_two_processes(
    store: Path, processes: Any, short: Path, tmp_path: Path, sharded: bool
) -> None:
    out, recipe = tmp_path / "run", dataclasses.replace(SHORT, compile=True)
    assert launch(processes, store, out, recipe, sharded=sharded, graphs_only=True) == [0, 0]
    assert_same_curves(out, short, 1e-4)


def test_a_run_from_before_there_were_dealt_epochs_keeps_its_own(store: Path, tmp_path: Path) -> None:
    recipe = small(epochs=2)
    old = pretrain(store, tmp_path / "old", recipe=recipe, settings={"order": "shuffled"})
    new = pretrain(store, tmp_path / "new", recipe=recipe)
    losses = [[r["loss"] for r in read_metrics(run) if "lr" in r] for run in (old, new)]
    assert losses[0] != losses[1]
    # What an older version left when it was stopped: no such setting, a checkpoint and the curves so far.
    written = json.loads((old / "recipe.json").read_text())
    for setting in ("order", "compile", "data"):
        del written["recipe"][setting]
    (old / "recipe.json").write_text(json.dumps(written))
    lines = (old / "metrics.jsonl").read_bytes()
    last = sorted((old / "checkpoints").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (old / "metrics.jsonl").write_bytes(lines[: lines.rindex(b"\n", 0, -1) + 1])
    assert pretrain(store, old, recipe=recipe) == old
    assert (old / "metrics.jsonl").read_bytes() == lines
    assert json.loads((old / "recipe.json").read_text())["recipe"]["order"] == "shuffled"
    assert np.isfinite(losses).all()
