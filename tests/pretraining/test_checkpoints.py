"""Checkpoints whose bytes have changed are noticed, and the one before is used."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lvmae.errors import WorkError
from lvmae.model import LVMAEConfig
from lvmae.pretraining.checkpoints import Checkpoints, Snapshot


def saved(folder: Path) -> Checkpoints:
    """Checkpoints of steps 3 and 6."""
    checkpoints = Checkpoints(folder, keep=2)
    for step in (3, 6):
        tensors = {"layer.weight": torch.arange(60, dtype=torch.float32) * step, "scale": torch.tensor(float(step))}
        moments = {f"exp_avg/{name}": tensor.bfloat16() for name, tensor in tensors.items()}
        checkpoints.save(Snapshot(tensors, moments), LVMAEConfig(), {"step": step, "metrics_bytes": 17 * step})
    return checkpoints


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    newest, damaged = saved(tmp_path).latest()
    assert newest is not None
    assert damaged == []
    assert (newest.step, newest.state) == (6, {"step": 6, "metrics_bytes": 102})
    torch.testing.assert_close(load_file(newest.path / "model.safetensors")["layer.weight"], torch.arange(60.0) * 6)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_bit_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path)
    file = tmp_path / "step-00000006" / name
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    # Behind the header of a tensor file, which says lengths, names and the hash itself; of text every byte.
    first = 8 + int.from_bytes(content[:8], "little") if name.endswith("safetensors") else 0
    for _ in range(50):
        harmed = bytearray(content)
        harmed[int(generator.integers(first, len(content)))] ^= 1 << int(generator.integers(8))
        file.write_bytes(harmed)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            newest, damaged = checkpoints.latest()
        if name == "state.json" and newest is not None and newest.step == 6:
            assert newest.state == {"step": 6, "metrics_bytes": 102}  # white space, or the name of the hash
            continue
        assert newest is not None
        assert newest.step == 3
        assert damaged == [tmp_path / "step-00000006"]
        assert "step-00000006 is damaged" in caplog.text
        assert "the one before it is used" in caplog.text
        assert checkpoints.kept() == "the last good checkpoint is step-00000003"
    checkpoints.clean(damaged)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_flipped_bit_in_a_header_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    file = tmp_path / "step-00000006" / "model.safetensors"
    content, right = file.read_bytes(), load_file(file)
    for place in range(8 + int.from_bytes(content[:8], "little")):
        harmed = bytearray(content)
        harmed[place] ^= 2
        file.write_bytes(harmed)
        newest, _ = checkpoints.latest()
        assert newest is not None
        if newest.step == 6:
            read = load_file(file)
            assert read.keys() == right.keys()
            assert all(torch.equal(read[key], right[key]) for key in right)


def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    for file in (tmp_path / "step-00000006").glob("*.safetensors"):
        save_file(load_file(file), file, metadata={"format": "pt"})
    (tmp_path / "step-00000006/state.json").write_text(json.dumps({"step": 6, "metrics_bytes": 9}))
    newest, damaged = checkpoints.latest()
    assert newest is not None
    assert (newest.state, damaged) == ({"step": 6, "metrics_bytes": 9}, [])


def test_all_damaged_is_said(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    for file in tmp_path.rglob("optimizer.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(WorkError, match=r"Every checkpoint in .* is damaged"):
        checkpoints.latest()
    assert checkpoints.kept() == "there is no good checkpoint"
