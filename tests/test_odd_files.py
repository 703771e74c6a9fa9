"""Odd manifests, configurations, recipes and curves end in one sentence, never in a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import odd_files


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    odd_files.make(folder)
    return folder


def test_two_hundred_odd_files(made: Path) -> None:
    ended, wrong = odd_files.run_cases(made, range(200))
    assert wrong == []
    assert ended.total() == 200
    assert len([name for name in ended if name.endswith(" 2")]) >= 5  # the cases do reach what reads the files
    assert len([name for name in ended if name.endswith(" 0")]) >= 4


def test_the_harness_sees_a_traceback(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmae.inspection.read_config", lambda path: {}["gone"])
    ended, wrong = odd_files.run_cases(made, range(200, 240))
    assert any(name == "inspect KeyError" for name in ended)
    assert "KeyError: 'gone'" in wrong[0]["said"][0]
