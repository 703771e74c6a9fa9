"""Writes requirements/*.txt, the tested versions of everything with hashes: `make lock`. Needs uv.

base.txt    lvmae with its extras but ray, wandb and sentence-transformers; without torch, whose build depends on the machine
cuda.txt    torch and its CUDA libraries, from PyPI

Versions are those installed where this runs, so what is locked is what was tested.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("caption", "demo", "hdf5", "s3", "search", "serve", "shots", "tensorboard")
TORCHS = re.compile(r"torch|triton|nvidia-|cuda-")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tested, locked = Path(folder) / "tested.txt", Path(folder) / "locked.txt"
        versions = {d.metadata["Name"]: d.version.partition("+")[0] for d in importlib.metadata.distributions()}
        tested.write_text(
            "".join(f"{name}=={version}\n" for name, version in versions.items() if name.lower() != "lvmae")
        )
        extras = [part for extra in EXTRAS for part in ("--extra", extra)]
        subprocess.run(
            ["uv", "pip", "compile", "pyproject.toml", *extras, "--constraint", tested, "--python-version", "3.11",
             "--python-platform", "x86_64-unknown-linux-gnu", "--generate-hashes", "--no-annotate", "--no-header", "--quiet",
             "--output-file", locked],
            cwd=ROOT, check=True,
        )  # fmt: skip
        entries = re.findall(r"^\S.*(?:\n    .*)*", locked.read_text(), re.MULTILINE)
    about = "# Written by `make lock`: {}. Python 3.11, Linux, x86-64.\n"
    (ROOT / "requirements").mkdir(exist_ok=True)
    for name, what, mine in (
        ("base", "lvmae's dependencies but torch", lambda entry: not TORCHS.match(entry)),
        ("cuda", "torch and its CUDA libraries", TORCHS.match),
    ):
        text = about.format(what) + "\n".join(filter(mine, entries)) + "\n"
        (ROOT / "requirements" / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main()
