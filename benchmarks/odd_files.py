"""Gives commands odd manifests, configurations, recipes and curves, and says how they end. Prints JSON.

    python benchmarks/odd_files.py --cases 10000 --out benchmarks/results/odd_files.json

A store, representations and a run are made once; each case changes one of their JSON files (a value of another kind, a field gone,
bytes cut off or flipped, no text at all) and calls one command on it, in this process. Asked of it: exit code 0, 1 or 2, and never
a traceback. `wrong` lists what did otherwise, with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lvmae import pretrain, represent
from lvmae.cli import main
from lvmae.store import Manifest, StoreWriter, VideoRecord

ODD: list[Any] = [None, True, 0, -1, 1, 7, 2**63, -(2**70), 0.5, 1e308, float("nan"), float("inf")]
ODD += ["", "x", "3", "../..", "\0", "é\u202e", [], {}, [1, "x"], {"x": {}}, "a" * 10_000]
SMALL: dict[str, Any] = {"layers": 1, "heads": 2, "decoder_layers": 1, "decoder_width": 8, "decoder_heads": 2}
SMALL |= {"max_segments": 16, "epochs": 2, "batch_size": 4, "warmup_epochs": 0, "val_fraction": 0.0}
STORE = "inspect store;verify store;merge store --out merged;represent run store --out made;migrate store"
RECIPE = "inspect run;verify run;migrate run;pretrain store --out run;pretrain store --out new --recipe run/recipe.json"
FILES = {
    "store/manifest.json": STORE.split(";"),
    "reps/manifest.json": ["inspect reps", "verify reps", "represent run store --out reps"],
    "run/config.json": ["inspect run", "verify run", "represent run store --out made"],
    "run/recipe.json": RECIPE.split(";"),
    "run/metrics.jsonl": ["inspect run", "verify run", "pretrain store --out run"],
    "run/checkpoints/step-00000002/state.json": ["verify run", "pretrain store --out run"],
}


def make(folder: Path) -> None:
    """A store, a trained run and representations, as small as they can be."""
    generator = np.random.default_rng(0)
    with StoreWriter(
        folder / "store", Manifest("space", 8, {"kind": "fixed", "seconds": 5.0}, {"name": "none"})
    ) as writer:
        for number in range(4):
            starts = np.arange(6) * 5.0
            writer.add(
                VideoRecord(f"v{number}", f"v{number}.mp4", 30.0, starts, starts + 5, generator.normal(size=(6, 8)))
            )
    pretrain(folder / "store", folder / "run", recipe="tiny", settings=SMALL)
    represent(folder / "run", folder / "store", folder / "reps")


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One change of a JSON file, or of one line of several."""
    if not content or draw.random() < 0.35:
        return _bytes_changed(content, draw)
    lines = content.split(b"\n")
    whole = content.strip().startswith(b"{\n") or len([line for line in lines if line]) == 1
    place = 0 if whole else draw.randrange(len([line for line in lines if line]))
    try:
        value = json.loads(content if whole else lines[place])
    except ValueError:
        return _bytes_changed(content, draw)
    changed = json.dumps(_value_changed(value, draw), indent=2 if whole else None).encode("utf-8", "surrogatepass")
    if whole:
        return changed
    lines[place] = changed
    return b"\n".join(lines)


def _bytes_changed(content: bytes, draw: random.Random) -> bytes:
    ways: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: content[: draw.randrange(len(content) + 1)],
        lambda: bytes(draw.randrange(256) for _ in range(40)),
        lambda: b"[" * 100_000,
        lambda: b'{"a":' * 50_000,
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode("utf-8", "replace").encode("utf-16"),
        lambda: content.replace(b":", b": " + b"9" * 5000, 1),
        lambda: bytes(byte ^ (1 << draw.randrange(8)) if draw.random() < 0.01 else byte for byte in content),
    ]
    return draw.choice(ways)()


def _value_changed(value: Any, draw: random.Random) -> Any:
    if not isinstance(value, dict) or not value or draw.random() < 0.05:
        return draw.choice(ODD)
    key = draw.choice(sorted(value))
    changed = dict(value)
    if draw.random() < 0.15:
        del changed[key]
    elif draw.random() < 0.1:
        changed[draw.choice(["new", "", "é", "__class__"])] = draw.choice(ODD)
    elif isinstance(value[key], dict) and value[key] and draw.random() < 0.7:
        changed[key] = _value_changed(value[key], draw)
    elif isinstance(value[key], list) and value[key] and draw.random() < 0.7:
        changed[key] = [_value_changed(value[key][0], draw), *value[key][1:]]
    else:
        changed[key] = draw.choice(ODD)
    return changed


def run_cases(folder: Path, seeds: range) -> tuple[Counter[str], list[dict[str, Any]]]:
    """How the commands ended, by command and exit code; and what did not end as it should."""
    ended: Counter[str] = Counter()
    wrong = []
    present = [name for name in FILES if (folder / name).exists()]
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice(present)
        content = (folder / name).read_bytes()
        command = draw.choice(FILES[name])
        kept = folder.with_name("kept")
        shutil.copytree(folder, kept)
        (folder / name).write_bytes(mutated(content, draw))
        code, said = call(command.split(), folder)
        shutil.rmtree(folder)
        kept.rename(folder)
        ended[f"{command.split()[0]} {code}"] += 1
        if code not in (0, 1, 2) or "Traceback" in said:
            wrong.append({"seed": seed, "file": name, "command": command, "said": said.strip().splitlines()[-1:]})
    return ended, wrong


def call(command: list[str], folder: Path) -> tuple[int | str, str]:
    """Calls a command in a folder; its exit code, or the name of what it raised, and what it said on standard error."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return main(command), err.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), err.getvalue()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return type(
            error
        ).__name__, f"{err.getvalue()}\n{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    finally:
        os.chdir(before)


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        os.environ["LVMAE_CACHE"] = str(Path(place) / "cache")
        folder = Path(place) / "work"
        folder.mkdir()
        make(folder)
        ended, wrong = run_cases(folder, range(arguments.seed, arguments.seed + arguments.cases))
    return {"cases": arguments.cases, "ended": dict(sorted(ended.items())), "wrong": wrong}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result = json.dumps(bench(given), indent=1)
    print(result)
    if given.out:
        given.out.write_text(result + "\n")
    sys.exit(bool(json.loads(result)["wrong"]))
