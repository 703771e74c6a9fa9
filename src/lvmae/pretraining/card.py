"""The model card of a run and its curves: what the model saw, how it was trained, and whether it learnt anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def verdict(final: Mapping[str, Any]) -> str:
    """One sentence on the final validation, from the "finished" line of the curves."""
    if "val_cosine" not in final:
        return "Nothing was held out, so it is not known whether the model has learnt more than interpolation."
    model = final["val_cosine"]
    floors = {
        "interpolating between the nearest visible segments": final["interpolation_cosine"],
        "the mean of the visible segments": final["mean_cosine"],
    }
    if final["beats_interpolation"] and final["beats_mean"]:
        found = "On held-out videos its reconstructions"
    else:
        what = "THE MEAN" if final["beats_interpolation"] else "INTERPOLATION"
        found = f"THE MODEL HAS LEARNT NOTHING BEYOND {what}: on held-out videos its reconstructions"
    return (
        f"{found} of masked segments reach a cosine of {model:.4f}; "
        + ", ".join(f"{name} reaches {cosine:.4f}" for name, cosine in floors.items())
        + "."
    )


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the loss a step, and the cosines of validation with their floors, as one PNG."""
    steps = [r for r in records if "loss" in r]
    checks = [r for r in records if "val_loss" in r and "event" not in r]
    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.13, top=0.97, wspace=0.22)
    loss_axes, cosine_axes = figure.subplots(1, 2)
    loss_axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], lw=0.8, label="training")
    if checks:
        at = [r["step"] for r in checks]
        loss_axes.plot(at, [r["val_loss"] for r in checks], marker=".", label="held-out videos")
        loss_axes.axhline(checks[-1]["interpolation_loss"], color="grey", ls="--", lw=1, label="interpolation")
        cosine_axes.plot(at, [r["val_cosine"] for r in checks], marker=".", color="tab:orange", label="LV-MAE")
        cosine_axes.axhline(checks[-1]["interpolation_cosine"], color="grey", ls="--", lw=1, label="interpolation")
        cosine_axes.axhline(checks[-1]["mean_cosine"], color="grey", ls=":", lw=1, label="mean of the visible")
        cosine_axes.legend()
    loss_axes.set(xlabel="step", ylabel="loss on masked segments", yscale="log")
    loss_axes.legend()
    cosine_axes.set(xlabel="step", ylabel="cosine of masked reconstructions, held out")
    figure.savefig(path, dpi=110, format="png")


def model_card(
    description: Mapping[str, Any], config: Mapping[str, Any], final: Mapping[str, Any], parameters: int
) -> str:
    """The README.md of a run, from what `recipe.json` says, the model's configuration and the "finished" line."""
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
    if "val_cosine" in final:
        figures = f"""
| masked segments of held-out videos | loss | cosine |
|---|---|---|
| LV-MAE | {final["val_loss"]:.6g} | {final["val_cosine"]:.4f} |
| interpolating between visible neighbours | {final["interpolation_loss"]:.6g} | {final["interpolation_cosine"]:.4f} |
| mean of the visible segments | {final["mean_loss"]:.6g} | {final["mean_cosine"]:.4f} |
"""
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
