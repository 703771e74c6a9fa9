"""The segment at [a, b) holds what a player shows there: odd files made by ffmpeg, against ffmpeg's own decoding of them.

Every frame carries its number as a pattern. ffmpeg says which number it shows from when (`-fps_mode passthrough`, time stamps of
`showinfo`, which count from the start of the file: the earliest of its streams); the frame at a time is the last not later, and
before the first frame the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("imageio_ffmpeg", reason="its ffmpeg makes and reads the films")

from films import SIZE, number_in, picture_of
from lvmae.video.decoding import decode_segments
from played import MPEG2, X264, assert_as_played, ffmpeg

FRAMES, RATE = 300, 25
RAW = b"".join(picture_of(n).tobytes() for n in range(FRAMES))
X265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=40"]
FIELDS = ["-vf", "setfield=tff", "-flags", "+ildct+ilme"]
SOUND = ["-f", "lavfi", "-i", "sine=frequency=440:duration=13"]
LATER = ["-itsoffset", "1.5"]
AND_LATE_PICTURE = ["-map", "0:a", "-map", "1:v"]


@dataclass(frozen=True)
class Case:
    """How a file is made: what is encoded from the numbered pictures, and how that is put into another file afterwards."""

    name: str
    encode: list[str] = field(default_factory=lambda: X264)
    before: list[str] = field(default_factory=list)  # options of the pictures' input
    sound: list[str] = field(default_factory=list)  # a second input
    remux: list[str] | None = None  # options after `-i FIRST`, `-c copy`
    remux_before: list[str] = field(default_factory=list)  # and before it
    pipe: bool = False  # written without ever going back, so that no header says how long it is


UNEVEN = "setpts='(N+0.4*mod(N*N\\,7)+12*gte(N\\,100))/25/TB'"
CASES = {
    "constant rate": Case("a.mp4"),
    "variable frame rate, mp4": Case("a.mp4", ["-vf", UNEVEN, "-fps_mode", "vfr", "-enc_time_base", "1:1000", *X264]),
    "variable frame rate, Matroska": Case("a.mkv", ["-vf", UNEVEN, "-fps_mode", "vfr", "-enc_time_base", "1:1000", *X264]),
    "starts at 7 s, Matroska": Case("a.mkv", remux=["-output_ts_offset", "7"]),
    "starts at 100 s, transport stream": Case("a.ts", remux=["-output_ts_offset", "100"]),
    "MPEG-2 program stream": Case("a.mpg", [*MPEG2, "-g", "15"]),
    "MPEG-2 transport stream": Case("a.ts", [*MPEG2, "-g", "15"]),
    "sound starts before the picture, mp4": Case("a.mp4", before=LATER, sound=SOUND),
    "sound starts before the picture, Matroska": Case("a.mkv", before=LATER, sound=SOUND),
    "sound starts before the picture, transport stream": Case("a.ts", before=LATER, sound=SOUND),
    "picture starts before the sound": Case("a.mp4", sound=[*LATER, *SOUND]),
    "edit list that cuts the beginning": Case("a.mp4", remux=[], remux_before=["-ss", "2.5"]),
    "edit list that cuts the beginning, with sound": Case("a.mp4", sound=SOUND, remux=[], remux_before=["-ss", "3.1"]),
    "edit list that delays the picture": Case("a.mp4", sound=SOUND, remux=AND_LATE_PICTURE, remux_before=["-i", "SELF", *LATER]),
    "edit list, QuickTime": Case("a.mov", remux=[], remux_before=["-ss", "4.2"]),
    "rotated by 90": Case("a.mp4", remux=[], remux_before=["-display_rotation", "90"]),
    "rotated by 180, Matroska": Case("a.mkv", remux=[], remux_before=["-display_rotation", "180"]),
    "rotated by -90, with an edit list": Case("a.mp4", remux=[], remux_before=["-display_rotation", "-90", "-ss", "2"]),
    "interlaced H.264": Case("a.mp4", [*FIELDS, "-x264-params", "tff=1", *X264]),
    "interlaced MPEG-2": Case("a.ts", [*FIELDS, *MPEG2]),
    "no duration, WebM": Case("a.webm", ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M"], pipe=True),
    "no duration, Matroska": Case("a.mkv", pipe=True),
    "no duration, fragmented mp4": Case("a.mp4", [*X264, "-movflags", "frag_keyframe+empty_moov"], pipe=True),
    "no duration, FLV": Case("a.flv", pipe=True),
    "no time stamps, raw H.264": Case("a.h264"),
    "no time stamps for B-frames, AVI": Case("a.avi", ["-c:v", "mpeg4", "-q:v", "3", "-bf", "2"]),
    "open groups of pictures": Case("a.mp4", [*X264, "-x264-params", "open-gop=1"]),
    "open groups, cut in the middle": Case("a.mp4", [*X264, "-x264-params", "open-gop=1"], remux=[], remux_before=["-ss", "3.3"]),
    "HEVC, edit list": Case("a.mp4", X265, remux=[], remux_before=["-ss", "2.5"]),
    "time-lapse, a frame in 4 s": Case("a.mp4", ["-vf", "setpts=N*4/TB", "-fps_mode", "vfr", *X264]),
}  # fmt: skip


def make(case: Case, folder: Path) -> Path:
    path = folder / case.name
    first = path.with_stem("first") if case.remux is not None else path
    raw = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{SIZE}x{SIZE}",
        "-framerate",
        str(RATE),
        *case.before,
        "-i",
        "-",
    ]
    maps = ["-map", "0:v", *(["-map", "1:a", "-c:a", "aac"] if case.sound else [])]
    container = {".mkv": "matroska", ".webm": "webm", ".mp4": "mp4", ".flv": "flv"}.get(path.suffix, "")
    target: list[str | Path] = ["-f", container, "-"] if case.pipe else [first]
    out, _ = ffmpeg(*raw, *case.sound, *maps, *case.encode, "-pix_fmt", "yuv420p", *target, input=RAW)
    if case.pipe:
        first.write_bytes(out)
    if case.remux is not None:
        before = [str(first) if option == "SELF" else option for option in case.remux_before]
        ffmpeg(*before, "-i", first, "-c", "copy", *case.remux, path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_segment_holds_what_ffmpeg_shows(name: str, tmp_path: Path) -> None:
    path = make(CASES[name], tmp_path)
    assert_as_played(path, sound=bool(CASES[name].sound))


def test_ten_to_fifteen(tmp_path: Path) -> None:
    """In plain numbers: at 25 frames a second, cut by an edit list at 2.5 s, second 10 shows frame 312.5."""
    film = tmp_path / "long.mp4"
    raw = b"".join(picture_of(n).tobytes() for n in range(500))
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE}x{SIZE}", "-r", "25", "-i", "-", *X264, "-pix_fmt", "yuv420p",
           film, input=raw)  # fmt: skip
    cut = tmp_path / "cut.mp4"
    ffmpeg("-ss", "2.52", "-i", film, "-c", "copy", cut)
    frames = next(decode_segments(cut, [10.0], [15.0], num_frames=5, image_size=SIZE))
    assert [number_in(frame) for frame in frames] == [63 + int(25 * (10.5 + k)) for k in range(5)]
