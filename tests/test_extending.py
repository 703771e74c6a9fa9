"""The four diffs of docs/extending.md, applied to a copy of the sources and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEADINGS = ("A mask", "An objective", "An encoder", "A benchmark task")

RUN = """
import csv, json, sys
from pathlib import Path
import numpy as np
import lvmae
from lvmae.encoders import load_encoder
from lvmae.evaluation import load_task
from lvmae.pretraining import read_metrics
from lvmae.sequences import mask_segments
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord

work, rng, told = Path(sys.argv[1]), np.random.default_rng(0), {}
assert Path(lvmae.__file__).is_relative_to(work)

# The encoder makes the store: videos that begin red or blue.
encoder = load_encoder("colours", bins=3)
encoder.self_test()
rule = {"kind": "fixed", "seconds": 5.0}
manifest = Manifest(encoder.space_id, encoder.dim, rule, {"name": "colours", "options": encoder.options})
with StoreWriter(work / "store", manifest) as writer:
    for number in range(24):
        frames = rng.integers(0, 90, size=(10, 2, 64, 64, 3), dtype=np.uint8)
        frames[:, :, :, :, 0 if number % 2 else 2] += 160
        times = 5.0 * np.arange(10)
        writer.add(VideoRecord(f"v{number:02d}", "", 50.0, times, times + 5, encoder.encode_video(frames)))
told["space"] = EmbeddingStore.open(work / "store").space_id

# The mask and the objective train on it.
told["mask"] = mask_segments("future", np.eye(5), 0.6, rng).tolist()
settings = {"mask": "future", "loss": "huber", "loss_options": "delta=0.2"}
settings |= {"epochs": 2, "warmup_epochs": 1, "layers": 1, "heads": 3}
manifest = Manifest("even", 12, rule, {"name": "imported"})
with StoreWriter(work / "even", manifest) as writer:  # an even width, as LV-MAE needs
    for number in range(24):
        rows = rng.normal(size=(10, 12)) + 4 * np.eye(12)[number % 2]
        writer.add(VideoRecord(f"v{number:02d}", "", 50.0, times, times + 5, rows))
run = lvmae.pretrain(work / "even", work / "run", recipe="tiny", settings=settings)
final = read_metrics(run)[-1]
told |= {"event": final["event"], "loss": json.loads((run / "config.json").read_text())["loss"]}
told["options"] = json.loads((run / "config.json").read_text())["loss_options"]
told["read"] = lvmae.interpret(run, work / "even", mask="future").metrics["cosine"]["reconstruction"] > -1

# The task judges it.
with (work / "kitchens.csv").open("w", newline="") as file:
    splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 8
    csv.writer(file).writerows([("name", "dish", "split"), *((f"v{n:02d}", "ab"[n % 2], s) for n, s in enumerate(splits))])
reps = lvmae.represent(run, work / "even", work / "reps")
task = load_task("kitchens", work)
table = lvmae.probe(reps, task, probes=["linear"], readouts=["mean"], seeds=1)
told |= {"accuracy": table.rows[0].mean, "published": list(task.published)}
print(json.dumps(told))
"""


def diffs() -> dict[str, str]:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return dict(re.findall(r"\n## ([^\n]+)\n.*?```diff\n(.*?)```", text, flags=re.DOTALL))


def apply(diff: str, copy: Path) -> None:
    """`git apply`, with the line numbers of the page, which cannot know how long a file is by now, corrected."""
    fixed = []
    for part in re.split(r"(?m)^(?=--- )", diff)[1:]:
        head, hunk = part.split("\n@@", 1)
        body = hunk.split("\n", 1)[1].rstrip("\n").split("\n")
        old = [line[1:] for line in body if not line.startswith("+")]
        new = [line[1:] for line in body if not line.startswith("-")]
        name = re.search(r"\+\+\+ b/(\S+)", head)[1]  # type: ignore[index]
        at = 0
        if old:
            lines = (copy / name).read_text(encoding="utf-8").split("\n")
            places = [n for n in range(len(lines)) if lines[n : n + len(old)] == old]
            assert len(places) == 1, f"{name} has what the page's diff begins from {len(places)} times"
            at = places[0] + 1
        mark = f"@@ -{at},{len(old)} +{at or 1},{len(new)} @@"
        fixed.append("\n".join([head, mark, *body]))
    patch = "\n".join(fixed) + "\n"
    done = subprocess.run(
        ["git", "apply", "--unsafe-paths", "-"], input=patch, text=True, cwd=copy, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with all four diffs."""
    folder = tmp_path_factory.mktemp("stranger").resolve()
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    assert tuple(diffs()) == HEADINGS
    for diff in diffs().values():
        apply(diff, folder)
    return folder


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_stranger_makes_one_new_file_and_one_line(heading: str) -> None:
    diff = diffs()[heading]
    assert diff.count("--- /dev/null") == 1
    changed = diff[diff.index("--- a/") :].split("\n")[2:]
    assert sum(line.startswith("+") for line in changed) == 1
    assert not any(line.startswith("-") for line in changed)


def test_the_four_changes_work(copy: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(copy)], env=env, capture_output=True, text=True, check=False, cwd=copy
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {
        "space": "colours-1/3",
        "mask": [False, False, True, True, True],
        "event": "finished",
        "loss": "huber",
        "options": {"delta": 0.2},
        "read": True,
        "accuracy": 100.0,
        "published": ["Somebody et al."],
    }


@pytest.mark.parametrize("what", ["masks", "objectives", "encoders", "tasks"])
def test_the_entry_points_have_the_groups_that_the_page_names(what: str) -> None:
    from lvmae import encoders
    from lvmae.evaluation import tasks
    from lvmae.model import objectives
    from lvmae.sequences import masks

    group = {"masks": masks, "objectives": objectives, "encoders": encoders, "tasks": tasks}[what].ENTRY_POINTS
    assert f'[project.entry-points."{group}"]' in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
