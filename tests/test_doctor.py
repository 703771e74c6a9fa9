"""`lvmae doctor`: every extra of pyproject.toml is examined, and what does not work is said."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import lvmae
from lvmae import doctor
from lvmae.cli import main


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:  # all extras take half a minute to import
        patch.setattr(doctor, "EXTRAS", {"hdf5": ("h5py",), "conse": doctor.EXTRAS["conse"]})
        return doctor.examine()


def test_every_extra_is_examined() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    unused = {"dev", "docs", "torchcodec"}  # for work on lvmae itself, or not imported by it
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - unused


def test_it_says_what_is_there(found: dict[str, Any]) -> None:
    assert found["lvmae"] == lvmae.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert "cores" in found["devices"]["cpu"]
    assert found["decoders"]["h264"] == "ok"
    assert found["cache"]["writable"] is True
    assert found["extras"]["hdf5"]["state"] == "ok"
    assert found["extras"]["conse"]["state"] == "ok"
    json.dumps(found, allow_nan=False)


def test_what_is_broken_is_said(found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extra.py").write_text("raise RuntimeError('wrong CUDA\\nsecond line')")
    (tmp_path / "needs_more.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert doctor._extra(("broken_extra",)) == {"state": "broken", "reason": "wrong CUDA"}
    assert doctor._extra(("needs_more",))["state"] == "broken"
    assert doctor._extra(("not_there_at_all",))["state"] == "not installed"
    ill = {
        **found,
        "extras": {"search": {"state": "broken", "reason": "wrong CUDA"}},
        "devices": {"error": "no driver"},
    }
    ill["cache"] = {"folder": "/c", "writable": False, "free": 1e9}
    said = doctor._problems(ill)
    assert [sentence.split()[:3] for sentence in said] == [
        ["the", "devices", "could"], ["the", "extra", "search"], ["the", "cache", "/c"], ["the", "disk", "of"]
    ]  # fmt: skip
    assert "pip install 'lvmae[search]'" in said[1]
    assert "problem: the disk of the cache has 1.0 GB left" in doctor.to_text({**ill, "problems": said})


def test_the_command(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: {**found, "problems": []})
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"] == found["packages"]
    monkeypatch.setattr(doctor, "examine", lambda: {**found, "problems": ["the cache is full"]})
    assert main(["doctor"]) == 1
    assert "problem: the cache is full" in capsys.readouterr().out
