"""The README's Python example runs as it stands, on real videos."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def example() -> str:
    found = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_example_has_at_most_15_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 15


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With real videos, made by the demo's camera: two orders of events, six stories."""
    from lvmae.demo.corpus import film_corpus, plan_corpus

    plans = [plan for plan in plan_corpus(videos=10, seed=0, film_minutes=0) if plan.label in ("story-a", "story-b")]
    corpus = film_corpus(tmp_path / "corpus", plans)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").symlink_to(corpus.videos)
    exec(compile(example(), "README.md", "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    described, *moments = out.splitlines()
    assert described == f"{sorted(plan.id for plan in plans)} (6, 384)"
    cosines = [float(line.rpartition(" ")[2]) for line in moments]
    assert len(cosines) == 3
    assert cosines == sorted(cosines, reverse=True)
