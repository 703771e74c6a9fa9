"""Memory of an embedding job, over all of its processes, with the offline encoder. Prints JSON.

    python benchmarks/memory.py --videos ../shared/videos --hours 10 --files 5000 --out benchmarks/results/memory.json

Needs the `ffmpeg` command and Linux. Two jobs: one film of many hours (a short one, looped without encoding it again), and a folder
of many short ones (a few, linked under many names). What counts is the proportional set size of all processes together, looked at
once a second: pages that processes share count once, torch and the encoder's weights included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lvmae.embedding import embed_videos
from watching import Watch

LIMIT_MIB = 1536


def ffmpeg(*arguments: str | Path) -> None:
    """Runs the command quietly."""
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


def long_film(videos: Path, hours: float, folder: Path) -> None:
    """One film of the folder at 180 lines, again and again."""
    folder.mkdir()
    short = folder.with_name("short.mp4")
    film = min(videos.glob("*.mp4"))
    ffmpeg("-i", film, "-an", "-vf", "scale=-2:180", "-c:v", "libx264", "-preset", "veryfast", "-g", "50", short)
    ffmpeg("-stream_loop", "-1", "-i", short, "-c", "copy", "-t", str(hours * 3600), folder / "film.mkv")


def short_films(videos: Path, files: int, folder: Path) -> None:
    """Films of three seconds, cut from one, under as many names as asked for."""
    folder.mkdir()
    film = min(videos.glob("*.mp4"))
    cuts = []
    for number in range(16):
        cuts.append(folder.with_name(f"cut{number}.mp4"))
        ffmpeg("-ss", str(3 * number), "-i", film, "-t", "3", "-an", "-vf", "scale=-2:180", "-c:v", "libx264", cuts[-1])
    for number in range(files):
        os.link(cuts[number % len(cuts)], folder / f"{number:05d}.mp4")


def measured(videos: Path, store: Path, workers: int | None, segment_seconds: float) -> dict[str, Any]:
    """One job, watched."""
    with Watch() as watch:
        summary = embed_videos(videos, store, workers=workers, segment_seconds=segment_seconds)
    return {
        "videos": summary.embedded,
        "hours": round(summary.seconds_of_video / 3600, 2),
        "segments": summary.segments,
        "failed": summary.failed,
        "processes": max(len(sample.pss) for sample in watch.samples),
        "peak_mib": round(watch.peak),
        "median_mib_by_quarter": watch.by_quarter(),
        "wall_seconds": round(summary.wall_seconds, 1),
        "within_limit": watch.peak < LIMIT_MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=10.0, help="0: leave this job out")
    parser.add_argument("--files", type=int, default=5000, help="0: leave this job out")
    parser.add_argument(
        "--segment-seconds", type=float, default=5.0, help="longer ones make the encoder's part shorter"
    )
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "limit_mib": LIMIT_MIB,
        "cores": len(os.sched_getaffinity(0)),
        "segment_seconds": arguments.segment_seconds,
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name, make, amount in (
            ("one_long_film", long_film, arguments.hours),
            ("many_short_films", short_films, arguments.files),
        ):
            if amount:
                (work / name).mkdir()
                make(arguments.videos, amount, work / name / "videos")
                found[name] = measured(
                    work / name / "videos", work / name / "store", arguments.workers, arguments.segment_seconds
                )
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
