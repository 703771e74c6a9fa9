"""Tensors in files: equal ones make equal files, and a flipped bit is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from lvmae.files.tensors import check_tensors, save_tensors

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(3, dtype=torch.float16)}


def test_equal_tensors_are_equal_files(tmp_path: Path) -> None:
    """A run is known by a hash of its files, so nothing random may be in them."""
    for number in range(8):  # safetensors orders two entries of metadata by chance
        save_tensors(TENSORS, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_each_flipped_bit_of_the_tensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(TENSORS, path)
    assert check_tensors(path)
    whole = path.read_bytes()
    for place in range(len(whole) - 30, len(whole)):  # the tensors' 30 bytes
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises((ValueError, SafetensorError)):
            check_tensors(path)
