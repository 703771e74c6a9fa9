"""What 1,000, 100,000 and 10 million hours of video need, from what was measured. Prints JSON, and the tables of docs/scale.md.

    python benchmarks/scale.py measure --out benchmarks/results/scale.json    # the store with a million videos; minutes
    python benchmarks/scale.py tables                                         # Markdown, from benchmarks/results/*.json

`measure` writes synthetic stores of ever more videos, two segments each, and takes time and memory of what grows with the number
of videos: resuming a store, opening it, the first read. `tables` multiplies. The rate of encoding is what `make gpu-embed`
measured, where a machine with a GPU has run it, else a figure measured by hand; pre-training's is computed from its arithmetic and
an assumed share of a GPU's peak; the tables say so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- tables: benchmarks/scale.py tables -->", "<!-- end of tables -->"
HOURS = (1_000, 100_000, 10_000_000)
SEGMENT_SECONDS = 5.0
SHARD_BYTES = 64 << 20  # lvmae.store.StoreWriter's
ASSUMED_PEAK, ASSUMED_SHARE = (
    989e12,
    0.4,
)  # H100 SXM, bf16 without sparsity (its data sheet); the share is an assumption
# LanguageBind-Huge's video tower, random weights in bfloat16, compiled, batch 32, on one H100 with torch 2.11: measured by hand.
MEASURED_CARD, MEASURED_RATE = "H100", 99.7  # segments a second
VIDEO_MINUTES = 10.0  # assumed length of a video: it is what turns hours into videos


# --- measuring ----------------------------------------------------------------------------------------------------------------


def store_of(videos: int, dim: int, segments: int, folder: str, shard_videos: int = 1000) -> float:
    """Writes a synthetic store; seconds it took."""
    from lvmae.store import Manifest, StoreWriter, VideoRecord

    manifest = Manifest("synthetic", dim, {"kind": "fixed", "seconds": SEGMENT_SECONDS}, {"name": "synthetic"})
    random = np.random.default_rng(0)
    values = random.standard_normal((segments, dim)).astype(np.float32)
    starts = np.arange(segments) * SEGMENT_SECONDS
    began = time.perf_counter()
    with StoreWriter(folder, manifest, shard_bytes=shard_videos * segments * dim * 2, flush_seconds=1e9) as writer:
        for i in range(videos):
            name = f"collection/{i // 1000:06d}/video-{i:012d}"
            writer.add(
                VideoRecord(
                    name,
                    f"s3://bucket/{name}.mp4",
                    segments * SEGMENT_SECONDS,
                    starts,
                    starts + SEGMENT_SECONDS,
                    values,
                )
            )
    return time.perf_counter() - began


def bulk(dim: int = 1024, videos: int = 250, segments: int = 400) -> dict[str, float]:
    """Unit vectors that nothing can compress: Parquet bytes a segment, times, ids and all; segments written and mapped a second."""
    from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord

    random = np.random.default_rng(0)
    starts = np.arange(segments) * SEGMENT_SECONDS
    values = random.standard_normal((50, segments, dim)).astype(np.float32)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LVMAE_CACHE"] = folder + "/cache"
        manifest = Manifest("synthetic", dim, {"kind": "fixed", "seconds": SEGMENT_SECONDS}, {"name": "synthetic"})
        began = time.perf_counter()
        with StoreWriter(folder + "/store", manifest) as writer:
            for i in range(videos):
                end = segments * SEGMENT_SECONDS
                writer.add(VideoRecord(f"{i}", f"{i}.mp4", end, starts, starts + SEGMENT_SECONDS, values[i % 50]))
        written = time.perf_counter()
        EmbeddingStore.open(folder + "/store").embeddings(0)
        mapped = time.perf_counter()
        size = sum(path.stat().st_size for path in Path(folder, "store").rglob("*.parquet"))
    count = videos * segments
    return {
        "parquet_bytes_a_segment": round(size / count, 1),
        "segments_written_a_second": round(count / (written - began)),
        "segments_mapped_a_second": round(count / (mapped - written)),
    }


# Each runs in a process of its own, so that its memory is its own: it prints seconds and its growth in resident MiB.
TIMED = """
import json, sys, time
from lvmae.store import EmbeddingStore, Manifest, StoreWriter
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
folder, work = sys.argv[1:]
manifest = EmbeddingStore(folder).manifest
before, began = resident(), time.perf_counter()
if work == "resume":
    writer = StoreWriter(folder, manifest); writer.close()
elif work == "open":
    store = EmbeddingStore.open(folder); store.embeddings(0)
elif work == "lengths":
    store = EmbeddingStore.open(folder); store.lengths
elif work == "index":
    store = EmbeddingStore.open(folder); store.index(store.ids[-1])
print(json.dumps({"seconds": round(time.perf_counter() - began, 3), "mib": round(resident() - before, 1),
                  "maps": sum(".arrow" in line for line in open("/proc/self/maps"))}))
"""


def measure(counts: list[int]) -> dict[str, Any]:
    """What grows with the number of videos, and what a segment takes."""
    results: dict[str, Any] = {
        "benchmark": "scale",
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "load_before": round(os.getloadavg()[0], 1),
        "width_1024": bulk(),
        "videos": {},
    }
    for videos in counts:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"LVMAE_CACHE": folder + "/cache", "OMP_WAIT_POLICY": "PASSIVE"}
            row: dict[str, Any] = {"write_seconds": round(store_of(videos, 4, 2, folder + "/store"), 2)}
            row["shards"] = len(list(Path(folder, "store", "data").iterdir()))
            for name, work in (
                ("go_on", "resume"),
                ("first_open", "open"),
                ("open", "open"),
                ("lengths", "lengths"),
                ("index", "index"),
            ):
                command = [sys.executable, "-c", TIMED, folder + "/store", work]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                row[name] = json.loads(done.stdout)
            results["videos"][str(videos)] = row
            print(videos, row, file=sys.stderr, flush=True)
    return results


# --- multiplying --------------------------------------------------------------------------------------------------------------


def vision_flops(
    *, width: int = 1280, layers: int = 32, mlp: int = 5120, image: int = 224, patch: int = 14, frames: int = 8
) -> float:
    """Floating-point operations of one segment in LanguageBind's video tower: CLIP ViT-H/14, with attention over time.

    Per token and layer: two attentions of four width x width products, the MLP's two, and the scores and sums over the tokens of
    the frame and over the frames. Two operations a multiply-add.
    """
    patches = (image // patch) ** 2
    tokens = patches + 1
    a_token = 8 * width**2 + 2 * width * mlp + 2 * width * (tokens + frames)
    embedding = patches * 3 * patch**2 * width
    return 2.0 * frames * (layers * tokens * a_token + embedding)


def window_flops(mask_ratio: float = 0.5) -> float:
    """Forward and backward of one window of the paper's model: three times two operations a multiply-add.

    The encoder's 403 M parameters meet the visible tokens, the decoder's 25 M all. A duration is drawn from 10 s to 256 segments
    and cut at the video's end (paper, section 4.1). Attention's own scores are left out: below a hundredth at such lengths.
    """
    short, long, most = 10.0, 256 * SEGMENT_SECONDS, VIDEO_MINUTES * 60
    end = min(most, long)
    mean = ((end**2 - short**2) / 2 + end * (long - end)) / (long - short)
    return 6.0 * mean / SEGMENT_SECONDS * (403e6 * (1 - mask_ratio) + 25e6)


def encoding_rate() -> tuple[str, float]:
    """The card and the segments a second of the fastest file of `make gpu-embed`; the figure above if there is none."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("gpu-embed-*.json")]
    rates = [
        (row["encoders"]["languagebind-huge"]["segments_a_second"], row["card"])
        for row in found
        if "languagebind-huge" in row["encoders"]
    ]
    rate, card = max(rates, default=(MEASURED_RATE, MEASURED_CARD))
    return card, rate


def results_of(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def sized(amount: float) -> str:
    """Bytes as a person says them, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if amount < 1000 or unit == "PB":
            return f"{amount:.3g} {unit}"
        amount /= 1000
    raise AssertionError


def counted(number: float) -> str:
    """Three digits are all that such an estimate has."""
    if number >= 100:
        digits = 10 ** max(len(str(int(number))) - 3, 0)
        return f"{round(number / digits) * digits:,}"
    return f"{number:.2g}"


def needs(hours: int, bytes_a_segment: float) -> dict[str, float]:
    """What so many hours need, the decoding aside."""
    seconds = hours * 3600.0
    segments = seconds / SEGMENT_SECONDS
    stored = segments * bytes_a_segment
    a_second = ASSUMED_PEAK * ASSUMED_SHARE
    windows = hours * 60 / VIDEO_MINUTES  # one a video and epoch
    return {
        "segments": segments,
        "encode_gpu_hours": segments / encoding_rate()[1] / 3600,
        "stored_bytes": stored,
        "shards": max(segments * 1024 * 2 / SHARD_BYTES, 1),  # counted before compression
        "cache_bytes": segments * 1024 * 2,
        "epoch_gpu_hours": windows * window_flops() / a_second / 3600,
    }


def tables() -> str:
    """The Markdown of docs/scale.md that is made of numbers."""
    scale, embed = results_of("scale"), results_of("embed")
    if scale is None:
        raise SystemExit("benchmarks/results/scale.json is missing; run `python benchmarks/scale.py measure` first")
    lines: list[str] = []
    rates = decode_rates(embed)
    a_segment = scale["width_1024"]["parquet_bytes_a_segment"]
    rows = {hours: needs(hours, a_segment) for hours in HOURS}
    lines += ["| | " + " | ".join(f"{hours:,} hours" for hours in HOURS) + " |", "|---" * (len(HOURS) + 1) + "|"]

    def line(title: str, cells: list[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    line("segments of 5 s", [counted(row["segments"]) for row in rows.values()])
    for height, rate in rates.items():
        line(f"decoding {height} at {rate:.0f} times real time, core-hours", [counted(hours / rate) for hours in HOURS])
    card, rate_of_card = encoding_rate()
    line(
        f"encoding, {card}-hours at {rate_of_card:.0f} segments/s",
        [counted(row["encode_gpu_hours"]) for row in rows.values()],
    )
    line("store, Parquet", [sized(row["stored_bytes"]) for row in rows.values()])
    line("shards of 64 MiB", [counted(row["shards"]) for row in rows.values()])
    line("memory-mapped cache", [sized(row["cache_bytes"]) for row in rows.values()])
    line(
        "pre-training, H100-hours an epoch (assumed share)", [counted(row["epoch_gpu_hours"]) for row in rows.values()]
    )
    lines += ["", "| videos | resuming | first opening | opening | lengths of all | place of an id |", "|---" * 6 + "|"]
    for videos, row in scale["videos"].items():
        cells = [
            f"{row[k]['seconds']:.2f} s, {row[k]['mib']:.0f} MiB"
            for k in ("go_on", "first_open", "open", "lengths", "index")
        ]
        lines.append(f"| {int(videos):,} | " + " | ".join(cells) + " |")
    bulk_rates = scale["width_1024"]
    lines += [
        "",
        f"One segment: {vision_flops() / 1e12:.2f} TFLOP in the encoder, {a_segment:.0f} bytes of Parquet at width 1024. "
        f"One process writes {bulk_rates['segments_written_a_second']:,} segments a second and "
        f"maps {bulk_rates['segments_mapped_a_second']:,}.",
    ]
    taken = SEGMENT_SECONDS * rate_of_card
    for height, rate in rates.items():
        lines[-1] += (
            f" A GPU takes {taken:.0f} seconds of video a second, what {taken / rate:.1f} cores decode of {height}."
        )
    return "\n".join(lines)


def decode_rates(embed: dict[str, Any] | None) -> dict[str, float]:
    """Height -> seconds of video that one core decodes a second, from benchmarks/results/embed.json."""
    if embed is None:
        print("without benchmarks/results/embed.json the tables lack the decoding", file=sys.stderr)
        return {}
    rates: dict[str, float] = {}
    for film, found in embed["decoding"].items():
        height, _, gop = film.partition("-gop")
        took = found["seconds"]["one_process"]["wall"]
        if gop.startswith("250") or height not in rates:  # x264's own distance of key frames
            rates[height] = embed["minutes"] * 60 / took
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--videos", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    measuring.add_argument("--out", type=Path)
    writing = commands.add_parser("tables")
    writing.add_argument(
        "--into", type=Path, help="a Markdown file; what is between its two `tables` comments is replaced"
    )
    arguments = parser.parse_args()
    if arguments.command == "tables":
        found = tables()
        print(found)
        if arguments.into:
            before, _, rest = arguments.into.read_text().partition(BEGIN)
            arguments.into.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{rest.partition(END)[2]}")
        return
    text = json.dumps(measure(arguments.videos), indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
