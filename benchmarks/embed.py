"""Embedding speed: decoding against FFmpeg's own, and seconds of video a second with the offline encoder. Prints JSON.

    python benchmarks/embed.py --videos ../shared/videos --minutes 20 --out benchmarks/results/embed.json

Needs the `ffmpeg` command. The films given are looped and re-encoded into one H.264 file a size; everything is timed on that
file in one run. `over_ffmpeg` is wall time over that of `ffmpeg -i FILE -f null -`, which decodes every frame, on all cores and
converts none; below 1 is faster than decoding the file. `conventional` is the usual pipeline: cut into 5-second files with libx264,
then open each and seek to its frames.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

from lvmae.embedding import embed_videos, load_encoder
from lvmae.embedding.segmentation import SegmentRule
from lvmae.embedding.video import decode_segments, probe

FRAMES, PIXELS = 8, 224  # what the paper's encoder asks for


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ffmpeg(*arguments: str | Path) -> None:
    """Runs the command quietly."""
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


def make_film(videos: Path, minutes: float, height: int, gop: int, target: Path) -> None:
    """All films of a folder one after the other, again and again, at one size."""
    width = height * 16 // 9
    fit = f"scale={width}:{height}:force_original_aspect_ratio=decrease,pad={width}:{height}:(ow-iw)/2:(oh-ih)/2,fps=25,setsar=1"
    listing = target.with_suffix(".txt")
    parts = []
    for number, film in enumerate(sorted(videos.glob("*.mp4"))):
        part = target.with_name(f"part{number}.mp4")
        ffmpeg("-i", film, "-an", "-vf", fit, "-c:v", "libx264", "-preset", "veryfast", "-g", str(gop), part)
        parts.append(part)
    length = sum(probe(part).duration for part in parts)
    rounds = int(np.ceil(minutes * 60 / length))
    listing.write_text("".join(f"file '{part}'\n" for part in parts * rounds))
    ffmpeg("-f", "concat", "-safe", "0", "-i", listing, "-c", "copy", "-t", str(minutes * 60), target)


def decode(path: Path, share: tuple[int, int] = (0, 1), skip: bool = True) -> int:
    """Decodes one share of a file's segments and throws the frames away: an encoder that costs nothing."""
    starts, ends = SegmentRule().segments(probe(path).duration)
    part = slice(len(starts) * share[0] // share[1], len(starts) * (share[0] + 1) // share[1])
    frames = decode_segments(path, starts[part], ends[part], num_frames=FRAMES, image_size=PIXELS, skip=skip)
    return sum(1 for _ in frames)


def conventional(path: Path, folder: Path) -> None:
    """The usual pipeline: cut and re-encode 5-second files, open each, seek to its frames and resize them."""
    folder.mkdir()
    cut = ["-an", "-c:v", "libx264", "-f", "segment", "-segment_time", "5", "-reset_timestamps", "1"]
    ffmpeg("-i", path, "-f", "null", "-")  # the pass that validates
    ffmpeg("-i", path, *cut, "-force_key_frames", "expr:gte(t,n_forced*5)", folder / "%05d.mp4")
    for clip in sorted(folder.glob("*.mp4")):
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            assert stream.duration is not None
            for k in range(FRAMES):
                wanted = int((k + 0.5) / FRAMES * stream.duration)
                container.seek(wanted, stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is None or frame.pts >= wanted:
                        break
                frame.reformat(PIXELS, PIXELS, "rgb24").to_ndarray()


def offline_encoder(path: Path, folder: Path) -> dict[str, Any]:
    """The default job on the file and, one thread each, what its two halves cost."""
    import torch

    torch.set_num_threads(1)
    encoder = load_encoder("conse")
    encoder.self_test()
    duration = probe(path).duration
    starts, ends = SegmentRule().segments(duration)
    kept: list[np.ndarray] = []

    def only_decode() -> None:
        for frames in decode_segments(path, starts, ends, num_frames=encoder.num_frames, image_size=encoder.image_size):
            kept[:] = [frames]

    decoding = seconds(only_decode)
    batch = np.stack(kept * 16)
    encoding = min(seconds(lambda: encoder.encode_video(batch)) for _ in range(3)) / len(batch) * len(starts)
    cores = len(os.sched_getaffinity(0))
    copies = folder / "copies"
    copies.mkdir()
    for number in range(cores):
        (copies / f"{number}.mp4").symlink_to(path)
    summary = embed_videos(copies, folder / "store")
    return {
        "frames_per_segment": encoder.num_frames,
        "pixels": encoder.image_size,
        "encoder_frames_per_second_a_core": round(encoder.num_frames * len(starts) / encoding, 1),
        "share_of_time": {
            "decode": round(decoding / (decoding + encoding), 3),
            "encode": round(encoding / (decoding + encoding), 3),
        },
        "embed_videos": {
            "workers": cores,
            "video_seconds_per_second": round(summary.seconds_of_video / summary.wall_seconds, 1),
            "segments_per_second": round(summary.segments / summary.wall_seconds, 1),
            "wall_seconds_with_start_up": round(summary.wall_seconds, 1),
        },
    }


def measure(path: Path, folder: Path, with_conventional: bool) -> dict[str, Any]:
    """Everything on one file."""
    decode(path)  # into the page cache
    reference = seconds(lambda: ffmpeg("-i", path, "-f", "null", "-"))
    single = seconds(lambda: ffmpeg("-threads", "1", "-i", path, "-f", "null", "-"))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode, [path] * 2, [(0, 1000)] * 2))  # processes started
        halves = seconds(lambda: list(pool.map(decode, [path] * 2, [(0, 2), (1, 2)])))
    times = {
        "decode_everything": seconds(lambda: decode(path, skip=False)),
        "one_process": seconds(lambda: decode(path)),
        "two_processes": halves,
    }
    if with_conventional:
        times["conventional"] = seconds(lambda: conventional(path, folder / f"clips-{path.stem}"))
    return {
        "ffmpeg_seconds": round(reference, 2),
        "ffmpeg_one_thread_seconds": round(single, 2),
        "over_ffmpeg": {name: round(value / reference, 3) for name, value in times.items()},
        "over_ffmpeg_one_thread": {name: round(value / single, 3) for name, value in times.items()},
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, default=Path("../shared/videos"), help="a folder of .mp4 films to loop")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--heights", type=int, nargs="+", default=[360])
    parser.add_argument("--gops", type=int, nargs="+", default=[250, 25])
    parser.add_argument("--conventional", action="store_true", help="time the usual pipeline too (slow)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if shutil.which("ffmpeg") is None or not arguments.videos.is_dir():
        sys.exit(f"This benchmark needs the command ffmpeg and a folder of films ({arguments.videos}).")
    result: dict[str, Any] = {
        "hardware": {
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
        },
        "load_average_at_start": os.getloadavg()[0],
        "ffmpeg_in_pyav": av.ffmpeg_version_info,
        "minutes": arguments.minutes,
        "decode": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = folder
        for height in arguments.heights:
            for gop in arguments.gops:
                film = folder / f"{height}p-gop{gop}.mp4"
                make_film(arguments.videos, arguments.minutes, height, gop, film)
                result["decode"][film.stem] = measure(film, folder, arguments.conventional)
        result["offline_encoder"] = {"film": film.stem} | offline_encoder(film, folder)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
