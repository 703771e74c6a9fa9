"""Checkpoints, written atomically: each is complete or absent.

    checkpoints/step-00001200/
      model.safetensors, config.json   a model like any other: `from_pretrained` reads it
      optimizer.safetensors            AdamW's moments, `<moment>/<parameter>`
      state.json                       the step, the length of metrics.jsonl, the loss scaler, and a hash of this

Each is written beside its place, brought to the disk and renamed. Tensors and state carry their hashes. Nothing in it can execute
code. Weights and moments are the full ones whatever the parallelism, so a run may resume with another number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedConfig

from lvmae.errors import WorkError
from lvmae.files.json_files import parse_object
from lvmae.files.tensors import check_tensors, save_tensors
from lvmae.files.writing import TEMPORARY, reason, remove, replacing

log = logging.getLogger(__name__)

_CHECK = "sha256"  # of everything else that state.json says
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk. `state` is what `state.json` says: "step", "metrics_bytes" and what else was given."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


class Checkpoints:
    """The checkpoints of a run, newest last; `keep` of them stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def empty(self) -> bool:
        """Whether there is none, whole or damaged."""
        return not self._all()

    def save(self, snapshot: Snapshot, config: PreTrainedConfig, state: Mapping[str, Any]) -> None:
        """Writes a checkpoint for `state["step"]`, then removes the oldest.

        Raises WorkError, with nothing half-written left behind, where the disk refuses it or the weights are not finite.
        """
        step = int(state["step"])
        bad = next((name for name, tensor in snapshot.model.items() if not torch.isfinite(tensor).all()), None)
        if bad is not None:
            raise WorkError(
                f"After step {step} the weights are no longer finite ({bad}): {self.kept()}; lower base_lr, set clip_norm=1, "
                "or use precision=bf16 or fp32 in a new run."
            )
        target = self.folder / f"step-{step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(target) as partial:
                partial.mkdir()
                save_model(partial, config, snapshot.model)
                save_tensors(snapshot.optimizer, partial / "optimizer.safetensors")
                checked = {**state, _CHECK: _digest(state)}
                (partial / "state.json").write_text(json.dumps(checked, indent=1))
                remove(target)
        except (OSError, SafetensorError) as error:
            raise WorkError(
                f"The checkpoint of step {step} could not be written to {self.folder} ({reason(error)}): {self.kept()}; make "
                "room there and rerun the same command to resume."
            ) from error
        for old in self._all()[: -self.keep]:
            remove(old)

    def latest(self) -> tuple[Checkpoint | None, list[Path]]:
        """The newest whole checkpoint, None if there is none at all, and the damaged ones that are newer.

        Raises WorkError if there are checkpoints and all of them are damaged.
        """
        damaged: list[Path] = []
        for path in reversed(self._all()):
            try:
                return read_checkpoint(path), damaged
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                log.warning("The checkpoint %s is damaged (%s); the one before it is used.", path, reason(error))
                damaged.append(path)
        if damaged:
            raise WorkError(
                f"Every checkpoint in {self.folder} is damaged: restore one, or remove the folder to start the run again."
            )
        return None, damaged

    def clean(self, damaged: list[Path]) -> None:
        """Removes damaged checkpoints and what an interrupted save left."""
        for path in [*damaged, *self.folder.glob(".*.partial"), *self.folder.glob(f"{TEMPORARY}*")]:
            remove(path)

    def kept(self) -> str:
        """What an error says about where the run stands."""
        for path in reversed(self._all()):
            with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
                return f"the last good checkpoint is {read_checkpoint(path).path.name}"
        return "there is no good checkpoint" if self._all() else "there is no checkpoint yet"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-????????"))


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of which every byte has been read. One of an older version has no hashes: there lengths are checked.

    Raises OSError, SafetensorError, ValueError, KeyError or TypeError if it is damaged.
    """
    hashed = [check_tensors(path / name) for name in ("model.safetensors", "optimizer.safetensors")]
    state = parse_object((path / "state.json").read_bytes())
    if state.pop(_CHECK, None) not in (_digest(state), *([] if any(hashed) else [None])):
        raise ValueError("state.json is not as it was written")
    return Checkpoint(path, {**state, "step": int(state["step"])})


def _digest(state: Mapping[str, Any]) -> str:
    said = {key: value for key, value in state.items() if key != _CHECK}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A model's and its optimiser's tensors, whole and on the host; empty on every process but the first."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @classmethod
    def take(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
        """Of a plain, compiled, DDP or FSDP model; every process has to call it."""
        weights: dict[str, Any] = get_model_state_dict(model, options=_FULL)
        moments: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FULL).get("state", {})  # type: ignore[assignment]
        return cls(
            {name: tensor.contiguous() for name, tensor in weights.items()},
            {f"{moment}/{name}": tensor for name, of in moments.items() for moment, tensor in of.items()},
        )


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's weights and moments back; every process has to call it. Hyper-parameters stay as they are."""
    weights: dict[str, Any] = load_file(checkpoint.path / "model.safetensors")
    set_model_state_dict(model, weights, options=_FULL)
    moments: dict[str, Any] = {}
    for key, tensor in load_file(checkpoint.path / "optimizer.safetensors").items():
        moment, _, name = key.partition("/")
        moments.setdefault(name, {})[moment] = tensor
    state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    state["state"] = moments
    set_optimizer_state_dict(model, optimizer, state, options=_FULL)


def save_model(folder: Path, config: PreTrainedConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Writes `config.json` and `model.safetensors`, each in one step. Raises OSError and SafetensorError."""
    config.architectures = ["LVMAEForPreTraining"]
    with (
        replacing(folder / "model.safetensors") as weights,  # the second one to take its place
        replacing(folder / "config.json") as text,
    ):
        text.write_text(config.to_json_string())
        save_tensors(tensors, weights)
