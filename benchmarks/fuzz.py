"""Embeds thousands of mutated video files in one job, and says what became of the job. Prints JSON.

    python benchmarks/fuzz.py --files 2000 --out benchmarks/results/fuzz.json

Small films of many codecs and containers are written, then damaged: bits flipped, cut off, spliced with one another, stretches
zeroed, dropped or repeated, fields near the start and the end overwritten. What is asked of the job: it ends, with every file in
the store or among its failures; no worker hangs; no process, file or memory is left behind. Reasons are counted without their
figures; `unforeseen` are those that name a Python error.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from lvmae.embedding import embed_videos
from lvmae.errors import InputError
from watching import Watch, family, open_files

# container, codec, options of the codec
FILMS: list[tuple[str, str, dict[str, str]]] = [
    ("mp4", "libx264", {"g": "12"}),
    ("mp4", "libx264", {"g": "12", "faststart": "1"}),
    ("mkv", "libx264", {"g": "25", "bf": "3"}),
    ("ts", "libx264", {"g": "12"}),
    ("flv", "libx264", {"g": "12", "bf": "0"}),
    ("mp4", "libx265", {"g": "12", "x265-params": "log-level=none"}),
    ("mov", "mpeg4", {"g": "12"}),
    ("avi", "mpeg4", {"g": "12"}),
    ("mpg", "mpeg2video", {"g": "12"}),
    ("webm", "libvpx", {"deadline": "realtime"}),
    ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ("mov", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("avi", "ffv1", {}),
    ("gif", "gif", {"pix_fmt": "rgb8"}),
]
_FILE_TIMEOUT = 60.0


class Brightness:
    """An encoder without weights, so that the time goes to decoding."""

    name, dim, num_frames, image_size, interpolation, framing = "brightness", 4, 4, 32, "bilinear", "crop"
    licence, has_text, space_id = "CC0", False, "brightness"

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        return np.asarray(frames.reshape(len(frames), 4, -1).mean(axis=2), np.float32) / 255

    def encode_text(self, texts: list[str]) -> np.ndarray:
        raise InputError("no text")

    def self_test(self) -> None:
        pass


def write_films(folder: Path, seconds: float = 3.0) -> list[Path]:
    """One small film of each kind that this build of FFmpeg can write."""
    films = []
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 128, 3), np.uint8)
    for number, (container, codec, given) in enumerate(FILMS):
        options = dict(given)
        pixels = options.pop("pix_fmt", "yuv420p")
        flags = {"movflags": "faststart"} if options.pop("faststart", None) else {}
        path = folder / f"{number:02d}-{codec}.{container}"
        try:
            with av.open(str(path), "w", options=flags) as output:
                stream: Any = output.add_stream(codec, rate=12, options=options)
                stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
                for i in range(int(seconds * 12)):
                    picture = np.roll(noise, 3 * i, axis=1) // 2 + np.uint8(3 * i)
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = i, Fraction(1, 12)
                    output.mux(stream.encode(frame))
                output.mux(stream.encode(None))
        except (av.error.FFmpegError, ValueError) as error:
            print(f"left out: {codec} in {container}: {error}", file=sys.stderr)
            path.unlink(missing_ok=True)
            continue
        films.append(path)
    return films


def mutated(rng: np.random.Generator, films: list[bytes]) -> tuple[str, bytes]:
    """A damaged film, and in what way it is."""
    data = bytearray(films[rng.integers(len(films))])
    size = len(data)
    kind = str(rng.choice(["flips", "cut", "spliced", "zeroed", "dropped", "repeated", "head", "tail"]))
    at, length = sorted(int(i) for i in rng.integers(0, size, 2))
    if kind == "flips":
        for place in rng.integers(0, size, int(rng.integers(1, 60))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "spliced":
        other = films[rng.integers(len(films))]
        data[at:] = other[int(rng.integers(len(other))) :]
    elif kind == "zeroed":
        data[at:length] = bytes(length - at)
    elif kind == "dropped":
        del data[at : min(length, at + 2000)]
    elif kind == "repeated":
        data[at:at] = data[at : min(length, at + 2000)]
    else:  # fields of a header: extreme values where sizes, counts and rates stand
        window = min(size, 1500)
        base = 0 if kind == "head" else size - window
        for place in rng.integers(base, base + window - 4, int(rng.integers(1, 12))):
            value = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, int(rng.integers(1 << 32))][rng.integers(6)]
            data[place : place + 4] = value.to_bytes(4, "big" if rng.integers(2) else "little")
    return kind, bytes(data)


def fuzz(files: int, folder: Path, *, seed: int = 0, workers: int | None = None) -> dict[str, Any]:
    """Writes, embeds and counts; see above."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    films = write_films(folder)
    contents = [film.read_bytes() for film in films]
    rng = np.random.default_rng(seed)
    kinds: collections.Counter[str] = collections.Counter()
    for number in range(files):
        kind, data = mutated(rng, contents)
        kinds[kind] += 1
        # The suffix says nothing of what is in it; FFmpeg goes by the content.
        (videos / f"{number:05d}-{kind}.mp4").write_bytes(data)
    before = open_files(os.getpid())
    with Watch(every=0.5) as watch:
        summary = embed_videos(
            videos,
            folder / "store",
            encoder="fuzz:Brightness",
            segment_seconds=1.0,
            workers=workers,
            keep_partial=True,
            timeout=_FILE_TIMEOUT,
        )
    reasons = collections.Counter(re.sub(r"-?\d[\d.,]*", "N", failure.reason) for failure in summary.failures)
    return {
        "files": files,
        "seed": seed,
        "mutations": dict(sorted(kinds.items())),
        "films": [film.name for film in films],
        "embedded": summary.embedded,
        "partial": summary.partial,
        "failed": summary.failed,
        "hung": sum("no progress" in failure.reason for failure in summary.failures),
        "crashed": sum("its process was ended" in failure.reason for failure in summary.failures),
        "reasons": dict(reasons.most_common()),
        "unforeseen": sum(count for reason, count in reasons.items() if re.match(r"\w*(Error|Exception)\b", reason)),
        "wall_seconds": round(summary.wall_seconds, 1),
        "peak_mib": round(watch.peak),
        "median_mib_by_quarter": watch.by_quarter(),
        "most_open_files_of_a_process": max((max(s.files.values()) for s in watch.samples if s.files), default=0),
        "files_left_open": open_files(os.getpid()) - before,
        "most_zombies": max((sample.zombies for sample in watch.samples), default=0),
        "processes_left": len(family(os.getpid())[0]) - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--keep", type=Path, help="leave the files in this folder, which must not be there yet")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = fuzz(
            arguments.files, arguments.keep or Path(temporary) / "fuzz", seed=arguments.seed, workers=arguments.workers
        )
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
