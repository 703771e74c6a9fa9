"""Killed anywhere, interrupted or out of disk: the same call again gives the run that was never interrupted, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_process import train

from conftest import small
from lvmae.errors import InputError, WorkError
from lvmae.pretraining import pretrain, read_metrics

KILLED = -signal.SIGKILL
LOOP, CHECKPOINTS = "lvmae.pretraining.loop:", "lvmae.pretraining.checkpoints:"


@pytest.fixture(scope="module")
def uninterrupted(store, processes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "uninterrupted"
    assert processes.run(train, store, out, small()) == 0
    return out


def same(run: Path, other: Path) -> bool:
    """The same curves to the byte, and the same weights to the bit."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert weights.keys() == others.keys()
    return (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes() and all(
        np.array_equal(weights[name], others[name]) for name in weights
    )


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_an_uninterrupted_run(uninterrupted):
    records = read_metrics(uninterrupted)
    assert [r["step"] for r in records if "lr" in r] == list(range(1, 13))
    assert [(r["step"], r["epoch"]) for r in records if "val_loss" in r and "event" not in r] == [
        (4, 1.0),
        (8, 2.0),
        (12, 3.0),
    ]
    assert [r["lr"] for r in records if "lr" in r][:5] == pytest.approx(
        [p * 0.5 * 3 / 256 for p in (0.25, 0.5, 0.75, 1, 1)]
    )
    assert records[-1]["event"] == "finished"
    assert steps(uninterrupted) == ["step-00000009", "step-00000012"]
    assert json.loads((uninterrupted / "recipe.json").read_text())["recipe"] == small().resolved(
        dim=16, longest_seconds=180.0
    )


@pytest.mark.parametrize(
    ("function", "call", "when"),
    [
        (LOOP + "_Training._step", 2, "before"),  # no checkpoint yet
        (LOOP + "_Training._step", 8, "after"),
        (LOOP + "RunFolder.write", 9, "half a line"),
        (LOOP + "Validation.score", 2, "before"),
        (CHECKPOINTS + "save_tensors", 1, "half a file"),  # the weights of the first checkpoint
        (CHECKPOINTS + "save_tensors", 4, "half a file"),  # the moments of the second
        (CHECKPOINTS + "Path.replace", 7, "before"),
        (CHECKPOINTS + "Path.replace", 10, "after"),
        (LOOP + "draw_curves", 1, "before"),
        (LOOP + "save_model", 1, "before"),
        (LOOP + "write_text", 1, "before"),  # the model is there, its card is not
    ],
)
def test_killed_and_started_again(store, processes, uninterrupted, tmp_path, function, call, when):
    out = tmp_path / "run"
    assert processes.run(train, store, out, small(), spot=(function, call, when)) == KILLED
    assert (
        not (out / "metrics.jsonl").exists()
        or (out / "metrics.jsonl").read_bytes() != (uninterrupted / "metrics.jsonl").read_bytes()
    )
    assert processes.run(train, store, out, small()) == 0
    assert same(out, uninterrupted)
    assert steps(out) == steps(uninterrupted)


def test_killed_from_outside_again_and_again(store, processes, uninterrupted, tmp_path):
    out = tmp_path / "run"
    generator = np.random.default_rng(0)
    kills = 0
    for _ in range(40):
        process = processes.start(train, store, out, small())
        deadline = time.monotonic() + generator.uniform(0.0, 1.0)
        # The clock starts where training does, however slow the machine.
        while process.is_alive() and not (out / "metrics.jsonl").exists():
            time.sleep(0.01)
        while process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.join()
        kills += process.exitcode == KILLED
        if process.exitcode == 0 or kills == 4:
            break
    assert processes.run(train, store, out, small()) == 0
    assert same(out, uninterrupted)


def test_ctrl_c_stops_with_a_checkpoint(store, processes, uninterrupted, tmp_path):
    out = tmp_path / "run"
    assert processes.run(train, store, out, small(), spot=(LOOP + "_Training._step", 5, "interrupted")) == 130
    assert "Stopped after step 5 of 12" in Path(f"{out}.said").read_text()
    assert "rerun the same command" in Path(f"{out}.said").read_text()
    assert steps(out) == ["step-00000003", "step-00000005"]
    assert processes.run(train, store, out, small()) == 0
    assert same(out, uninterrupted)


def test_a_finished_run_is_left_alone(store, uninterrupted, caplog):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    with caplog.at_level("INFO", logger="lvmae"):
        assert pretrain(store, uninterrupted, recipe=small()) == uninterrupted
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before
    assert "is finished, after 12 steps: there is nothing to do" in caplog.text


def test_workers_change_nothing(store, processes, uninterrupted, tmp_path):
    assert processes.run(train, store, tmp_path / "run", small(num_workers=2)) == 0
    assert same(tmp_path / "run", uninterrupted)


def test_settings_that_change_no_result_may_change_on_the_way(store, processes, uninterrupted, tmp_path):
    out = tmp_path / "run"
    assert processes.run(train, store, out, small(), spot=(LOOP + "_Training._step", 8, "before")) == KILLED
    assert processes.run(train, store, out, small(num_workers=1, checkpoint_every=2, log_every=1, keep=1)) == 0
    assert same(out, uninterrupted)
    assert steps(out) == ["step-00000012"]


@pytest.fixture
def interrupted(store, processes, tmp_path) -> Path:
    """A run that was killed in step 8: checkpoints of steps 3 and 6."""
    out = tmp_path / "run"
    assert processes.run(train, store, out, small(), spot=(LOOP + "_Training._step", 8, "before")) == KILLED
    assert steps(out) == ["step-00000003", "step-00000006"]
    return out


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(interrupted, store, processes, uninterrupted, name):
    file = interrupted / "checkpoints/step-00000006" / name
    os.truncate(file, file.stat().st_size // 2)
    assert processes.run(train, store, interrupted, small(), spot=(LOOP + "_Training._step", 1, "before")) == KILLED
    assert steps(interrupted) == ["step-00000003"]
    assert processes.run(train, store, interrupted, small()) == 0
    assert same(interrupted, uninterrupted)


def test_with_no_whole_checkpoint_left_it_does_not_start_over_by_itself(interrupted, store):
    for path in (interrupted / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(WorkError, match=r"Every checkpoint in .* is damaged: restore one, or remove the folder"):
        pretrain(store, interrupted, recipe=small())
    assert len(steps(interrupted)) == 2


def test_a_full_disk_keeps_the_last_good_checkpoint(interrupted, store, processes, uninterrupted):
    assert processes.run(train, store, interrupted, small(), largest_file=12_000) == 1
    said = Path(f"{interrupted}.said").read_text()
    assert "The checkpoint of step 9 could not be written" in said
    assert "the last good checkpoint is step-00000006; make room there and rerun the same command" in said
    assert steps(interrupted) == ["step-00000003", "step-00000006"]
    assert processes.run(train, store, interrupted, small()) == 0
    assert same(interrupted, uninterrupted)


def test_a_run_in_use_is_refused(store, processes, tmp_path):
    out = tmp_path / "run"
    process = processes.start(train, store, out, small(epochs=2000))
    try:
        while not (out / "checkpoints").exists():
            assert process.is_alive()
            time.sleep(0.05)
        with pytest.raises(InputError, match="Another process is training in"):
            pretrain(store, out, recipe=small(epochs=2000))
    finally:
        process.kill()
        process.join()
