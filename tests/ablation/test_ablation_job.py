"""A grid really run: what its Parquet says is what the steps give by hand; killed, it resumes; a failed cell is a row."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lvmae.ablation import Ablation, ablate, groups, plan
from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.evaluation import probe
from lvmae.files.tables import read_parquet_rows
from lvmae.pretraining import pretrain
from lvmae.recipes import named
from lvmae.representations import represent, run_fingerprint

Films = dict[str, Path]
GRID = {"mask": ["random", "semantic"], "mask_ratio": [0.3, 0.5]}
TIMES = ("pretrain_seconds", "represent_seconds", "probe_seconds")


@pytest.fixture(scope="module")
def done(films: Films, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    """2 x 2 cells, uninterrupted, with the raw embeddings beside them."""
    out = tmp_path_factory.mktemp("ablation") / "done"
    return ablate(
        {"films": films["5s"]}, films["labels"], out, grid=GRID, recipe="tiny", settings=quick, raw=True, seeds=1,
        probes=("linear",),
    )  # fmt: skip


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows on disk, times left out, arrays as lists."""
    return [
        {key: list(value) if hasattr(value, "tolist") else value for key, value in row.items() if key not in TIMES}
        for row in read_parquet_rows(out / "results.parquet")
    ]


def command(films: Films, quick: dict[str, Any], out: Path, *more: str) -> list[str]:
    settings = [part for key, value in quick.items() for part in ("--set", f"{key}={value}")]
    return [
        "ablate", "--store", f"films={films['5s']}", "--labels", str(films["labels"]), "--recipe", "tiny", *settings,
        "--grid", "mask=random,semantic", "--grid", "mask_ratio=0.3,0.5", "--raw", "--seeds", "1", "--probe", "linear",
        "--out", str(out), *more,
    ]  # fmt: skip


def test_the_parquet_says_what_the_steps_give_by_hand(
    done: Ablation, films: Films, quick: dict[str, Any], tmp_path: Path
) -> None:
    recipe = named("tiny").with_settings({**quick, "mask": "semantic", "mask_ratio": 0.3})
    run = pretrain(films["5s"], tmp_path / "run", recipe=recipe)
    features = represent(run, films["5s"], tmp_path / "reps")
    [by_hand] = probe(features, films["labels"], probes=("linear",), seeds=1).rows
    rows = rows_of(done.path)
    [row] = [row for row in rows if (row["mask"], row["mask_ratio"]) == ("semantic", 0.3)]
    assert row["fingerprint"] == run_fingerprint(run)
    assert (row["mean"], row["std"], (row["low"], row["high"])) == (by_hand.mean, by_hand.std, by_hand.interval)
    assert row["values"] == list(by_hand.values)
    assert (row["steps"], row["segment_seconds"], row["num_frames"], row["probe"]) == (24, 5.0, 8, "linear")
    assert {key: row[key] for key in recipe.to_dict() if key != "name"} == {
        key: value for key, value in recipe.to_dict().items() if key != "name"
    }
    [raw] = [row for row in rows if row["features"] == "raw embeddings"]
    assert raw["values"] == list(probe(films["5s"], films["labels"], probes=("linear",), seeds=1).rows[0].values)
    assert len(rows) == 5


def test_killed_it_goes_on_to_the_same_results(
    done: Ablation, films: Films, quick: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    argv = command(films, quick, out)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "lvmae", *argv], stdout=log, stderr=log, env=dict(os.environ))
        try:
            # In the middle of a cell: one is done, and of the next one a checkpoint is there and no result.
            while process.poll() is None and not (
                list(out.glob("cells/*/result-*.json")) and len(list(out.glob("cells/*/run/checkpoints/step-*"))) > 2
            ):
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/result-*.json")}
    assert 1 <= len(finished) < 4, (tmp_path / "log").read_text()
    assert main(argv) == 0
    assert rows_of(out) == rows_of(done.path)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # what was done was not done again
    for name in ("table.md", "table.tex", "figures/mask.png", "figures/mask_ratio.svg"):
        assert (out / name).stat().st_size > 100


def test_a_cell_that_fails_is_a_row_with_its_reason(films: Films, quick: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    axes = {"base_lr": [0.016, 1e20]}  # the second one's weights are soon not finite
    asked: dict[str, Any] = {"grid": axes, "recipe": "tiny", "settings": quick, "seeds": 1, "probes": ("linear",)}
    found = ablate({"films": films["5s"]}, films["labels"], out, **asked)
    assert list(found.failed) == ["base_lr=1e+20"]
    assert "not finite" in found.failed["base_lr=1e+20"]
    assert [row["status"] for row in rows_of(out)] == ["done", "failed"]
    good, bad = groups(found.grid, found.rows)
    assert (len(good.values), len(bad.values), bad.failed) == (1, 0, 1)
    assert "| failed |" in found.to_markdown()


def test_a_failed_cell_is_exit_code_1(films: Films, quick: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    argv = command(films, {**quick, "base_lr": 1e20}, tmp_path / "out", "--grid", "seed=0")
    argv = [part for part in argv if part not in ("mask=random,semantic", "mask_ratio=0.3,0.5")]
    argv = [part for i, part in enumerate(argv) if part != "--grid" or argv[i + 1].startswith("seed")]
    assert main(argv) == 1
    assert "failed: seed=0: " in capsys.readouterr().out


def test_other_probes_keep_the_runs(done: Ablation, films: Films, quick: dict[str, Any], tmp_path: Path) -> None:
    out = shutil.copytree(done.path, tmp_path / "copy")
    weights = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/run/model.safetensors")}
    found = ablate(
        {"films": films["5s"]},
        films["labels"],
        out,
        grid=GRID,
        recipe="tiny",
        settings=quick,
        seeds=2,
        probes=("linear",),
    )
    assert [len(row["values"]) for row in found.rows] == [2] * 4
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    trained = [row["fingerprint"] for row in done.rows if "fingerprint" in row]
    assert [row["fingerprint"] for row in found.rows] == trained


def test_a_dry_run_writes_nothing_and_knows_what_is_done(
    done: Ablation, films: Films, quick: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    assert main(command(films, quick, tmp_path / "none", "--dry-run")) == 0
    assert "4 cells, 0 of them done" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    asked: dict[str, Any] = {"grid": {**GRID, "seed": [0, 1]}, "recipe": "tiny", "settings": quick, "seeds": 1}
    told = plan({"films": films["5s"]}, films["labels"], done.path, **asked, probes=("linear",))
    # A larger grid has the cells of the smaller one: their seed is the one that was meant.
    assert "8 cells, 4 of them done; pre-training the others takes about" in told


def test_wrong_input_is_one_sentence(done: Ablation, films: Films, quick: dict[str, Any], tmp_path: Path) -> None:
    stores = {"films": films["5s"]}
    (tmp_path / "file").write_text("")
    for labels, out, said in (
        (tmp_path / "none.csv", tmp_path / "out", "cannot be read"),
        (films["labels"], tmp_path / "file", "is a file"),
    ):
        with pytest.raises(InputError) as refused:
            ablate(stores, labels, out, grid=GRID, recipe="tiny", settings=quick)
        assert said in str(refused.value)
    assert main(["ablate", str(films["5s"]), "--out", str(tmp_path / "out")]) == 2  # no labels
    for more in (["--probe", "mamba"], ["--seeds", "0"]):
        assert main(command(films, quick, tmp_path / "out", *more)) == 2
    assert not (tmp_path / "out").exists()


def test_tables_mark_the_best_and_say_over_what(done: Ablation) -> None:
    found = [group for group in groups(done.grid, done.rows) if group.features == "LV-MAE"]
    best = max(found, key=lambda group: group.mean)
    text = done.to_markdown()
    assert text.count("**") == 2
    assert f"**{max(best.mean, *(g.mean for g in groups(done.grid, done.rows))):.2f}**" in text
    assert text.endswith("One run each. The interval is over test videos.")
    latex = done.to_latex()
    assert r"\textbf{" in latex
    assert r"mask\_ratio" in latex
    assert latex.count(r"\\") == 1 + len(groups(done.grid, done.rows))


def test_what_is_trained_on_and_what_is_probed_may_differ(
    films: Films, quick: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    settings = [part for key, value in quick.items() for part in ("--set", f"{key}={value}")]
    argv = [
        "ablate",
        str(films["more"]),
        "--on",
        str(films["5s"]),
        "--labels",
        str(films["labels"]),
        "--recipe",
        "tiny",
    ]
    assert main([*argv, *settings, "--grid", "seed=1", "--seeds", "1", "--probe", "linear", "--out", str(out)]) == 0
    [row] = rows_of(out)
    run = pretrain(films["more"], tmp_path / "run", recipe="tiny", settings={**quick, "seed": 1})
    features = represent(run, films["5s"], tmp_path / "reps")
    assert row["fingerprint"] == run_fingerprint(run)
    assert row["values"] == list(probe(features, films["labels"], probes=("linear",), seeds=1).rows[0].values)
    capsys.readouterr()
    assert main([*argv[:2], "--on", str(films["10s"]), *argv[4:], "--out", str(out)]) == 2
    assert "two embedding spaces" in capsys.readouterr().err
