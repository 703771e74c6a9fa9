"""Figures of an ablation: accuracy against each axis that has several values, PNG and SVG.

In: a grid and the groups of its rows. Out: a file an axis, a panel a probe. A line is one combination of the other axes;
numbers get an axis to scale, names a place each. Bars are the standard deviation over seeds; dashed lines are raw
embeddings. Stores that differ in their segments' length or their frames are drawn against that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lvmae.ablation.grid import SEED, STORE, Grid, text_of
from lvmae.ablation.results import Group
from lvmae.evaluation.features import LEARNT, RAW
from lvmae.files.pictures import save_figure

_MOST_LINES = 8
_NAMES = {
    "mask_ratio": "mask ratio",
    "layers": "encoder layers",
    "max_seconds": "longest clip in training, s",
    "max_segments": "longest clip in training, segments",
}


def draw_figures(grid: Grid, groups: Sequence[Group], folder: Path) -> list[Path]:
    """Draws every axis with at least two values; returns the files, those of the axes in turn."""
    drawn: list[Path] = []
    for axis, values in grid.axes.items():
        if axis == SEED or len(values) < 2 or not any(group.values for group in groups):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{axis}.{suffix}" for suffix in ("png", "svg")]
        if save_figure(functools.partial(_figure, grid, groups, axis), *paths, dpi=160):
            drawn += paths
    return drawn


def _figure(grid: Grid, groups: Sequence[Group], axis: str) -> Figure:
    name, places = _scale(grid, axis)
    scaled = axis == STORE and name != STORE
    probes = list(dict.fromkeys(group.probe for group in groups if group.values))
    figure = Figure(figsize=(0.8 + 4.2 * len(probes), 3.6), layout="constrained")
    for panel, probe in zip(figure.subplots(1, len(probes), squeeze=False)[0], probes, strict=True):
        here = [group for group in groups if group.probe == probe and group.values]
        lines, left_out = _lines([group for group in here if group.features == LEARNT], axis)
        for number, (said, line) in enumerate(lines.items()):
            # A little apart, so that bars of lines that meet can be told apart.
            nudge = (number - (len(lines) - 1) / 2) * 0.006 * (max(places.values()) - min(places.values()))
            along = [places[group.at[axis]] + nudge for group in line]
            panel.errorbar(
                along,
                [group.mean for group in line],
                [group.std for group in line],
                marker="o",
                ms=4,
                capsize=3,
                label=said,
                ls="-" if scaled or isinstance(grid.axes[axis][0], int | float) else "",  # names are no order
            )
        _draw_raw(panel, [group for group in here if group.features == RAW], axis, places)
        unit = "" if here[0].metric == "MSE" else ", %"
        some = f", the best {len(lines)} of {len(lines) + left_out}" if left_out else ""
        panel.set(title=f"{probe} probe{some}", xlabel=name, ylabel=f"{here[0].metric}{unit}")
        panel.set_xticks(list(places.values()), [f"{at:g}" if scaled else text_of(v) for v, at in places.items()])
        panel.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, names, loc="outside lower center", ncols=2 if max(map(len, names)) > 20 else 4, frameon=False
        )
    return figure


def _lines(groups: Sequence[Group], axis: str) -> tuple[dict[str, list[Group]], int]:
    """Groups by the other axes' values, each in the order of the axis; the best few, and how many were left out."""
    lines: dict[str, list[Group]] = {}
    for group in groups:
        others = [
            f"{key} {text_of(value)}" if len(group.at) > 2 else text_of(value)
            for key, value in group.at.items()
            if key != axis
        ]
        lines.setdefault(", ".join(others) or "LV-MAE", []).append(group)
    sign = -1 if groups and groups[0].metric == "MSE" else 1
    best = sorted(lines, key=lambda said: -max(sign * group.mean for group in lines[said]))[:_MOST_LINES]
    return {said: line for said, line in lines.items() if said in best}, len(lines) - len(best)


def _draw_raw(panel: Any, groups: Sequence[Group], axis: str, places: dict[Any, float]) -> None:
    """The raw embeddings: against the store's axis a line, else a level for each store."""
    style: dict[str, Any] = {"color": "grey", "lw": 1.2}
    if axis == STORE and groups:
        panel.errorbar(
            [places[group.at[STORE]] for group in groups],
            [group.mean for group in groups],
            [group.std for group in groups],
            label=RAW,
            capsize=3,
            ls="--",
            **style,
        )
        return
    for number, group in enumerate(groups):
        dashes = ("--", ":", "-.")[number % 3]
        panel.axhline(group.mean, label=", ".join([RAW, *map(text_of, group.at.values())]), ls=dashes, **style)


def _scale(grid: Grid, axis: str) -> tuple[str, dict[Any, float]]:
    """What an axis is called, and where each of its values stands on it."""
    values = grid.axes[axis]
    steps = {value: float(place) for place, value in enumerate(values)}
    if axis == STORE:
        manifests = [store.manifest for store in grid.stores.values()]
        for name, found in (
            ("segment length, s", [manifest.segments.get("seconds") for manifest in manifests]),
            ("frames a segment", [(manifest.encoder.get("options") or {}).get("num_frames") for manifest in manifests]),
        ):
            known = [float(number) for number in found if number is not None]
            if len(set(known)) == len(values):
                return name, dict(zip(values, known, strict=True))
        return STORE, steps
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _NAMES.get(axis, axis), {value: float(value) for value in values}
    return _NAMES.get(axis, axis), steps
