"""What ffmpeg plays of a film whose frames carry their number, and how that is held against what the decoder gives."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from films import SIZE, number_in, picture_of
from lvmae.video.decoding import decode_segments, probe

X264 = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-g", "40"]
MPEG2 = ["-c:v", "mpeg2video", "-q:v", "3", "-bf", "2"]


def ffmpeg(*arguments: str | Path, input: bytes | None = None) -> tuple[bytes, str]:
    """What the command prints on its two streams."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", *map(str, arguments)]
    done = subprocess.run(command, input=input, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout, done.stderr.decode(errors="replace")


def film_of(
    path: Path, first: int, count: int, *options: str, codec: list[str] = X264, sound: float = 0, size: int = SIZE
) -> Path:
    """25 frames a second that carry first, first + 1, ...; with `sound`, so many seconds of a tone."""
    block = np.ones((size // SIZE, size // SIZE, 1), np.uint8)
    pictures = b"".join(np.kron(picture_of(n), block).tobytes() for n in range(first, first + count))
    tone = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={sound}"] if sound else []
    heard = ["-map", "1:a", "-c:a", "mp2"] if sound else []
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size}x{size}", "-framerate", "25", "-i", "-", *tone, "-map", "0:v",
           *heard, *codec, "-pix_fmt", "yuv420p", *options, path, input=pictures)  # fmt: skip
    return path


def joined(path: Path, *parts: Path) -> Path:
    """The parts one after the other, as `cat` does it."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def shown(path: Path, *, sound: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Times (F,) in seconds and numbers (F,) of the frames that ffmpeg shows, while it plays the sound if there is any."""
    heard = ["-map", "0:a", "-f", "null", "/dev/null"] if sound else []
    # Which stream is the film, ffmpeg decides, here as there.
    out, log = ffmpeg("-i", path, "-an", "-vf", f"showinfo,scale={SIZE}:{SIZE}", "-fps_mode", "passthrough", "-f",
                      "rawvideo", "-pix_fmt", "rgb24", "-", *heard)  # fmt: skip
    times = np.array([float(t) for t in re.findall(r"\bpts_time:(\S+)", log)])
    frames = np.frombuffer(out, np.uint8).reshape(-1, SIZE, SIZE, 3)
    assert len(times) == len(frames) > 2
    return times, np.array([number_in(frame) for frame in frames])


def assert_as_played(path: Path, *, sound: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The segment at [a, b) holds what ffmpeg shows there, decoded fast and in full; returns what ffmpeg shows."""
    times, numbers = shown(path, sound=sound)
    duration = probe(path).duration
    last = float(np.median(np.diff(times)))
    assert abs(duration - times.max() - last) <= max(last, 0.1) + 0.03
    seconds = max(1.0, duration / 9)
    starts = np.arange(0, duration - seconds / 2, seconds)
    ends = np.append(starts[1:], duration)
    offsets = (np.arange(4) + 0.5) / 4
    at = starts[:, None] + offsets * (ends - starts)[:, None]
    # showinfo prints six digits; of what is shown out of its order, a player shows the last that came.
    order = np.maximum.accumulate(times)
    want = numbers[np.maximum(np.searchsorted(order, at + 2e-6, side="right") - 1, 0)]
    for skip in (True, False):
        segments = decode_segments(path, starts, ends, num_frames=4, image_size=SIZE, skip=skip)
        got = [[number_in(frame) for frame in segment] for segment in segments]
        assert got == want.tolist()
    return times, numbers


def edited(source: Path, target: Path, pieces: list[tuple[float | None, float]]) -> Path:
    """An MP4 whose edit list plays these pieces: (start in seconds of the media, or None for nothing to see, length)."""
    data = bytearray(source.read_bytes())

    def box(start: int, end: int, name: bytes) -> tuple[int, int]:
        while data[start + 4 : start + 8] != name:
            start += int.from_bytes(data[start : start + 4])
            assert start < end
        return start, int.from_bytes(data[start : start + 4])

    def inside(outer: tuple[int, int], name: bytes) -> tuple[int, int]:
        return box(outer[0] + 8, sum(outer), name)

    moov = box(0, len(data), b"moov")  # behind the media: nothing there moves
    trak = inside(moov, b"trak")
    edts, length = inside(trak, b"edts")
    first = int.from_bytes(data[edts + 28 : edts + 32])  # where the picture starts in the media, as it was
    entries = b"".join(
        struct.pack(">IiI", round(seconds * 1000), -1 if start is None else round(start * 12800) + first, 0x10000)
        for start, seconds in pieces
    )
    elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(pieces)) + entries
    data[edts : edts + length] = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    for place, size in (moov, trak):
        data[place : place + 4] = struct.pack(">I", size + 8 + len(elst) - length)
    target.write_bytes(data)
    return target
