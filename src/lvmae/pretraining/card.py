"""The model card of a run and its curves: what the model saw, how it was trained, and whether it learnt anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lvmae.files.pictures import save_figure
from lvmae.model.objectives import Objective

# The figures of a validation besides loss and score, with their labels.
WATCHED = {
    "val_beyond_mean": "variance explained beyond the mean of the visible",
    "val_cosine_at_1": "cosine, 1 segment from a visible one",
    "val_cosine_at_2": "cosine, 2 segments from a visible one",
    "val_cosine_at_3": "cosine, 3 segments from a visible one",
    "val_cosine_at_4": "cosine, 4 segments or more from a visible one",
    "watch_knn": "accuracy of nearest neighbours",
    "watch_linear": "accuracy of a linear probe",
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "alignment": "alignment of two masks",
    "uniformity": "uniformity of videos",
}
_RANKS = ("rankme", "lidar")
_SHARES = ("val_beyond_mean", "watch_knn", "watch_linear")


def verdict(final: Mapping[str, Any]) -> str:
    """Returns a sentence about the final validation, from the "finished" line of the curves."""
    return str(final.get("verdict") or Objective.verdict(final))  # lines of older versions do not hold it


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path, objective: Objective) -> None:
    """Draws the loss a step, and the scores of validation with their floors, as one PNG; a warning where that fails."""
    save_figure(lambda: _curves(records, objective), path, dpi=110, format="png")


def _curves(records: Sequence[Mapping[str, Any]], objective: Objective) -> Figure:
    score = objective.score
    steps = [r for r in records if "loss" in r]
    checks = [r for r in records if "val_loss" in r and "event" not in r]
    watched = [r for r in checks if any(name in r for name in WATCHED)]
    panels = 3 if watched else 2
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")  # no label is cut off, however wide its numbers are
    loss_axes, score_axes, *further = figure.subplots(1, panels)
    if watched:
        _draw_watched(further[0], watched)
    loss_axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], lw=0.8, label="training")
    if checks:
        at = [r["step"] for r in checks]
        loss_axes.plot(at, [r["val_loss"] for r in checks], marker=".", label="held-out videos")
        loss_axes.axhline(checks[-1]["interpolation_loss"], color="grey", ls="--", lw=1, label="interpolation")
        score_axes.plot(at, [r[f"val_{score}"] for r in checks], marker=".", color="tab:orange", label="LV-MAE")
        score_axes.plot(
            at, [r[f"interpolation_{score}"] for r in checks], color="grey", ls="--", lw=1, label="interpolation"
        )
        score_axes.plot(
            at, [r[f"mean_{score}"] for r in checks], color="grey", ls=":", lw=1, label="mean of the visible"
        )
        score_axes.legend()
    positive = all(r["loss"] > 0 for r in steps)
    loss_axes.set(xlabel="step", ylabel="loss on masked segments", yscale="log" if positive else "linear")
    if positive:
        for part in (loss_axes.yaxis.set_major_formatter, loss_axes.yaxis.set_minor_formatter):
            part(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))  # plain text, not mathematics
    loss_axes.legend()
    score_axes.set(xlabel="step", ylabel=f"{score.replace('_', ' ')} on masked segments, held out")
    return figure


def _draw_watched(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """Shares from 0 to 1 on the left, ranks on the right."""
    ranks = axes.twinx()
    for name, said in WATCHED.items():
        found = [(r["step"], r[name]) for r in records if name in r]
        if found and name in _RANKS:
            ranks.plot(*zip(*found, strict=True), ls="--", lw=1, marker=".", ms=4, label=said)
        elif found and name in _SHARES:
            axes.plot(*zip(*found, strict=True), marker=".", label=said)
    axes.set(xlabel="step", ylabel="share, held out", ylim=(min(-0.05, axes.get_ylim()[0]), 1.05))
    ranks.set_ylabel("effective rank (dashed)")
    handles = [*axes.get_legend_handles_labels()[0], *ranks.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, fontsize=7, loc="best")


def model_card(
    description: Mapping[str, Any],
    config: Mapping[str, Any],
    final: Mapping[str, Any],
    parameters: int,
    table: Sequence[tuple[str, float, float]],
) -> str:
    """The README.md of a run: from `recipe.json`, the model's configuration, the "finished" line and the objective's table."""
    recipe, stores = description["recipe"], description["stores"]
    encoder = config.get("encoder") or {}
    name = _cell(str(encoder.get("name") or "not recorded"))
    licence = _cell(str(encoder.get("licence") or "not recorded"))
    segments = _cell(json.dumps(config.get("segments")))
    rows = "\n".join(
        f"| {_cell(Path(s['path']).name)} | {s['videos']:,} | {s['held_out']:,} | {s['too_short']:,} | {s['segments']:,} |"
        for s in stores
    )
    settings = "\n".join(f"| {key} | {_cell(json.dumps(value))} |" for key, value in recipe.items())
    figures = ""
    if table:
        lines = "\n".join(f"| {_cell(what)} | {loss:.6g} | {score:.4f} |" for what, loss, score in table)
        figures = f"""
| masked segments of held-out videos | loss | {_cell(final["score"].replace("_", " "))} |
|---|---|---|
{lines}
"""
    watched = [(said, final[name]) for name, said in WATCHED.items() if name in final]
    if watched:
        lines = "\n".join(f"| {said} | {value:.4g} |" for said, value in watched)
        best = ""
        if "best_step" in final:
            best = (
                f"\nThese are the weights of step {final['best_step']:,}, the best by {_cell(str(final['best_by']))}.\n"
            )
        figures += f"""
| held-out videos | |
|---|---|
{lines}
{best}"""
    return f"""---
library_name: lvmae
pipeline_tag: feature-extraction
tags: [lvmae, video, masked-autoencoder]
---

# LV-MAE, recipe {_cell(recipe["name"])}

A long-video masked-embedding autoencoder of {parameters:,} parameters ({recipe["layers"]} encoder layers of width
{config["hidden_size"]}), after Naiman et al., *LV-MAE: Learning Long Video Representations through Masked-Embedding
Autoencoders*, ICCV 2025.

    import lvmae
    from transformers import AutoModel
    model = AutoModel.from_pretrained("this folder")

{verdict(final)}
{figures}
![curves](loss.png)

## Its input

Embeddings of the space `{_cell(str(config.get("space_id")))}`, and no other. Segments: {segments}.
Encoder: {name}. Its licence, which may bind what is made with its embeddings: {licence}.

## Data

| store | videos | held out | too short to mask | segments |
|---|---|---|---|---|
{rows}

## Recipe

{final["step"]:,} steps; the final training loss was {final["loss"]:.6g}.

| setting | value |
|---|---|
{settings}
"""


def _cell(text: str) -> str:
    """Text that cannot break out of a table cell, a line or a code span."""
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("\n", " ")):
        text = text.replace(mark, safe)
    return text
