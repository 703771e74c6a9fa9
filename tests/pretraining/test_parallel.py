"""However many processes and micro-batches share a batch, and in whatever precision, the run is the same one."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from training_process import train

from conftest import small, write_store
from lvmae.errors import InputError
from lvmae.pretraining import pretrain, read_metrics
from lvmae.pretraining.data import TrainingData
from lvmae.sequences import dealt_batches, epoch_batches
from lvmae.sequences.masking import count_visible
from lvmae.store import EmbeddingStore


@pytest.fixture(scope="module")
def alone(store, processes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "alone"
    assert processes.run(train, store, out, small()) == 0
    return out


def launch(processes, store: Path, out: Path, recipe, **kwargs) -> list[int | None]:
    """Two processes, as torchrun starts them; gloo joins them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [processes.start(train, store, out, recipe, launched=(rank, 2, port), **kwargs) for rank in range(2)]
    for process in started:
        process.join(180)
    return [process.exitcode for process in started]


def assert_same_curves(run: Path, other: Path, relative: float) -> None:
    ours, theirs = read_metrics(run), read_metrics(other)
    assert [r.keys() for r in ours] == [r.keys() for r in theirs]
    for key in ("step", "epoch", "loss", "lr", "grad_norm", "val_loss", "val_cosine", "interpolation_loss"):
        found, wanted = ([r[key] for r in records if key in r] for records in (ours, theirs))
        assert found == pytest.approx(wanted, rel=relative, abs=1e-5), key
    # Weights are not compared: AdamW makes whole steps of the rounding in gradients that are zero, as those of key biases are.


def test_two_processes_are_one(store, processes, alone, tmp_path):
    # Batches of 3 and, last, of 1: the parts are never alike, and at the end of an epoch one process has nothing.
    out = tmp_path / "run"
    assert launch(processes, store, out, small()) == [0, 0]
    assert_same_curves(out, alone, 1e-4)


def test_two_processes_with_a_part_of_the_weights_each(store, processes, alone, tmp_path):
    out = tmp_path / "run"
    spot = ("lvmae.pretraining.loop:_Training._step", 6, "interrupted")
    assert launch(processes, store, out, small(), sharded=True, spot=spot) == [130, 130]
    assert launch(processes, store, out, small(), sharded=True) == [0, 0]
    assert_same_curves(out, alone, 1e-4)
    ours, theirs = (load_file(run / "model.safetensors") for run in (out, alone))
    assert {name: weights.shape for name, weights in ours.items()} == {name: w.shape for name, w in theirs.items()}


def test_two_processes_with_two_micro_batches_each_stopped_and_gone_on_with(store, processes, tmp_path):
    recipe = small(batch_size=5, accumulation=2)
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert processes.run(train, store, alone, small(batch_size=5)) == 0
    spot = ("lvmae.pretraining.loop:_Training._step", 4, "interrupted")
    assert launch(processes, store, out, recipe, spot=spot) == [130, 130]
    assert launch(processes, store, out, recipe) == [0, 0]
    assert_same_curves(out, alone, 1e-4)


def test_accumulation_changes_no_curve(store, processes, alone, tmp_path):
    assert processes.run(train, store, tmp_path / "run", small(accumulation=3)) == 0
    assert_same_curves(tmp_path / "run", alone, 1e-4)


def test_bf16_follows_fp32(store, processes, alone, tmp_path):
    assert processes.run(train, store, tmp_path / "run", small(precision="bf16")) == 0
    losses, exact = ([r["loss"] for r in read_metrics(run) if "lr" in r] for run in (tmp_path / "run", alone))
    assert losses == pytest.approx(exact, rel=0.05)
    assert losses != exact
    assert all(weights.dtype == np.float32 for weights in load_file(tmp_path / "run/model.safetensors").values())


def test_fp16_finds_its_scale_and_goes_on_with_it(store, processes, tmp_path):
    whole, resumed, recipe = tmp_path / "whole", tmp_path / "resumed", small(precision="fp16", epochs=8)
    assert processes.run(train, store, whole, recipe, scaled=True) == 0
    steps = [r for r in read_metrics(whole) if "lr" in r]
    skipped = [r["step"] for r in steps if r["grad_norm"] is None]
    assert skipped[0] == 1
    assert 1 < len(skipped) < len(steps) / 2
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    spot = ("lvmae.pretraining.loop:_Training._step", 20, "before")
    assert processes.run(train, store, resumed, recipe, scaled=True, spot=spot) == -9
    assert processes.run(train, store, resumed, recipe, scaled=True) == 0
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_one_process_after_another_precision_in_the_same_process(store, tmp_path):
    for precision in ("bf16", "fp32"):
        pretrain(store, tmp_path / precision, recipe=small(epochs=1, precision=precision))
    assert read_metrics(tmp_path / "fp32")[0]["loss"] != read_metrics(tmp_path / "bf16")[0]["loss"]


def test_more_parts_than_videos_in_a_batch_are_refused(store, tmp_path):
    with pytest.raises(InputError, match="batch_size=3 cannot be shared by 1 processes x 4 micro-batches"):
        pretrain(store, tmp_path / "run", recipe=small(accumulation=4))


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> EmbeddingStore:
    lengths = [4 + n % 9 for n in range(23)]
    return EmbeddingStore.open(write_store(tmp_path_factory.mktemp("planted") / "store", lengths))


@settings(deadline=None)  # a machine may be busy
@given(
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    batch_size=st.integers(12, 40),
    first=st.integers(0, 6),
    order=st.sampled_from(["dealt", "shuffled"]),
)
def test_the_shares_of_all_processes_are_the_batch(opened, world, accumulation, batch_size, first, order):
    recipe = small(batch_size=batch_size, accumulation=accumulation, epochs=4, order=order)
    training = TrainingData([opened], recipe)
    count = len(training.windows)
    assert training.steps_per_epoch == math.ceil(count / batch_size)
    assert training.videos_until(4 * training.steps_per_epoch) == 4 * count
    dealt = [list(training.shares(first, rank, world)) for rank in range(world)]
    for step in range(first, 4 * training.steps_per_epoch):
        at = slice((step - first) * accumulation, (step - first + 1) * accumulation)
        epoch, within = divmod(step, training.steps_per_epoch)
        parts = [share for shares in dealt for share in shares[at]]
        lengths = training.windows.lengths(epoch)
        if order == "dealt":
            batch = dealt_batches(lengths, epoch, recipe.seed, batch_size)[within]
        else:
            batch = epoch_batches(count, epoch, recipe.seed, batch_size)[within]
        masked = sum(length - count_visible(length, 0.5) for length in lengths[batch].tolist())
        assert {part.weight for part in parts if part.counts} == {1 / masked}
        assert sorted(place for part in parts if part.counts for place in part.windows) == sorted(batch)
        assert training.videos_in(step) == len(batch)
        assert len(parts) == world * accumulation
        assert all(part.windows and part.epoch == epoch for part in parts)
        sizes = [len(part.windows) * part.counts for part in parts]
        assert max(sizes) - min(sizes) <= 1
