"""Kills an embedding job at random, many times, and says what became of the store. Prints JSON.

    python benchmarks/crashes.py --kills 20 --out benchmarks/results/crashes.json

The same command is started again and again; each time it is ended by SIGKILL at a random moment, in turn with all its workers and
alone. At last it may finish. Asked: the store equals that of a job that was left in peace, row for row; what was committed before a
start is not encoded again after it; workers whose job was killed end by themselves. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from lvmae.errors import InputError
from lvmae.store import EmbeddingStore
from watching import family

SEGMENTS = 5  # a film, of a second each
BATCH, WORKERS = 4, 2
SCRIPT = f"""
import sys
from lvmae.embedding import embed_videos
folder, out, log = sys.argv[1:]
embed_videos(
    folder, out, encoder="crashes:Logging", encoder_options={{"log": log}},
    segment_seconds=1.0, workers={WORKERS}, batch_size={BATCH}, commit_seconds=0.3,
)
"""


class Logging:
    """An encoder that notes which film each segment is of, by its brightness, and takes its time."""

    name, dim, num_frames, image_size, interpolation, framing = "logging", 4, 2, 32, "bilinear", "crop"
    licence, has_text, space_id = "CC0", False, "logging"

    def __init__(self, log: str) -> None:
        self.options: dict[str, Any] = {"log": log}

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        time.sleep(0.04 * len(frames))
        films = [round(float(segment.mean()) / 2) for segment in frames]
        with Path(self.options["log"]).open("a") as log:
            log.write("".join(f"{film}\n" for film in films))
        return np.asarray(frames.reshape(len(frames), 4, -1).mean(axis=2), np.float32) / 255

    def encode_text(self, texts: list[str]) -> np.ndarray:
        raise InputError("no text")

    def self_test(self) -> None:
        pass


def write_films(folder: Path, number: int) -> None:
    """Film i is of one grey, of brightness 2 i; with its name as its number."""
    folder.mkdir()
    for film in range(number):
        with av.open(str(folder / f"{film:03d}.mkv"), "w") as container:
            stream: Any = container.add_stream("ffv1", rate=4)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr0"
            for i in range(4 * SEGMENTS):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 2 * film, np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 4)
                container.mux(stream.encode(frame.reformat(format="bgr0")))
            container.mux(stream.encode(None))


def start(films: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(films), str(out), str(log)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def encoded(log: Path) -> list[int]:
    """The film of each segment that was encoded so far."""
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def committed(out: Path) -> set[int]:
    with contextlib.suppress(InputError):
        return {int(video) for video in EmbeddingStore(out).ids}
    return set()


def shards(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.glob("*/part-*.parquet")}


def rows(out: Path) -> list[tuple[object, ...]]:
    return [
        (r.id, r.source, r.duration, r.starts.tobytes(), r.ends.tobytes(), r.embeddings.tobytes())
        for r in EmbeddingStore(out)
    ]


def crashes(kills: int, folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Kills a job so often, lets it finish, and compares."""
    folder.mkdir(parents=True, exist_ok=True)
    films, out, log = folder / "films", folder / "store", folder / "log"
    number = min(4 * kills, 120)
    write_films(films, number)
    rng = np.random.default_rng(seed)
    done = again = unfinished = most_lost = orphans = changed = 0
    while done < kills:
        before, noted, kept = committed(out), len(encoded(log)), shards(out)
        job = start(films, out, log)
        if rng.random() < 0.8:  # else it dies while it starts
            while job.poll() is None and len(encoded(log)) == noted:
                time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.8)))
        alone = done % 2 == 0
        workers = family(job.pid)[0][1:]
        for pid in [job.pid] if alone else [job.pid, *workers]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if job.wait() != -signal.SIGKILL:
            break  # there was nothing left to do
        done += 1
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/stat").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        orphans += sum(Path(f"/proc/{pid}/stat").exists() for pid in workers)
        now = encoded(log)[noted:]
        again += sum(film in before for film in now)
        lost = sum(film not in committed(out) for film in now)
        changed += sum(shards(out).get(path) != content for path, content in kept.items())
        unfinished, most_lost = unfinished + lost, max(most_lost, lost)
    noted, before = len(encoded(log)), committed(out)
    last = start(films, out, log).wait()
    again += sum(film in before for film in encoded(log)[noted:])
    start(films, folder / "undisturbed", folder / "log2").wait()
    return {
        "films": number,
        "segments": number * SEGMENTS,
        "kills": done,
        "last_exit_code": last,
        "equal_to_an_undisturbed_store": rows(out) == rows(folder / "undisturbed"),
        "encoded": len(encoded(log)),
        "encoded_though_committed_before": again,
        "lost_in_flight": unfinished,
        "most_lost_at_once": most_lost,
        "committed_shards_changed": changed,
        "orphans": orphans,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = crashes(arguments.kills, Path(temporary), seed=arguments.seed)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
