"""The contents of a store, representations or a run as plain data, for `lvmae inspect`."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError, LVMAEError
from lvmae.files.json_files import read_lines, read_object
from lvmae.files.tables import read_parquet_rows
from lvmae.runs import TRAIN, count_parameters, is_run, read_config, read_split
from lvmae.store import EmbeddingStore, l2_normalize


def inspect(path: str | Path) -> dict[str, Any]:
    """Describes the store, representations or run at `path`.

    Raises:
        InputError: it is none of them.
    """
    folder = Path(path)
    if is_run(folder):
        return inspect_run(folder)
    if (folder / "recipe.json").is_file():
        return inspect_interrupted_run(folder)
    if (folder / "results.parquet").is_file():
        return inspect_ablation(folder)
    if "://" not in str(path) and not (folder / "manifest.json").is_file():
        what = "there is nothing at" if not folder.exists() else "there is no store, representations or run at"
        raise InputError(f"{what} {path}; `lvmae embed`, `lvmae pretrain` and `lvmae represent` make them")
    return inspect_store(EmbeddingStore(path))


def inspect_store(store: EmbeddingStore) -> dict[str, Any]:
    """Counts, lengths, space and failures; and how much neighbouring segments resemble each other."""
    found: dict[str, Any] = {
        "path": store.path,
        "kind": store.kind,
        "space": store.space_id,
        "width": store.dim,
        "segment rule": store.manifest.segments,
        "encoder": store.manifest.encoder,
        "run": store.manifest.run,
        "videos": len(store),
        "failed": sum(not failure.kept for failure in store.failures),
        "partial": sum(failure.kept > 0 for failure in store.failures),
        "failures": [asdict(failure) for failure in store.failures],
    }
    if len(store):
        lengths = store.lengths
        found |= {
            "hours": round(float(store.durations.sum()) / 3600, 3),
            "segments": int(lengths.sum()),
            "segments a video": {
                "least": int(lengths.min()),
                "median": float(np.median(lengths)),
                "most": int(lengths.max()),
            },
            "cosine of neighbouring segments": _neighbour_cosine(store),
            "first videos": store.ids[:5],
            "fingerprint": store.fingerprint,
        }
    return {key: value for key, value in found.items() if value is not None}


def _neighbour_cosine(store: EmbeddingStore, most: int = 200) -> float | None:
    places = np.linspace(0, len(store) - 1, min(most, len(store))).round().astype(int)
    cosines = []
    for place in places.tolist():
        unit = l2_normalize(store.embeddings(place))
        cosines.append(np.einsum("ld,ld->l", unit[1:], unit[:-1]))
    joined = np.concatenate(cosines)
    return round(float(joined.mean()), 3) if len(joined) else None


def inspect_run(folder: Path) -> dict[str, Any]:
    """Sizes, space and recipe of a trained model, and the last figures of its curves."""
    config = read_config(folder)
    found: dict[str, Any] = {
        "path": str(folder),
        "kind": "run",
        "space": config.get("space_id"),
        "encoder of LV-MAE": {
            "width": config.get("hidden_size"),
            "layers": config.get("num_hidden_layers"),
            "heads": config.get("num_attention_heads"),
        },
        "decoder": {
            "width": config.get("decoder_hidden_size"),
            "layers": config.get("decoder_num_hidden_layers"),
            "heads": config.get("decoder_num_attention_heads"),
        },
        "segments at most": config.get("max_segments"),
        "loss": config.get("loss"),
        "parameters": count_parameters(folder),
    }
    recipe = folder / "recipe.json"
    if recipe.is_file():
        found["recipe"] = read_object(recipe)
    found["trained on, and removed since"] = _removed_since(folder, found.get("recipe")) or None
    found["last figures"] = _last_figures(folder / "metrics.jsonl")
    return {key: value for key, value in found.items() if value is not None}


def inspect_interrupted_run(folder: Path) -> dict[str, Any]:
    """Recipe, checkpoints and last figures of a run that has not made its model yet."""
    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    found = {
        "path": str(folder),
        "kind": "run, interrupted",
        "what to do": "rerun its `lvmae pretrain` command to resume it"
        + ("" if checkpoints else "; it has no checkpoint yet, so it begins at its start"),
        "checkpoints": checkpoints or None,
        "recipe": read_object(folder / "recipe.json"),
        "last figures": _last_figures(folder / "metrics.jsonl"),
    }
    return {key: value for key, value in found.items() if value is not None}


def inspect_ablation(folder: Path) -> dict[str, Any]:
    """The cells of an ablation, and how many of them failed."""
    rows = list(read_parquet_rows(folder / "results.parquet"))
    cells = {str(row.get("cell")): str(row.get("status")) for row in rows}
    return {
        "path": str(folder),
        "kind": "ablation",
        "cells": len(cells),
        "failed": sum(status == "failed" for status in cells.values()),
        "rows": len(rows),
        "probes": sorted({str(row["probe"]) for row in rows if row.get("probe")}),
        "table": str(folder / "table.md"),
    }


def _removed_since(folder: Path, recipe: Any) -> list[str]:
    """Ids that the run was trained on and that were removed from its stores since, as far as these are where they were."""
    stores = recipe.get("stores", []) if isinstance(recipe, dict) else []
    removed: set[str] = set()
    for store in stores if isinstance(stores, list) else []:
        path = store.get("path") if isinstance(store, dict) else None
        with contextlib.suppress(LVMAEError):
            if isinstance(path, str) and Path(path).is_dir():
                removed |= EmbeddingStore(path).removed
    trained = {video for video, part in (read_split(folder) or {}).items() if part == TRAIN} if removed else set()
    return sorted(removed & trained)


def _last_figures(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    last: dict[str, Any] = {}
    for line in read_lines(path):
        last |= line
    return last


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item not in (None, {}, []))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe(found: dict[str, Any]) -> str:
    """The same as lines of text, for a terminal."""
    lines = [f"{key:<32} {_one_line(value)}" for key, value in found.items() if key != "failures"]
    shown = found.get("failures", [])[:20]
    for failure in shown:
        what = f"kept {failure['kept']:.1f} s of" if failure["kept"] else "failed:"
        lines.append(f"  {what} {failure['path']}: {failure['reason']}")
    return "\n".join(lines)
