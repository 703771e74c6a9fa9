"""The grid of an ablation: axes of values -> cells, each a store and a resolved recipe.

In: `key=value,value` settings or a plan in TOML, and named stores. Out: the product, in the order it was written, the
last axis fastest. Everything that can be wrong with a cell is said before the first one runs.

An axis is a setting of the recipe (`mask`, `mask_ratio`, `layers`, `max_seconds` (the cap on a clip's length), `seed`, ...),
`recipe` itself, or `store`: segment length and number of frames are decided when videos are embedded, so each of their
values is a store of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvmae import recipes
from lvmae.errors import InputError
from lvmae.pretraining.run_folder import RunFolder
from lvmae.recipes import Recipe
from lvmae.store import EMBEDDINGS, EmbeddingStore

RECIPE, STORE, SEED = "recipe", "store", "seed"
_PLAN: dict[str, tuple[type, str]] = {
    "annotations": (str, "a path"),
    "grid": (dict, "a table: [grid] and a line for each axis"),
    "labels": (str, "a path"),
    "on": (dict, "a table: [on] and a line for each store"),
    "probes": (list, "a list of names"),
    "raw": (bool, "true or false"),
    "recipe": (str, "a name"),
    "seeds": (int, "a number"),
    "settings": (dict, "a table: [settings] and a line for each setting"),
    "stores": (dict, "a table: [stores] and a line for each store"),
    "task": (str, "a name"),
}
_SLUG_LENGTH = 80


@dataclass(frozen=True)
class Cell:
    """One store and one resolved recipe.

    Attributes:
        at: its place on every axis, by name: what tells it from the others.
        name: the store's.
        store: what is trained on.
        on: what is represented and probed, the same store or another.
    """

    at: dict[str, Any]
    name: str
    store: EmbeddingStore
    on: EmbeddingStore
    recipe: Recipe

    @property
    def digest(self) -> str:
        """Returns a hash of the training: store, recipe and settings, except settings that only change its speed."""
        return self._digest(self.store.fingerprint, self.recipe)

    @staticmethod
    def _digest(fingerprint: str, recipe: Recipe) -> str:
        named = [fingerprint, recipe.computing()]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:10]

    def folder(self, cells: Path) -> Path:
        """Returns the folder that holds this training, also one of another grid; else a new readable name."""
        said = "_".join(f"{key}-{text_of(value)}" for key, value in self.at.items()) or "only"
        new = cells / f"{re.sub('[^A-Za-z0-9.+-]+', '_', said)[:_SLUG_LENGTH]}_{self.digest}"
        # What an older version began is continued, in its own order of batches where it had no setting for that.
        before = [] if "order" in self.at else [replace(self.recipe, order="shuffled")]
        prints = self.store.fingerprint, self.store.old_fingerprint
        for recipe in [self.recipe, *before]:
            for digest in (self._digest(fingerprint, recipe) for fingerprint in prints):
                for path in sorted(cells.glob(f"*_{digest}")):
                    if recipe is self.recipe or "order" not in RunFolder(path / "run").recipe:
                        return path
        return new

    def __str__(self) -> str:
        return _said(self.at) or self.recipe.name


@dataclass(frozen=True)
class Grid:
    """Axes and the cells of their product. Cells train on `stores` and probe the stores in `on`, by the same names."""

    axes: dict[str, tuple[Any, ...]]
    stores: dict[str, EmbeddingStore]
    on: dict[str, EmbeddingStore]
    cells: tuple[Cell, ...]

    @classmethod
    def of(
        cls,
        stores: Mapping[str, str | Path | EmbeddingStore],
        axes: Mapping[str, Sequence[Any]],
        *,
        on: Mapping[str, str | Path | EmbeddingStore] | None = None,
        recipe: str | Recipe = "base",
        settings: Mapping[str, Any] | None = None,
    ) -> Grid:
        """Builds the grid over named stores and axes.

        Args:
            stores: name -> store; several are an axis.
            axes: a recipe's key, or "recipe" -> its values, as themselves or as text.
            on: name -> the store of labelled videos that a store's models are probed on; None takes the store itself.
            recipe: what every cell begins with, where "recipe" is no axis.
            settings: of all cells; an axis goes over them.

        Raises:
            InputError: an unknown key, a value that cannot be read or comes twice, a cell that no model can be made for,
                a store that is none.
        """
        if not stores:
            raise InputError("an ablation needs a store: name at least one")
        opened = {name: EmbeddingStore.open(store) for name, store in stores.items()}
        probed = opened if not on else {name: EmbeddingStore.open(store) for name, store in on.items()}
        if probed.keys() != opened.keys():
            raise InputError(
                f"the stores to probe on are named {', '.join(probed)} and those to train on {', '.join(opened)}; name them alike"
            )
        for name, store in (*opened.items(), *probed.items()):
            if store.kind != EMBEDDINGS:
                raise InputError(
                    f"{store.path} holds {store.kind}; give the store of embeddings that they were made from"
                )
            if store.space_id != opened[name].space_id:
                raise InputError(f"{store.path} and {opened[name].path} are of two embedding spaces; embed them alike")
        if STORE in axes:
            raise InputError("stores are no setting: name them beside the grid: NAME=PATH each, or under [stores]")
        varied: dict[str, Sequence[Any]] = {STORE: list(opened)} if len(opened) > 1 else {}
        varied |= axes
        for key, values in varied.items():
            if isinstance(values, str) or not values:
                raise InputError(f"the axis '{key}' needs at least one value")
        cells: dict[str, Cell] = {}
        for place in itertools.product(*varied.values()):
            cell = _cell(dict(zip(varied, place, strict=True)), opened, probed, recipe, settings)
            if str(cell) in cells:
                raise InputError(f"the cell {cell} comes twice; give each value of an axis once")
            cells[str(cell)] = cell
        # The values as the recipe has them, whatever they were written as.
        read = {key: tuple(dict.fromkeys(cell.at[key] for cell in cells.values())) for key in varied}
        return cls(read, opened, dict(probed), tuple(cells.values()))


def _cell(
    at: dict[str, Any],
    stores: Mapping[str, EmbeddingStore],
    on: Mapping[str, EmbeddingStore],
    recipe: str | Recipe,
    settings: Mapping[str, Any] | None,
) -> Cell:
    """The cell at one place. Raises InputError."""
    name = at[STORE] if STORE in at else next(iter(stores))
    changed = {key: value for key, value in at.items() if key not in (RECIPE, STORE)}
    try:
        resolved = recipes.named(at.get(RECIPE, recipe)).with_settings({**(settings or {}), **changed})
        recipes.check_trust(at.get(RECIPE, recipe), resolved, {**(settings or {}), **changed})
        resolved.heads_for(stores[name].dim)
    except InputError as error:
        raise InputError(f"The cell {_said(at)}: {error}") from None
    read = {key: getattr(resolved, key) if key in changed else value for key, value in at.items()}
    return Cell(read, name, stores[name], on[name], resolved)


def axes_of(pairs: Iterable[str]) -> dict[str, list[str]]:
    """Parses axes given as `key=value,value`. Raises InputError."""
    axes: dict[str, list[str]] = {}
    for pair in pairs:
        key, separator, values = pair.partition("=")
        found = [value.strip() for value in values.split(",")]
        if not separator or not key or not all(found):
            raise InputError(f"`grid` {pair!r} is not of the form key=value,value")
        if key in axes:
            raise InputError(f"`grid` names {key} twice; write its values with commas between them")
        axes[key] = found
    return axes


def read_plan(path: str | Path) -> dict[str, Any]:
    """Reads a plan in TOML as keyword arguments of `ablate`; its paths are relative to the plan's folder.

        recipe = "tiny"
        labels = "labels.csv"     # or task = "lvu/director" and annotations = "folder"
        seeds = 5
        [stores]
        5s = "store5"
        [grid]
        mask = ["random", "semantic"]
        [settings]
        epochs = 50

    Raises:
        InputError: no such file, not TOML, or a key that a plan does not have.
    """
    path = Path(path)
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the plan {path} cannot be read as TOML: {error}") from None
    for key, value in plan.items():
        if key not in _PLAN:
            raise InputError(f"the plan {path} has the unknown key '{key}'; known are {', '.join(_PLAN)}")
        kind, said = _PLAN[key]
        if type(value) is not kind:
            raise InputError(f"'{key}' in the plan {path} has to be {said}")
    for key, values in plan.get("grid", {}).items():
        if not isinstance(values, list):
            raise InputError(f"'{key}' in [grid] of {path} has to be a list of values, such as [0.3, 0.5]")
    for key in plan.keys() & {"annotations", "labels"}:
        plan[key] = _from(path, plan[key])
    for key in plan.keys() & {"stores", "on"}:
        plan[key] = {name: _from(path, store) for name, store in plan[key].items()}
    return plan


def _from(plan: Path, path: Any) -> str:
    if not isinstance(path, str):
        raise InputError(f"the plan {plan} has {path!r} where a path belongs")
    return path if "://" in path else str(plan.parent / Path(path).expanduser())


def _said(at: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={text_of(value)}" for key, value in at.items())


def text_of(value: Any) -> str:
    """A value of an axis, for names and tables."""
    return f"{value:g}" if isinstance(value, float) else str(value)
