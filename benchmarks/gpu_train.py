"""All that a GPU has to show of pre-training, in one command: tests marked `gpu`, and the speed beside the method padded.

    make gpu-train            # with the Python of the machine: PYTHON=python3

Needs one CUDA GPU, pytest, and what pre-training imports; no PyAV, no datasets. The official numbers are read from $LVMAE_PARITY
(default ../shared/parity). A check that is skipped is a failure, and says what to bring. Writes
benchmarks/results/gpu-train-<card>.json and prints a table for docs/speed.md. About five minutes, compilation included.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NEEDED = {
    "torch": (2, 10),
    "transformers": (5, 20),
    "accelerate": (1, 10),
    "safetensors": (0, 5),
    "pyarrow": (20,),
    "numpy": (2,),
    "fsspec": (2024,),
    "filelock": (3,),
    "huggingface_hub": (1,),
    "matplotlib": (3, 9),
    "tqdm": (4,),
    "wrapt": (1, 16),
    "pytest": (8,),
}


def missing() -> list[str]:
    """What has to be brought along, a sentence each."""
    found = []
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed: bring a wheel of {name}>={wanted}")
            continue
        if tuple(int(part) for part in re.findall(r"\d+", version)[: len(least)]) < least:
            found.append(f"{name} is {version}: bring a wheel of {name}>={wanted}")
    parity = Path(os.environ.get("LVMAE_PARITY") or ROOT.parent / "shared" / "parity")
    for file in ("official_tiny.pth", "official_tiny.safetensors"):
        if not (parity / file).exists():
            found.append(f"{parity / file} is not there: bring it, or say where it is with LVMAE_PARITY")
    if not found:
        import torch

        if not torch.cuda.is_available():
            found.append("there is no CUDA GPU")
    return found


def run(words: list[str], environment: dict[str, str]) -> float:
    """Runs a script of this checkout; its seconds. Ends everything where it fails."""
    print("$", *words, flush=True)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:2])} failed with exit code {done.returncode}")
    return round(time.perf_counter() - began, 1)


def tested(environment: dict[str, str], folder: Path, marked: str) -> float:
    """Runs the tests of this file's kind; one that is skipped is a failure."""
    report = folder / "tests.xml"
    seconds = run(
        ["-m", "pytest", "tests/gpu", "--noconftest", "-rs", "-m", marked, f"--junitxml={report}"], environment
    )
    text = report.read_text()
    if (skipped := re.search(r'skipped="(\d+)"', text)) and int(skipped[1]):
        why = sorted(set(re.findall(r'<skipped[^>]*message="([^"]*)"', text)))
        raise SystemExit(f"{skipped[1]} checks were skipped: {'; '.join(why)}")
    return seconds


def table(report: dict[str, Any]) -> str:
    """The figures as a table for docs/speed.md."""
    lines = [
        f"{report['card']}, torch {report['torch']}, commit {report['commit']}:",
        "",
        "| step | videos/s | of the peak | over naive padding | over the best padding | activations over naive | idle |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in report["training_step"]["results"].items():
        ours = found["ours"]
        naive, best = (found.get(f"ours_over_{other}", {}) for other in ("reference", "best_padded"))
        cells = [
            name,
            f"{ours['videos_per_second']:,.0f}",
            f"{100 * (ours.get('mfu') or 0):.1f} %",
            str(naive.get("videos_per_second", "")),
            str(best.get("videos_per_second", "")),
            str(naive.get("activations_mib", "")),
            f"{100 * ours.get('idle_share', 0):.1f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    training, features = report["pretraining"]["pretrain"], report["pretraining"]["represent"]
    lines += [
        "",
        f"`lvmae pretrain --recipe paper`, end to end: {training['videos_per_second']} videos/s, "
        f"{training['seconds_before']} s before the second epoch. `lvmae represent`: {features['segments_per_second']:,} "
        f"segments/s end to end, {features['segments_per_second_on_the_device']:,} on the device.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--small", action="store_true", help="the parts that run on a CPU, in a minute: to test this script"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu-train-<card>.json")
    arguments = parser.parse_args()
    found = missing()
    if arguments.small:
        found = [sentence for sentence in found if sentence != "there is no CUDA GPU"]
    if found:
        raise SystemExit("\n".join(found))
    import torch

    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    card = "cpu" if arguments.small else torch.cuda.get_device_name()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        environment["LVMAE_CACHE"] = str(place / "cache")
        seconds = {"tests": tested(environment, place, "not gpu" if arguments.small else "gpu")}
        steps, training = place / "steps.json", place / "training.json"
        if arguments.small:
            small = [
                "--layers",
                "1",
                "--width",
                "64",
                "--batch",
                "4",
                "--batches",
                "1",
                "--best",
                "--precision",
                "fp32",
            ]
            few = ["--videos", "40", "--epochs", "3", "--dim", "64", "--represented", "4", "--minutes", "1", "3"]
            few += [word for pair in ("layers=1", "heads=4", "decoder_layers=1", "batch_size=8", "num_workers=0", "precision=fp32")
                    for word in ("--set", pair)]  # fmt: skip
        else:
            small = ["--device", "cuda", "--batch", "16", "128", "--kernels"]
            few = []
        seconds["training_step"] = run(["benchmarks/training_step.py", *small, "--out", str(steps)], environment)
        seconds["pretraining"] = run(["benchmarks/pretraining.py", *few, "--out", str(training)], environment)
        report = {
            "benchmark": "gpu-train",
            "card": card,
            "torch": torch.__version__,
            "commit": commit,
            "seconds": {**seconds, "in_all": round(time.perf_counter() - began, 1)},
            "training_step": json.loads(steps.read_text()),
            "pretraining": json.loads(training.read_text()),
        }
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    out = arguments.out or HERE / "results" / f"gpu-train-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{table(report)}\n\nwritten to {out}; in all {report['seconds']['in_all']} s")


if __name__ == "__main__":
    main()
