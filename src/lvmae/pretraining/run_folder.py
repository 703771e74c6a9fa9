"""The folder of a run: who may write to it, what it was started with, and its curves.

recipe.json     the resolved recipe (no null: what is off is "none"), the stores by space, fingerprint and split, the versions
                of lvmae and torch, the weights it began with, and the epochs of which it was made longer
split.csv       which videos are trained on and which are held out (`lvmae.pretraining.split`)
metrics.jsonl   {"step", "epoch", "loss", "lr", "grad_norm"} a step; {"step", "epoch", "val_..."} a validation; then one
                line {"event": "finished", ...}. No times: two runs of one recipe on one CPU write the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lvmae import __version__
from lvmae.errors import InputError, WorkError
from lvmae.files.json_files import read_lines, read_object
from lvmae.files.locks import Lock
from lvmae.files.writing import TEMPORARY, remove_leftovers, write_json
from lvmae.model.objectives import is_per_row
from lvmae.pretraining.split import Split
from lvmae.recipes import FREE, Recipe
from lvmae.store import EmbeddingStore

_RECIPE, _METRICS, _LOCK = "recipe.json", "metrics.jsonl", ".lock"


class RunFolder:
    """A run's folder. `check` only reads, so that every process may call it; the other methods are the first process's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock(path / _LOCK, f"Another process is training in {path}: wait for it, or name another folder.")
        self._metrics: int | None = None

    def check(self, description: dict[str, Any], *, resume: bool, resolve: Callable[[Recipe], dict[str, Any]]) -> bool:
        """Whether the run here is finished and to be made longer, to the epochs of `description`.

        What only the run here knows (with which versions it began, where it was made longer) is added to `description`.

        Raises InputError if the folder holds something else, or a run that was started with something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: name a folder for the run.")
        try:
            there = read_object(self.path / _RECIPE, "restore it, or name another folder for the run")
        except FileNotFoundError:
            mine = (_LOCK, f".{_RECIPE}")
            strangers = [p.name for p in self.path.glob("*") if p.name not in mine and not p.name.startswith(TEMPORARY)]
            if strangers:
                raise InputError(
                    f"{self.path} holds other files ({', '.join(sorted(strangers)[:3])}): name a new or empty folder for the run."
                ) from None
            return False
        stores = there.get("stores", [])
        listed = isinstance(stores, list) and all(isinstance(store, dict) for store in stores)
        if not listed or not isinstance(there.get("recipe"), dict):
            raise InputError(f"{self.path / _RECIPE} is not that of a run: name another folder for the run.")
        if not resume:
            raise InputError(f"{self.path} already holds a run: name another folder, or resume it.")
        differing = _differences(there, description, resolve)
        finished, epochs, wanted = self.finished, there["recipe"].get("epochs"), description["recipe"]["epochs"]
        if finished and list(differing) == ["epochs"] and isinstance(epochs, int):
            if wanted < epochs:
                raise InputError(
                    f"{self.path} is finished after {epochs} epochs and cannot be made shorter: name another folder for {wanted}."
                )
            begun = {"epochs": epochs, "step": finished["step"]}
            description["made_longer"] = [*there.get("made_longer", []), begun]
            differing = {}
        elif "made_longer" in there:
            description["made_longer"] = there["made_longer"]
        if differing:
            raise InputError(
                f"{self.path} holds a run that was started differently ({'; '.join(differing.values())}): "
                "give the same settings and stores to resume it, or name another folder."
            )
        description["versions"] = there.get("versions") or description["versions"]
        return bool(finished) and epochs != wanted

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe that the run was begun with, as it is written; empty if there is none that can be read."""
        try:
            written = read_object(self.path / _RECIPE)["recipe"]
        except (OSError, ValueError, TypeError, KeyError):
            return {}
        return written if isinstance(written, dict) else {}

    @property
    def finished(self) -> dict[str, Any] | None:
        """The last line of the curves where it says that the run is finished."""
        records = read_metrics(self.path)
        return records[-1] if records and records[-1].get("event") == "finished" else None

    def open(self, description: Mapping[str, Any], split: Split, *, metrics_bytes: int) -> None:
        """Takes the folder for this process and cuts the curves to what the checkpoint had seen.

        Raises InputError if another process is at work in it, WorkError if the curves are shorter than that.
        """
        self._lock.take()
        remove_leftovers(self.path)
        write_json(self.path / _RECIPE, description)
        split.write(self.path)
        self._metrics = os.open(self.path / _METRICS, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(self._metrics).st_size < metrics_bytes:
            raise WorkError(
                f"{self.path / _METRICS} is shorter than it was at the last checkpoint: restore it to resume."
            )
        os.ftruncate(self._metrics, metrics_bytes)
        os.lseek(self._metrics, metrics_bytes, os.SEEK_SET)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a line to the curves. Raises WorkError if the disk refuses it."""
        assert self._metrics is not None
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._metrics, line) :]
        except OSError as error:
            raise WorkError(
                f"{self.path / _METRICS} could not be written ({error.strerror}): make room there and rerun the same command."
            ) from error

    def settle(self) -> int:
        """Brings the curves to the disk; their length in bytes."""
        assert self._metrics is not None
        os.fsync(self._metrics)
        return os.lseek(self._metrics, 0, os.SEEK_CUR)

    def close(self) -> None:
        """Lets go of the folder."""
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        self._lock.release()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the curves of a run, one dictionary per line, without a line that a crash cut short."""
    try:
        return read_lines(Path(path) / _METRICS)
    except FileNotFoundError:
        return []


def _differences(
    there: Mapping[str, Any], now: Mapping[str, Any], resolve: Callable[[Recipe], dict[str, Any]]
) -> dict[str, str]:
    """Returns sentences on what differs."""
    written, new = there["recipe"], now["recipe"]
    unknown = sorted(written.keys() - new.keys())
    if unknown:
        said = f"its recipe has the setting {unknown[0]}, which lvmae {__version__} does not know: use the version that made it"
        return {unknown[0]: said}
    try:
        recipe = Recipe.from_dict(written)
        old = resolve(recipe)
    except InputError as error:
        return {"recipe": f"its recipe is not one that can be resumed: {str(error).rstrip('.')}"}
    free = FREE | {"name"} | ({"accumulation"} if is_per_row(recipe.loss) else set())
    found = {
        key: f"{key} is {_short(old[key])} there and {_short(new[key])} here"
        for key in new
        if key not in free and old[key] != new[key]
    }
    if there.get("init", {}).get("fingerprint") != now.get("init", {}).get("fingerprint"):
        paths = [side.get("init", {}).get("path") for side in (there, now)]
        was, now_is = (f"the weights of {path}" if path else "random weights" for path in paths)
        found["init"] = f"it began with {was} there and with {now_is} here"
    if there.get("watch") != now.get("watch"):
        found["watch"] = "best_by follows other labels"
    stores, given = there.get("stores", []), now["stores"]
    if len(stores) != len(given):
        found["stores"] = f"{len(stores)} stores there and {len(given)} here"
    for number, (old_store, this) in enumerate(zip(stores, given, strict=False)):
        key = f"store {number}"
        if old_store.get("space_id") != this["space_id"]:
            found[key] = f"its store is of the space {old_store.get('space_id')}, {this['path']} of {this['space_id']}"
        elif old_store.get("fingerprint") != this["fingerprint"] and not _is_older_name(
            old_store.get("fingerprint"), this["path"]
        ):
            found[key] = f"the store {this['path']} has other content than when the run was started"
        elif old_store.get("split", this["split"]) != this["split"] and not found:
            found[key] = f"other videos of {this['path']} are trained on: `only` and `exclude` have to be the same"
    return found


def _is_older_name(fingerprint: Any, path: str) -> bool:
    """Whether an older version wrote this fingerprint of the store as it is: it hashed less."""
    try:
        return isinstance(fingerprint, str) and EmbeddingStore(path).has_fingerprint(fingerprint)
    except InputError:
        return False


def _short(value: Any) -> str:
    return json.dumps(value)
