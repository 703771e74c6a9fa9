"""Logs and summaries of commands: an event a file, in JSON that a program reads, and nothing left on the terminal's way."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from films import write_film
from jobs import MEAN
from lvmae.cli import main


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "good.mp4", range(0, 2000, 40))
    (folder / "bad.mp4").write_bytes(b"no film")
    return folder


def embed(films: Path, *more: object) -> int:
    out = films.parent / "store"
    options = ("--encoder", MEAN, "--segment-seconds", "1", "--workers", "1", *more)
    return main(["embed", str(films), "--out", str(out), *map(str, options)])


def test_an_event_a_file_and_a_summary(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, summary = tmp_path / "logs" / "job.jsonl", tmp_path / "summary.json"
    before = list(logging.getLogger("lvmae").handlers)
    assert embed(films, "--log", log, "--log-format", "json", "--summary", summary) == 1
    found = events(log)
    assert all(entry["time"].endswith("Z") for entry in found)
    assert [entry["event"] for entry in found if entry["event"] in ("began", "ended")] == ["began", "ended"]
    (good,) = [entry for entry in found if entry.get("id") == "good"]
    assert (good["event"], good["segments"], good["level"]) == ("embedded", 2, "info")
    (bad,) = [entry for entry in found if entry.get("id") == "bad"]
    assert (bad["event"], bad["path"]) == ("failed", str(films / "bad.mp4"))
    assert bad["reason"]
    told = json.loads(summary.read_text())
    assert (told["command"], told["exit_code"], told["embedded"], told["failed"]) == ("embed", 1, 1, 1)
    assert told["failures"][0]["path"] == str(films / "bad.mp4")
    assert "embedded good" not in capsys.readouterr().err  # the terminal has the progress line
    assert logging.getLogger("lvmae").handlers == before

    # The same command adds to its log; what is stored and what failed before has an event as well.
    assert embed(films, "--log", log, "--log-format", "json") == 1
    assert [(e["event"], e["id"]) for e in events(log)[len(found) :] if "id" in e] == [
        ("failed_before", "bad"),
        ("stored", "good"),
    ]


def test_a_log_of_text_and_its_levels(films: Path, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    embed(films, "--log", log)
    lines = log.read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["INFO"] * len(lines)
    assert any(line.endswith("embedded good: 2 segments") for line in lines)
    assert lines[-1].endswith("ended with exit code 1")
    embed(films, "--log", tmp_path / "quiet.log", "--log-level", "error")
    assert (tmp_path / "quiet.log").read_text() == ""


def test_a_summary_of_what_was_refused(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary.json"
    assert embed(films, "--stride", "-1", "--summary", summary) == 2
    told = json.loads(summary.read_text())
    assert told["exit_code"] == 2
    assert "stride" in told["error"]
    assert embed(films, "--log", films / "good.mp4" / "x.log") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert embed(films, "--summary", tmp_path / "no" / "such" / "folder.json") == 1
    assert "could not be written" in capsys.readouterr().err
