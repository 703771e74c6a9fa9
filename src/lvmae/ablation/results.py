"""The results of an ablation as rows: one per cell and probe, and one per failed cell.

In: what the cells left. Out: the columns of `results.parquet`, and groups of rows that differ in nothing but seeds, which
is what tables and figures show.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvmae.ablation.grid import RECIPE, SEED, STORE, Grid
from lvmae.evaluation.features import LEARNT, RAW
from lvmae.recipes import Recipe

DONE, FAILED = "done", "failed"

_MEASURED: dict[str, Any] = {
    "cell": str, "status": str, "reason": str, "store": str, "store_path": str, "space_id": str, "segment_seconds": float,
    "num_frames": int, "task": str, "features": str, "probe": str, "metric": str, "mean": float, "std": float, "low": float,
    "high": float, "values": list[float], "epochs_chosen": list[int], "probe_steps": int, "missing_videos": int,
    "steps": int, "train_loss": float, "score": str, "val_score": float, "interpolation_score": float, "mean_score": float,
    "fingerprint": str, "pretrain_seconds": float, "represent_seconds": float, "probe_seconds": float,
}  # fmt: skip


def columns() -> dict[str, Any]:
    """The columns of `results.parquet`: name -> type. A setting of the recipe has its own name, and `recipe` is the recipe's."""
    return {**_MEASURED, RECIPE: str, **{key: _plain(kind) for key, kind in _settings().items()}}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe's part of a row."""
    values = recipe.to_dict()
    return {RECIPE: values["name"], **{key: values[key] for key in _settings()}}


@dataclass(frozen=True)
class Group:
    """The runs of one probe at one place of the grid; they differ only in their seeds.

    Attributes:
        at: axis -> value, without the seed.
        features: "LV-MAE", or the raw embeddings of a store.
        values: the score of every pre-training seed x probe seed.
        low, high: the 95 % interval over test videos; the mean of those of the pre-training seeds.
        failed: cells of it that failed.
    """

    at: dict[str, Any]
    features: str
    probe: str
    metric: str
    values: tuple[float, ...]
    low: float
    high: float
    failed: int = 0

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def std(self) -> float:
        """Returns the standard deviation over all values (n - 1); 0 for a single value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


def groups(grid: Grid, rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Groups the rows by place in the order of the grid, raw embeddings of each store first."""
    done = [row for row in rows if row["status"] == DONE]
    probes = dict.fromkeys((row["probe"], row["metric"]) for row in done) or {("", ""): None}
    axes = [axis for axis in grid.axes if axis != SEED]
    raw = [{STORE: name} if STORE in grid.axes else {} for name in grid.stores]
    places = [dict(place) for place in dict.fromkeys(tuple((a, cell.at[a]) for a in axes) for cell in grid.cells)]
    found = []
    for features, at, (probe, metric) in [
        *((RAW, at, probe) for at in raw for probe in probes),
        *((LEARNT, at, probe) for at in places for probe in probes),
    ]:
        here = [row for row in rows if all(row.get(axis) == _as_in_a_row(value) for axis, value in at.items())]
        same = [row for row in here if (row.get("features"), row.get("probe")) == (features, probe)]
        failed = sum(row["status"] == FAILED for row in here) if features == LEARNT else 0
        if same or failed:
            low, high = (_mean(row[end] for row in same) for end in ("low", "high"))
            values = tuple(value for row in same for value in row["values"])
            found.append(Group(at, features, probe, metric, values, low, high, failed))
    return found


def _as_in_a_row(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _mean(values: typing.Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")


def _settings() -> dict[str, Any]:
    kinds = typing.get_type_hints(Recipe)
    return {key: kind for key, kind in kinds.items() if key != "name"}


def _plain(kind: Any) -> Any:
    """A recipe's type as a column's: an optional one is nullable anyway, and a tuple is a list."""
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    return list[typing.get_args(kind)[0]] if typing.get_origin(kind) is tuple else kind  # type: ignore[misc]
