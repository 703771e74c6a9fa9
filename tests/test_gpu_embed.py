"""The benchmark of embedding on a GPU, as far as a machine without one can run it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_embed")


def test_every_part_is_measured_and_a_skipped_one_is_a_failure(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(folder: Path) -> None:
        raise ImportError("No module named 'timm'")

    monkeypatch.setitem(benchmark.SMALL, "clip", missing)
    out = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--small", "--batch", "4", "--seconds", "0.1", "--decoders", "1", "--out", str(out)]
    assert benchmark.main(small) == 1
    found, said = json.loads(out.read_text()), capsys.readouterr()
    assert json.loads(said.out) == found
    assert found["card"] == "none (cpu)"
    assert found["skipped"] == {"clip": "ImportError: No module named 'timm'"}
    assert "skipped clip: ImportError" in said.err
    assert set(found["encoders"]) == {"languagebind-huge"}
    assert found["encoders"]["languagebind-huge"]["segments_a_second"] > 0
    assert found["pipeline"]["frames"].startswith("decoded from a made film")
    (row,) = found["pipeline"]["decoders"].values()
    assert row["segments_a_second"] > 0
    assert 0 <= row["idle_share"] <= 1


def test_without_a_gpu_or_a_package_it_says_what_to_bring(
    benchmark: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert benchmark.main([]) == 1
    assert "there is no CUDA device here" in capsys.readouterr().err
    monkeypatch.setattr(benchmark, "NEEDED", ("transformers", "no_such_package"))
    assert benchmark.main(["--device", "cpu", "--small"]) == 1
    assert "bring no_such_package (pip download no_such_package)" in capsys.readouterr().err


def test_without_pyav_decoders_make_frames(tmp_path: Path) -> None:
    """In a process of its own, where a stand-in takes PyAV's place."""
    script = f"""
import pathlib, pickle, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import made_frames
made_frames.stand_in_for_pyav(pathlib.Path({str(tmp_path)!r}))
from lvmae.embedding import two_stages
from lvmae.embedding.pipeline import FrameFormat, Job
rule = pickle.loads(pickle.dumps(made_frames.MadeFrames(3)))
job = Job("x", {{}}, rule, 4)
said = [event for _, event in two_stages.decode_files(["file"], FrameFormat(2, 8, "bicubic", "crop"), job)]
print([type(event).__name__ for event in said], said[1].frames.shape)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Laid', 'Decoded', 'Decoded', 'Decoded', 'Ended'] (2, 8, 8, 3)"
