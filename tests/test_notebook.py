"""The notebook runs from its first cell to its last, finds what its corpus shows, and is stored with its outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "explore.ipynb"


def test_the_notebook_runs_and_finds_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs the notebook, is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel, in which the notebook runs, is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [output for cell in code for output in cell.outputs]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for output in stored) == 2
    assert not any(output.output_type == "error" for output in stored)
    assert not any(folder in NOTEBOOK.read_text(encoding="utf-8") for folder in ("/root", "/home", "/tmp"))
    for cell in code:
        cell.outputs, cell.execution_count = [], None

    nbclient.NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(tmp_path)}}).execute()

    def printed(of: int) -> list[str]:
        streams = [output.text for output in code[of].outputs if output.get("name") == "stdout"]
        return "".join(streams).splitlines()

    shown = {line.split()[0]: line.partition("|")[2].split() for line in printed(0)}
    assert len(shown) == 6
    lines = printed(3)
    assert lines[0] == "a cup of coffee"
    for line in lines[1:4]:  # every video shows the coffee once
        score, _, video = line.split()
        assert float(score) > 0.3
        assert "coffee" in shown[video]
    first, last = (float(part.split()[-4]) for part in printed(4)[-1].split(","))
    assert last < first
    assert printed(5)[0] == "(6, 384) float32"
    assert len(printed(5)) == 4
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
