"""Clocks that start again, jump, wrap or began long ago: time continues as in ffmpeg, or the file says why it cannot."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

pytest.importorskip("imageio_ffmpeg", reason="its ffmpeg makes and reads the films")

from lvmae.video.decoding import decode_segments, probe
from lvmae.video.errors import VideoError
from played import MPEG2, X264, assert_as_played, ffmpeg, film_of, joined

THEORA = ["-c:v", "libtheora", "-q:v", "8"]
FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"


@pytest.mark.parametrize(
    ("suffix", "codec", "offsets", "sound"),
    [
        ("ts", X264, (0, 0), 0),
        ("ts", X264, (0, 0), 6.4),
        ("m2ts", MPEG2, (0, 0), 6),
        ("mpg", MPEG2, (0, 0), 0),
        ("vob", MPEG2, (50, 0), 0),
        ("ogv", THEORA, (0, 0), 0),
        ("ts", X264, (0, 20_000), 0),
        ("mpg", MPEG2, (0, 20_000), 0),
        ("mpg", MPEG2, (0, 100_000), 0),
        ("ts", X264, (0, 9), 0),  # under 10 s it is a gap, and stays one
        ("ts", MPEG2, (20_000, 3), 0),
        ("ts", X264, (95_440, 0), 0),  # the clock of 33 bits is over at 95,443.7 s
        ("ts", X264, (95_440, 70_000, 8), 0),
    ],
)
def test_recordings_joined_with_cat(
    suffix: str, codec: list[str], offsets: tuple[int, ...], sound: float, tmp_path: Path
) -> None:
    parts = [
        film_of(tmp_path / f"{k}.{suffix}", 150 * k, 150, "-output_ts_offset", str(offset), codec=codec, sound=sound)
        for k, offset in enumerate(offsets)
    ]
    times, numbers = assert_as_played(joined(tmp_path / f"all.{suffix}", *parts), sound=bool(sound))
    assert numbers[-1] == 150 * len(parts) - 1
    assert times[-1] < 6 * len(parts) + 10


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_a_clock_that_wraps(suffix: str, tmp_path: Path) -> None:
    """After 26.5 hours; the film has 300 frames, and the wrap comes in its middle."""
    codec = X264 if suffix == "ts" else MPEG2
    path = film_of(tmp_path / f"a.{suffix}", 0, 300, "-output_ts_offset", "95436", codec=codec)
    times, _ = assert_as_played(path)
    assert times[-1] == pytest.approx(11.96)


@pytest.mark.parametrize(
    ("suffix", "options"), [("mkv", []), ("mp4", ["-movflags", FRAGMENTS]), ("mkv", ["-g", "250"])]
)
def test_a_clock_that_must_not_go_back(suffix: str, options: list[str], tmp_path: Path) -> None:
    """ffmpeg shows the second half at the times of the first; no store can hold that."""
    parts = [film_of(tmp_path / f"{k}.{suffix}", 150 * k, 150, *options) for k in range(2)]
    path = joined(tmp_path / f"all.{suffix}", *parts)
    with pytest.raises(VideoError, match=r"its clock goes back from [56].* join them with ffmpeg"):
        probe(path)
    with pytest.raises(VideoError, match="its clock goes back"):
        list(decode_segments(path, [0.0, 5.5], [5.5, 11.0], num_frames=4, image_size=32, skip=False))


def test_a_duration_that_is_less_than_the_film(tmp_path: Path) -> None:
    whole = film_of(tmp_path / "a.mkv", 0, 300).read_bytes()
    stale = tmp_path / "stale.mkv"
    assert whole.count(b"00:00:12.000000000") == 1
    stale.write_bytes(whole.replace(b"00:00:12.000000000", b"00:00:05.000000000"))
    assert_as_played(stale)
    assert probe(stale).duration == pytest.approx(12.0)
    more = tmp_path / "more.mkv"  # and one that is more is a film whose end is missing
    more.write_bytes(whole.replace(b"00:00:12.000000000", b"00:00:15.000000000"))
    assert probe(more).duration == pytest.approx(15.0)
    with pytest.raises(VideoError, match=r"it says it lasts 15.0 s, and ends after 12.0 s"):
        list(decode_segments(more, [0.0], [15.0], num_frames=2, image_size=32))


@pytest.mark.parametrize("began", [7200, 1_700_000_000], ids=["hours ago", "in 1970"])
def test_fragments_of_a_stream_that_has_run_for_long(began: int, tmp_path: Path) -> None:
    live = bytearray(film_of(tmp_path / "a.mp4", 0, 300, "-movflags", FRAGMENTS).read_bytes())
    place = live.find(b"tfdt")
    while place > 0:
        then = struct.unpack(">Q", live[place + 8 : place + 16])[0] + began * 12800
        live[place + 8 : place + 16] = struct.pack(">Q", then)
        place = live.find(b"tfdt", place + 4)
    path = tmp_path / "live.mp4"
    path.write_bytes(live)
    assert_as_played(path)
    assert probe(path).duration == pytest.approx(12.0)


def test_the_later_fragments_of_a_stream(tmp_path: Path) -> None:
    ffmpeg("-i", film_of(tmp_path / "a.mp4", 0, 500), "-c:v", "libx264", "-g", "50", "-f", "dash", "-seg_duration", "2",
           "-init_seg_name", "init.mp4", "-media_seg_name", "s$Number$.m4s", tmp_path / "m.mpd")  # fmt: skip
    parts = sorted(tmp_path.glob("s*.m4s"), key=lambda part: int(part.stem[1:]))
    assert len(parts) == 10
    times, numbers = assert_as_played(joined(tmp_path / "late.mp4", tmp_path / "init.mp4", *parts[4:]))
    assert (len(times), numbers[0], numbers[-1]) == (300, 200, 499)


def test_fragments_that_break_off_are_truncated(tmp_path: Path) -> None:
    whole = film_of(tmp_path / "a.mp4", 0, 500, "-movflags", "dash+global_sidx").read_bytes()
    path = tmp_path / "part.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    declared = probe(path).duration
    assert declared == pytest.approx(20.0, abs=0.2)  # an index says so
    with pytest.raises(VideoError, match="truncated"):
        list(decode_segments(path, [0.0], [declared], num_frames=2, image_size=32))
