"""Embedding speed: decoding against FFmpeg's own and against the conventional pipeline, and the whole job. Prints JSON.

    python benchmarks/embed.py --videos ../shared/videos --out benchmarks/results/embed.json

Needs the `ffmpeg` command. The films given are looped and re-encoded (libx264's defaults, B-frames and all) into one 20-minute file
for each height, at the first with several distances of key frames. They are made once and kept in `--work`. Everything is timed in
one run, on the same file:

- `ffmpeg`: `ffmpeg -i FILE -f null -`, which decodes every frame and converts none, with its default threads (all cores) and with
  `-threads 1`;
- `one_process`, `two_processes`: our decoding with an encoder that costs nothing, 8 frames of 224 x 224 of each 5-second segment,
  one thread a process; the two share the file, each takes half of its segments. `one_process_all_threads` has one a core;
- `conventional`, on the first minutes: decode the file once to validate it, cut and re-encode it into 5-second files with libx264,
  open each and seek to 8 frames. Beside it our one process on the same minutes;
- `offline_encoder`: seconds of video a second by the default job, and where the time goes.

`cpu` is user and system time of all processes and threads. Its ratios tell how much work is saved, and move little with what else
the machine does; those of wall time tell how long one waits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
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

from lvmae.embedding import embed_videos
from lvmae.encoders import load_encoder
from lvmae.store import Manifest, StoreWriter, VideoRecord
from lvmae.video.decoding import decode_segments, probe
from lvmae.video.picture import Cropped
from lvmae.video.segmentation import SegmentRule

FRAMES, PIXELS = 8, 224  # what the paper's encoder asks for
Times = dict[str, float]


def timed(work: Callable[[], Any]) -> Times:
    """Wall and CPU seconds of one call, its finished child processes included."""

    def used() -> float:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    began, before = time.perf_counter(), used()
    work()
    return {"wall": round(time.perf_counter() - began, 2), "cpu": round(used() - before, 2)}


def ffmpeg(*arguments: str | Path) -> None:
    """Runs the command quietly."""
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


def film_of(videos: Path, minutes: float, height: int, gop: int, work: Path) -> Path:
    """All films of a folder one after the other, again and again, at one size; made if it is not there."""
    target = work / f"{height}p-gop{gop}-{minutes:g}min.mp4"
    if target.exists():
        return target
    width = height * 16 // 9
    fit = f"scale={width}:{height}:force_original_aspect_ratio=decrease,pad={width}:{height}:(ow-iw)/2:(oh-ih)/2,fps=25,setsar=1"
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        parts = []
        for number, film in enumerate(sorted(videos.glob("*.mp4"))):
            parts.append(folder / f"{number}.mp4")
            ffmpeg("-i", film, "-an", "-vf", fit, "-c:v", "libx264", "-g", str(gop), parts[-1])
        rounds = int(np.ceil(minutes * 60 / sum(probe(part).duration for part in parts)))
        (folder / "list.txt").write_text("".join(f"file '{part}'\n" for part in parts * rounds))
        whole = ("-f", "concat", "-safe", "0", "-i", folder / "list.txt", "-c", "copy", "-t", str(minutes * 60))
        ffmpeg(*whole, folder / "film.mp4")
        (folder / "film.mp4").rename(target)
    return target


def decode(path: Path, share: tuple[int, int] = (0, 1), minutes: float | None = None, threads: int = 1) -> int:
    """Decodes one share of a file's segments and throws the frames away: an encoder that costs nothing."""
    duration = probe(path).duration
    starts, ends = SegmentRule().segments(duration if minutes is None else min(duration, minutes * 60))
    part = slice(len(starts) * share[0] // share[1], len(starts) * (share[0] + 1) // share[1])
    size: dict[str, Any] = {"num_frames": FRAMES, "image_size": PIXELS, "threads": threads}
    return sum(1 for _ in decode_segments(path, starts[part], ends[part], **size))


def two_processes(path: Path) -> float:
    """Wall time of two processes that share a file, without their start."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode, [path] * 2, [(0, 500)] * 2))
        return timed(lambda: list(pool.map(decode, [path] * 2, [(0, 2), (1, 2)])))["wall"]


def conventional(path: Path, folder: Path, minutes: float) -> None:
    """The usual pipeline: validate, cut and re-encode 5-second files, open each, seek to its frames and resize them."""
    folder.mkdir()
    some: list[str | Path] = ["-t", str(minutes * 60), "-i", path]
    cut = ["-an", "-c:v", "libx264", "-f", "segment", "-segment_time", "5", "-reset_timestamps", "1"]
    ffmpeg(*some, "-f", "null", "-")
    ffmpeg(*some, *cut, "-force_key_frames", "expr:gte(t,n_forced*5)", folder / "%05d.mp4")
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


def decoding(path: Path) -> dict[str, Any]:
    """Our decoding of a whole file beside ffmpeg's."""
    decode(path, (0, 500))
    times = {
        "ffmpeg": timed(lambda: ffmpeg("-i", path, "-f", "null", "-")),
        "ffmpeg_one_thread": timed(lambda: ffmpeg("-threads", "1", "-i", path, "-f", "null", "-")),
        "one_process": timed(lambda: decode(path)),
        "one_process_all_threads": timed(lambda: decode(path, threads=len(os.sched_getaffinity(0)))),
    }
    both = two_processes(path)
    walls = {name: times[name]["wall"] for name in ("one_process", "one_process_all_threads")} | {"two_processes": both}

    def ratios(reference: str) -> dict[str, float]:
        wall = times[reference]["wall"]
        return {name: round(own / wall, 3) for name, own in walls.items()}

    return {
        "seconds": times | {"two_processes": {"wall": both}},
        "over_ffmpeg_one_thread": ratios("ffmpeg_one_thread"),
        "over_ffmpeg_default_threads": ratios("ffmpeg"),
        "cpu_over_ffmpeg_one_thread": round(times["one_process"]["cpu"] / times["ffmpeg_one_thread"]["cpu"], 3),
        "two_processes_over_one": round(both / walls["one_process"], 3),
    }


def beside_the_conventional(path: Path, folder: Path, minutes: float) -> dict[str, Any]:
    """The conventional pipeline over our one process, on the same first minutes of a file."""
    usual = timed(lambda: conventional(path, folder / f"clips-{path.stem}", minutes))
    ours = timed(lambda: decode(path, minutes=minutes))
    return {
        "minutes": minutes,
        "conventional": usual,
        "one_process": ours,
        "times_faster": {name: round(usual[name] / ours[name], 1) for name in usual},
    }


def offline_encoder(path: Path, folder: Path, minutes: float) -> dict[str, Any]:
    """Where one core's time goes in the first minutes of a file, and the default job on all of it."""
    import torch

    torch.set_num_threads(1)
    encoder = load_encoder("conse")
    encoder.self_test()
    starts, ends = SegmentRule().segments(min(minutes * 60, probe(path).duration))
    spent = dict.fromkeys(("decode", "convert", "encode", "store"), 0.0)
    convert = Cropped.__call__

    def watched(self: Any, *given: Any) -> np.ndarray:
        began = time.process_time()
        picture = convert(self, *given)
        spent["convert"] += time.process_time() - began
        return picture

    Cropped.__call__ = watched  # type: ignore[assignment,method-assign]
    began = time.process_time()
    frames = list(
        decode_segments(
            path,
            starts,
            ends,
            num_frames=encoder.num_frames,
            image_size=encoder.image_size,
            interpolation=encoder.interpolation,
            framing=encoder.framing,
        )
    )
    spent["decode"] = time.process_time() - began - spent["convert"]
    Cropped.__call__ = convert  # type: ignore[method-assign]
    encoder.encode_video(np.stack(frames[:16]))
    began = time.process_time()
    vectors = np.concatenate([encoder.encode_video(np.stack(frames[i : i + 16])) for i in range(0, len(frames), 16)])
    spent["encode"] = time.process_time() - began
    manifest = Manifest(space_id=encoder.space_id, dim=encoder.dim, segments=SegmentRule().description, encoder={})
    for store in ("first", "second"):  # the first imports what it needs
        began = time.process_time()
        with StoreWriter(folder / store, manifest) as writer:
            writer.add(VideoRecord("film", str(path), float(ends[-1]), starts, ends, vectors))
        spent["store"] = time.process_time() - began
    whole = sum(spent.values())
    summary = embed_videos(path, folder / "store")
    return {
        "film": path.stem,
        "frames_per_segment": encoder.num_frames,
        "pixels": encoder.image_size,
        "one_core": {
            "video_seconds_per_second": round(float(ends[-1]) / whole, 1),
            "share_of_time": {name: round(seconds / whole, 4) for name, seconds in spent.items()},
        },
        "embed_videos": {
            "workers": len(os.sched_getaffinity(0)),
            "segments": summary.segments,
            "video_seconds_per_second": round(summary.seconds_of_video / summary.wall_seconds, 1),
            "wall_seconds_with_start_up": round(summary.wall_seconds, 1),
        },
    }


def hardware() -> dict[str, Any]:
    """What this runs on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "ffmpeg_command": version,
        "ffmpeg_in_pyav": av.ffmpeg_version_info,
        "python": platform.python_version(),
    }


def main() -> None:
    """Runs the benchmark."""
    cache = Path(os.environ.get("LVMAE_CACHE", "~/.cache/lvmae")).expanduser()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=Path("../shared/videos"), help="a folder of .mp4 films to loop")
    parser.add_argument("--work", type=Path, default=cache / "benchmarks" / "embed", help="where the films are kept")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--heights", type=int, nargs="+", default=[360, 1080])
    parser.add_argument(
        "--gops", type=int, nargs="+", default=[250, 25], help="all at the first height, else the first"
    )
    parser.add_argument("--conventional-minutes", type=float, default=1.0, help="0 leaves it out")
    parser.add_argument("--encoder-minutes", type=float, default=2.0, help="0 leaves it out")
    parser.add_argument("--only-make", action="store_true", help="make the films and stop")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if shutil.which("ffmpeg") is None or not arguments.videos.is_dir():
        sys.exit(f"This benchmark needs the command ffmpeg and a folder of films ({arguments.videos}).")
    arguments.work.mkdir(parents=True, exist_ok=True)
    films = {
        height: [
            film_of(arguments.videos, arguments.minutes, height, gop, arguments.work)
            for gop in (arguments.gops if height == arguments.heights[0] else arguments.gops[:1])
        ]
        for height in arguments.heights
    }
    if arguments.only_make:
        return
    result: dict[str, Any] = {"hardware": hardware(), "minutes": arguments.minutes, "decoding": {}}
    with tempfile.TemporaryDirectory() as name:
        for film in [film for some in films.values() for film in some]:
            result["decoding"][film.stem] = decoding(film)
            print(film.stem, json.dumps(result["decoding"][film.stem]), file=sys.stderr, flush=True)
        if arguments.conventional_minutes:
            result["beside_the_conventional_pipeline"] = {
                some[0].stem: beside_the_conventional(some[0], Path(name), arguments.conventional_minutes)
                for some in films.values()
            }
        if arguments.encoder_minutes:
            film = films[arguments.heights[0]][0]
            result["offline_encoder"] = offline_encoder(film, Path(name), arguments.encoder_minutes)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
