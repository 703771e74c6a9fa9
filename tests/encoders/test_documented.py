"""docs/encoders.md: its table names the encoders there are, with the defaults that they have, and its example runs."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lvmae.encoders import _BUILT_IN, load_encoder, pe_av

PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text("utf-8")


def _table() -> dict[str, dict[str, str]]:
    """name -> column -> cell, code marks and remarks in brackets taken off the names."""
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    head = [cell.strip() for cell in rows[0]]
    table = {}
    for row in rows[2:]:
        cells = dict(zip(head, (cell.strip() for cell in row), strict=True))
        table[re.match(r"`([^`]+)`", cells["name"])[1]] = cells  # type: ignore[index]
    return table


def test_the_table_names_the_encoders_there_are() -> None:
    assert set(_table()) == set(_BUILT_IN)


@pytest.mark.parametrize("name", sorted(_BUILT_IN))
def test_the_table_has_their_defaults(name: str) -> None:
    row, (target, extra, defaults) = _table()[name], _BUILT_IN[name]
    module, _, attribute = target.partition(":")
    factory = getattr(import_module(module), attribute)
    takes: dict[str, Any] = {p.name: p.default for p in inspect.signature(factory).parameters.values()} | dict(defaults)
    assert (f"`{extra}`" if extra else "none") == row["extra"].split(";")[0]
    if name != "conse":
        assert row["model"] == takes["model"] or (takes["model"] is None and row["model"] == factory.default_model)
        assert row["revision"] == "pinned at first use"
        assert takes["revision"] is None
    if takes.get("num_frames") is not None:
        assert row["frames"] == str(takes["num_frames"])
    if name == "pe-av":  # a number that the model leaves open
        assert row["frames"] == str(pe_av._FRAMES)
    for column in row:
        assert row[column], f"{name} has no {column}"


def test_conse_is_as_the_table_says() -> None:
    row, encoder = _table()["conse"], load_encoder("conse")
    assert (row["d"], row["frames"]) == (str(encoder.dim), str(encoder.num_frames))
    assert row["pixels"] == f"{encoder.image_size}, {encoder.framing}, {encoder.interpolation}"


def test_the_example_is_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    module = ModuleType("documented_encoder")
    exec(code[1], module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    encoder = load_encoder("documented_encoder:MeanColour")
    frames = np.zeros((2, 4, 64, 64, 3), np.uint8)
    frames[0, ..., 0] = 255
    np.testing.assert_allclose(encoder.encode_video(frames), [[0.999985, 0.003906, 0.003906], [0.57735] * 3], atol=1e-6)
