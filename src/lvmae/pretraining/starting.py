"""Weights that a run begins with instead of random ones: those of another run, or of an official checkpoint."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lvmae.errors import InputError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.pretraining.split import Split
from lvmae.runs import HELD_OUT, TRAIN, is_run, load_run_autoencoder, read_split, run_fingerprint

log = logging.getLogger(__name__)

# What has to be alike: all that a weight's shape and meaning depend on.
_ALIKE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "decoder_hidden_size",
    "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size", "embedding_scale",
    "center",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A folder of a run, or a file of an official checkpoint, and a hash of what it holds."""

    path: Path
    fingerprint: str

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Start:
        """Raises InputError if there is neither."""
        where = Path(path).expanduser()
        if where.is_dir() or is_run(where):
            return cls(where, run_fingerprint(where))
        if not where.is_file():
            raise InputError(f"there is no run and no checkpoint at {path}, to take initial weights from")
        with where.open("rb") as file:
            return cls(where, hashlib.file_digest(file, "sha256").hexdigest())

    @property
    def description(self) -> dict[str, str]:
        """What recipe.json records."""
        return {"path": str(self.path), "fingerprint": self.fingerprint}

    def give_to(self, model: LVMAEForPreTraining) -> None:
        """Copies the weights of encoder and decoder; what is the objective's own begins as it does in any run.

        Raises InputError if sizes or the space are others than the model's.
        """
        config: LVMAEConfig = model.config
        given = self._load(config)
        for name in _ALIKE:
            ours, theirs = getattr(config, name), getattr(given.config, name)
            if ours != theirs and not (isinstance(ours, float) and abs(ours - theirs) < 1e-6):
                raise InputError(
                    f"{self.path} has {name} {theirs} and this recipe {ours}: set the recipe to the sizes of the weights that "
                    "the run begins with"
                )
        if given.config.space_id and given.config.space_id != config.space_id:
            raise InputError(
                f"{self.path} was trained on the space {given.config.space_id} and the store is of {config.space_id}: its weights "
                "mean nothing there"
            )
        own, weights = model.state_dict(), given.state_dict()
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("objective.") and name in own}
        lacking = sorted(name for name in own if not name.startswith("objective.") and name not in kept)
        if lacking:
            raise InputError(f"{self.path} holds no whole LV-MAE model: its weights lack {lacking[0]}")
        with torch.no_grad():
            model.load_state_dict(kept, strict=False)
        log.info("The run begins with the weights of %s.", self.path)

    def _load(self, config: LVMAEConfig) -> Any:
        if self.path.is_dir():
            return load_run_autoencoder(self.path)
        try:
            return LVMAEForPreTraining.from_official_checkpoint(self.path)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{self.path} cannot be read as an official checkpoint: {error}") from None

    def warn_of_leaks(self, split: Split) -> None:
        """Says how many of the videos that are held out now the weights have been trained on."""
        before = read_split(self.path) if self.path.is_dir() else None
        held = [
            split.stores[n].ids[place] for n, places in enumerate(split.places(HELD_OUT)) for place in places.tolist()
        ]
        if before is None:
            log.warning(
                "It is not known which videos %s was trained on: figures on held-out videos may flatter.", self.path
            )
            return
        seen = sorted({identity for identity in held if before.get(identity) == TRAIN})
        if seen:
            log.warning(
                "%s was trained on %d of the %d videos that are held out here; the first is %r. Figures on them flatter: give the "
                "same seed and val_fraction, or leave them out.", self.path, len(seen), len(held), seen[0],
            )  # fmt: skip
