"""Encoding one video in one call, from 5 minutes to 24 hours: time and memory, and how they grow.

    python benchmarks/long_sequences.py                      # d 1024, 4 layers, on the CPU
    python benchmarks/long_sequences.py --out benchmarks/results/long_sequences.json   # and a plot beside it

Prints JSON; `--out FILE` writes it and a plot, FILE with the suffix .png. `peak_mib` is how far the call rises above what
was held before it: the input is not in it, the output is (68 MiB for 24 hours at d 1024). `growth` is the exponent of time
and memory over length from one hour on; 1 is linear.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lvmae.model import LVMAEConfig, LVMAEModel

SEGMENT_SECONDS = 5
MINUTES = (5, 10, 21, 30, 60, 120, 240, 480, 960, 1440)


def process_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def measure(model: LVMAEModel, segments: int, device: torch.device) -> dict[str, Any]:
    """Seconds and MiB of one call on a video of that many segments."""
    x = F.normalize(torch.randn(1, segments, model.config.hidden_size), dim=-1).to(device)
    cuda = device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = process_bytes("VmRSS")
    start = time.perf_counter()
    with torch.inference_mode():
        output = model(x)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = (torch.cuda.max_memory_allocated() if cuda else process_bytes("VmHWM")) - before
    assert output.last_hidden_state.shape == (1, segments + 1, model.config.hidden_size)
    assert bool(output.last_hidden_state.isfinite().all())
    return {"segments": segments, "seconds": round(seconds, 3), "peak_mib": round(peak / 2**20, 1)}


def growth(rows: list[dict[str, Any]], field: str) -> float | None:
    """The exponent of a quantity over length: the slope between logarithms, one hour to the longest."""
    rows = [row for row in rows if row["minutes"] >= 60]
    if len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]
    return round(math.log(last[field] / first[field]) / math.log(last["segments"] / first["segments"]), 2)


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, field, label in zip(panels, ("seconds", "peak_mib"), ("seconds", "peak memory, MiB"), strict=True):
        for rule, result in report["results"].items():
            hours = [row["minutes"] / 60 for row in result["rows"]]
            panel.plot(hours, [row[field] for row in result["rows"]], marker="o", markersize=4, label=rule)
        panel.set(xscale="log", yscale="log", xlabel="hours of video", ylabel=label)
        panel.set_xticks([1 / 12, 0.5, 1, 4, 24], ["5 min", "30 min", "1 h", "4 h", "24 h"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend()
    size = report["model"]
    figure.suptitle(
        f"One video in one call: d {size['width']}, {size['layers']} layers, {report['hardware']['device']}"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--minutes", type=int, nargs="+", default=list(MINUTES))
    parser.add_argument("--rule", nargs="+", default=["windows"], choices=("windows", "extrapolate", "interpolate"))
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", type=Path, help="also write the JSON here, and a plot beside it")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "benchmark": "long_sequences",
        "hardware": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "results": {},
    }
    for rule in args.rule:
        config = LVMAEConfig(num_hidden_layers=args.layers, long_sequences=rule)
        model = LVMAEModel(config)
        model.to(device)  # type: ignore[arg-type]
        model.train(mode=False)
        report["model"] = {"width": config.hidden_size, "layers": args.layers, "max_segments": config.max_segments}
        measure(model, config.max_segments, device)  # warm-up
        rows = []
        for minutes in sorted(args.minutes):
            rows.append({"minutes": minutes} | measure(model, minutes * 60 // SEGMENT_SECONDS, device))
        report["results"][rule] = {
            "rows": rows,
            "growth_of_seconds": growth(rows, "seconds"),
            "growth_of_memory": growth(rows, "peak_mib"),
        }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
        plot(report, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
