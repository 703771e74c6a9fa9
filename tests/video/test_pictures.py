"""What is shown is what a player shows: mirrored and turned pictures, pixels whose shape changes, edits, stamps that come twice."""

from __future__ import annotations

import gc
import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

pytest.importorskip("imageio_ffmpeg", reason="its ffmpeg makes and reads the films")

from films import SIZE, number_in
from lvmae.video.decoding import decode_segments, probe, small_frames, still_picture, thumbnails
from played import MPEG2, X264, assert_as_played, edited, ffmpeg, film_of, joined

COLOURS = np.kron(
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8), np.ones((32, 48, 1), np.uint8)
)


@pytest.mark.parametrize(
    "mirror", [[], ["-display_hflip"], ["-display_vflip"], ["-display_hflip", "-display_vflip"]], ids=str
)
@pytest.mark.parametrize("turn", ["0", "90", "180", "-90"])
def test_turned_and_mirrored(turn: str, mirror: list[str], tmp_path: Path) -> None:
    """All eight ways to hold a camera, and a front camera."""
    base, path = tmp_path / "base.mp4", tmp_path / "held.mp4"
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-framerate", "25", "-i", "-", *X264, "-pix_fmt", "yuv420p", base,
           input=COLOURS.tobytes() * 25)  # fmt: skip
    ffmpeg("-display_rotation", turn, *mirror, "-i", base, "-c", "copy", path)
    raw, _ = ffmpeg("-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    info = probe(path)
    shown = np.frombuffer(raw, np.uint8).reshape(info.height, info.width, 3).astype(int)
    assert (info.width, info.height) == ((64, 96) if turn in ("90", "-90") else (96, 64))
    _, whole = next(small_frames(path, info.height, 0, 1))
    assert np.abs(whole[..., ::-1] - shown).mean() < 3
    top, left = (info.height - 64) // 2, (info.width - 64) // 2
    square = next(decode_segments(path, [0.0], [1.0], num_frames=1, image_size=64))[0]
    assert np.abs(square - shown[top : top + 64, left : left + 64]).mean() < 3


@pytest.mark.parametrize("codec", [MPEG2, X264], ids=["MPEG-2", "H.264"])
def test_pixels_that_change_their_shape(codec: list[str], tmp_path: Path) -> None:
    """As broadcasts do between wide and narrow programmes: each frame is as wide as its own pixels say."""
    wide = film_of(tmp_path / "wide.ts", 0, 60, "-vf", "setsar=16/9", codec=codec)
    narrow = film_of(tmp_path / "narrow.ts", 60, 60, "-vf", "setsar=4/3", codec=codec)
    path = joined(tmp_path / "both.ts", wide, narrow)
    widths = [picture.shape[1] for _, picture in small_frames(path, SIZE, 0, 9)]
    assert widths == [round(SIZE * 16 / 9)] * 60 + [round(SIZE * 4 / 3)] * 60
    sizes = [Image.open(io.BytesIO(jpeg)).size for jpeg in thumbnails(path, [0.1, 2.37, 2.41, 4.7], height=SIZE)]
    assert sizes == [(114, SIZE), (114, SIZE), (85, SIZE), (85, SIZE)]


@pytest.mark.parametrize("bframes", ["0", "3"])
@pytest.mark.parametrize(
    "pieces",
    [
        [(3.3, 4.1), (10.02, 5)],
        [(10.02, 5), (3.3, 4.1)],
        [(None, 1.5), (3.3, 4.1), (10.02, 5)],
        [(0.5, 2.2), (2.1, 2.2), (1.1, 2.2)],
        [(3.3, 1), (4.5, 1), (5.7, 1), (6.9, 1), (8.1, 1)],
    ],
    ids=str,
)
def test_several_edits(pieces: list[tuple[float | None, float]], bframes: str, tmp_path: Path) -> None:
    """Pieces that begin between key frames, out of order or overlapping."""
    film = film_of(tmp_path / "film.mp4", 0, 400, "-bf", bframes)
    _, numbers = assert_as_played(edited(film, tmp_path / "cut.mp4", pieces))
    assert len(numbers) == pytest.approx(25 * sum(length for start, length in pieces if start is not None), abs=2)


def test_edits_are_sought_over(tmp_path: Path) -> None:
    film = film_of(tmp_path / "film.mp4", 0, 2000)
    path = edited(film, tmp_path / "cut.mp4", [(42.5, 30.0), (3.3, 30.0)])
    for at in ([20.0], [2.0, 25.0], [40.0], [1.0, 31.0, 58.0]):
        starts = np.array(at)
        found = [
            decode_segments(path, starts, starts + 1, num_frames=4, image_size=SIZE, skip=skip)
            for skip in (True, False)
        ]
        fast, full = ([[number_in(frame) for frame in segment] for segment in segments] for segments in found)
        assert fast == full
        assert fast[0][0] == pytest.approx(25 * (at[0] + 42.5) + 3 if at[0] < 30 else 25 * (at[0] - 26.7) + 3, abs=1)


@pytest.mark.parametrize(
    ("transfer", "codes", "seen"),
    [
        ("smpte2084", (0.44, 0.58, 0.75), (135, 253, 255)),  # 50, 203 and 1,000 cd/m2
        ("arib-std-b67", (0.19, 0.46, 0.75), (53, 131, 254)),
        ("bt709", (0.2, 0.5, 0.75), (51, 127, 191)),
    ],
)
def test_hdr_is_brought_to_the_brightness_of_other_films(
    transfer: str, codes: tuple[float, ...], seen: tuple[int, ...], tmp_path: Path
) -> None:
    primaries, space = ("bt709", "bt709") if transfer == "bt709" else ("bt2020", "bt2020nc")
    luma = np.repeat((64 + 876 * np.array(codes)).astype(np.uint16), 32)[None].repeat(64, axis=0)
    chroma = np.full(luma.size // 2, 512, np.uint16)
    path = tmp_path / "hdr.mkv"
    tags = ["-color_trc", transfer, "-color_primaries", primaries, "-colorspace", space, "-color_range", "tv"]
    given = ["-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", "96x64", "-framerate", "25", *tags]
    ffmpeg(*given, "-i", "-", "-c:v", "ffv1", *tags, path, input=(luma.tobytes() + chroma.tobytes()) * 25)
    frame = next(decode_segments(path, [0.0], [1.0], num_frames=1, image_size=64, framing="stretch"))[0]
    assert frame[32, [10, 32, 53]].mean(axis=-1) == pytest.approx(seen, abs=8)


def test_two_frames_of_one_time_stamp(tmp_path: Path) -> None:
    """A player shows the last that is not later, and so do the fast path and the full decode."""
    path = tmp_path / "twice.mkv"
    with av.open(str(film_of(tmp_path / "film.mkv", 0, 100, "-bf", "0"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.size:
                if number in (30, 57):
                    packet.pts = packet.dts = packet.pts - 40
                packet.stream = stream
                target.mux(packet)
    times = np.arange(100) * 0.04
    for skip in (True, False):
        segments = decode_segments(path, times, times + 0.04, num_frames=1, image_size=SIZE, skip=skip)
        expected = [{29: 30, 56: 57}.get(number, number) for number in range(100)]
        assert [number_in(segment[0]) for segment in segments] == expected


def test_a_colour_profile_with_a_name_is_freed_once(tmp_path: Path) -> None:
    """PNG files name their profile; looking at the side data of such a frame ended the process at the next collection."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "profile.png"
    Image.fromarray(np.full((40, 60, 3), (10, 120, 240), np.uint8)).save(path, icc_profile=profile)
    for _ in range(20):
        picture = still_picture(path, 32)
        gc.collect()
    assert np.abs(picture.astype(int) - (10, 120, 240)).max() <= 1
