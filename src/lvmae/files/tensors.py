"""Tensors in safetensors files that know their own hash: a flipped bit is noticed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lvmae.files.writing import TEMPORARY

_DIGEST = "lvmae_sha256"


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file whose metadata hold the hash of its tensors. Raises OSError and SafetensorError."""
    named = dict(tensors)
    save_file(named, path, metadata={"format": "pt", _DIGEST: _digest(named)})
    _order_metadata(path)
    # safetensors makes files that only their owner can read.
    plain = path.with_name(f"{TEMPORARY}{path.name}.mode")
    plain.touch()
    path.chmod(plain.stat().st_mode)
    plain.unlink()


def _order_metadata(path: Path) -> None:
    """Puts the metadata in order, in place: safetensors writes them in a random one, and equal tensors are to be equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= size:
            file.seek(8)
            file.write(ordered.ljust(size))


def check_tensors(path: Path) -> bool:
    """Reads every byte of a safetensors file. False for one of an older version: it has no hash, and its length is checked alone.

    Raises:
        ValueError: a tensor is not what was written.
        OSError, SafetensorError: the file cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(_DIGEST)
        if written is not None and written != _digest({name: file.get_tensor(name) for name in file.keys()}):  # noqa: SIM118
            raise ValueError("its bytes are not those that were written")
        return written is not None


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
