"""How many searches a second `lvmae serve` answers: clients at once, every query another text. Prints JSON.

    python benchmarks/serving.py --out benchmarks/results/serving.json

The store is made up: unit vectors in the space of the offline text encoder, so that each query goes the whole way. The server is
a process of its own; the clients keep their connections, as browsers do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from lvmae.encoders import load_encoder
from lvmae.store import Manifest, StoreWriter, VideoRecord, l2_normalize

WORDS = [
    "dog",
    "cat",
    "beach",
    "snow",
    "fire",
    "train",
    "market",
    "child",
    "bridge",
    "kitchen",
    "forest",
    "dance",
    "rain",
    "boat",
]


def write_store(path: Path, segments: int) -> None:
    """Videos of 500 segments whose scenes are random directions."""
    encoder = load_encoder("conse")
    about = {"name": "conse", "options": encoder.options}
    starts = np.arange(500) * 5.0
    with StoreWriter(path, Manifest(encoder.space_id, encoder.dim, {"kind": "fixed", "seconds": 5.0}, about)) as writer:
        for number in range(segments // 500):
            rng = np.random.default_rng(number)
            scene = np.cumsum(rng.random(500) < 0.15)
            rows = rng.standard_normal((scene[-1] + 1, encoder.dim))[scene] + 0.4 * rng.standard_normal(
                (500, encoder.dim)
            )
            rows = l2_normalize(rows).astype(np.float16)
            writer.add(VideoRecord(f"v{number:05d}", "", 2500.0, starts, starts + 5, rows))


async def client(port: int, queries: list[str], times: list[float]) -> None:
    """One client, one query after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for text in queries:
        began = time.perf_counter()
        writer.write(f"GET /search?q={quote(text)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
        times.append(time.perf_counter() - began)
    writer.close()


def memory_of(process: int) -> int:
    """Bytes that are resident."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_of(process: int) -> float:
    """Seconds of processor time, user and system."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 5)) + f" {number}" for number in range(arguments.queries)]
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "store", arguments.segments)
        command = [sys.executable, "-m", "lvmae", "serve", f"{folder}/store", "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        port = int(server.stdout.readline().rsplit(":", 1)[1].strip("/\n"))
        times: list[float] = []
        asyncio.run(client(port, ["warm up"], times))
        times.clear()
        before, used = memory_of(server.pid), cpu_of(server.pid)

        async def run() -> None:
            await asyncio.gather(
                *(client(port, texts[one :: arguments.clients], times) for one in range(arguments.clients))
            )

        began = time.perf_counter()
        asyncio.run(run())
        seconds = time.perf_counter() - began
        result: dict[str, Any] = {
            "segments": arguments.segments,
            "clients": arguments.clients,
            "queries": len(times),
            "searches_a_second": round(len(times) / seconds, 1),
            "median_ms": round(float(np.median(times)) * 1000, 1),
            "p95_ms": round(float(np.quantile(times, 0.95)) * 1000, 1),
            "cpu_ms_a_search": round((cpu_of(server.pid) - used) / len(times) * 1000, 2),
            "memory_mb": [round(before / 1e6), round(memory_of(server.pid) / 1e6)],
            "load_average": os.getloadavg()[0],
        }
        server.terminate()
        server.wait()
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
