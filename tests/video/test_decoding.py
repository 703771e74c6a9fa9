"""Which frame a sample time gets, on films whose frames carry their number, against a plain full decode."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from films import SIZE, Filmer, number_in, picture_of, write_film
from lvmae.video.decoding import VideoError, decode_segments, probe, thumbnails

EVEN = [40 * i for i in range(300)]  # 12 s at 25 frames/s
RNG = np.random.default_rng(7)
UNEVEN = np.cumsum(RNG.integers(5, 200, 200)).tolist()

H264 = {"crf": "20", "preset": "veryfast", "bf": "3", "b-pyramid": "normal", "b_strategy": "0"}


def expected(milliseconds: list[int], starts: np.ndarray, ends: np.ndarray, num_frames: int) -> list[list[int]]:
    """What a player shows: the last frame not later than the sample time, counted from the first frame."""
    shown = (np.asarray(milliseconds) - milliseconds[0]) / 1000
    offsets = (np.arange(num_frames) + 0.5) / num_frames
    times = starts[:, None] + offsets * (ends - starts)[:, None]
    return np.maximum(np.searchsorted(shown, times + 1e-6, side="right") - 1, 0).tolist()


def numbers(path: Path, starts: np.ndarray, ends: np.ndarray, num_frames: int, **options: bool) -> list[list[int]]:
    segments = decode_segments(path, starts, ends, num_frames=num_frames, image_size=32, **options)
    return [[number_in(frame) for frame in segment] for segment in segments]


FILMS = {
    "gop 250, B-frames": ("a.mp4", EVEN, H264 | {"g": "250"}, {}),
    "gop 25, B-frames": ("a.mp4", EVEN, H264 | {"g": "25"}, {}),
    "gop 25, no scene cuts, no B-frames": ("a.mp4", EVEN, {"g": "25", "bf": "0", "sc_threshold": "0"}, {}),
    "only key frames": ("a.mp4", EVEN, {"g": "1"}, {}),
    "open groups": ("a.mp4", EVEN, H264 | {"g": "25", "x264-params": "open-gop=1"}, {}),
    "variable frame rate": ("a.mp4", UNEVEN, H264 | {"g": "25"}, {}),
    "late start, Matroska": ("a.mkv", UNEVEN, H264 | {"g": "40"}, {"offset": 7000}),
    "late start, transport stream": ("a.ts", EVEN, H264 | {"g": "40"}, {"offset": 3000}),
    "HEVC": ("a.mp4", EVEN, {"g": "30", "preset": "ultrafast", "x265-params": "log-level=none"}, {"codec": "libx265"}),
    "VP9": ("a.webm", EVEN, {"g": "30", "deadline": "realtime", "cpu-used": "8"}, {"codec": "libvpx-vp9"}),
    "raw H.264, no time stamps": ("a.h264", EVEN, H264 | {"g": "25"}, {}),
    "MPEG-4 in AVI": ("a.avi", EVEN, {"g": "12", "qscale": "2"}, {"codec": "mpeg4"}),
}


@pytest.mark.parametrize("kind", FILMS)
def test_a_segment_holds_what_a_player_shows(film: Filmer, kind: str) -> None:
    name, times, options, more = FILMS[kind]
    path = film(name, times, options=options, **more)
    duration = probe(path).duration
    assert duration == pytest.approx((times[-1] + 40 - times[0]) / 1000, abs=0.2)
    starts = np.arange(0, duration - 1, 1.3)
    ends = np.minimum(starts + 1.3, duration)
    want = expected(times, starts, ends, 3)
    assert numbers(path, starts, ends, 3) == want
    assert numbers(path, starts, ends, 3, skip=False) == want


def test_every_frame_can_be_asked_for(film: Filmer) -> None:
    path = film("a.mp4", EVEN, options=H264 | {"g": "50"})
    assert numbers(path, np.array([0.0]), np.array([12.0]), 300) == [list(range(300))]


@pytest.fixture(scope="module")
def uneven_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "a.mp4", UNEVEN, options=H264 | {"g": "30"})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    starts=st.lists(st.floats(0, 15), min_size=1, max_size=8).map(sorted),
    length=st.floats(0.1, 6),
    num_frames=st.integers(1, 5),
)
def test_any_timeline_overlapping_or_not(
    uneven_film: Path, starts: list[float], length: float, num_frames: int
) -> None:
    begin = np.array(starts)
    end = np.minimum(begin + length, probe(uneven_film).duration)
    begin = np.minimum(begin, end)
    assert numbers(uneven_film, begin, end, num_frames) == expected(UNEVEN, begin, end, num_frames)


def test_real_films_skip_exactly(shared: Path) -> None:
    for path in sorted((shared / "videos").glob("*.mp4")):
        info = probe(path)
        starts = np.arange(0, info.duration - 2.5, 5)
        ends = np.append(starts[1:], info.duration)
        exact, quick = (
            np.stack(list(decode_segments(path, starts, ends, num_frames=4, image_size=96, skip=skip)))
            for skip in (False, True)
        )
        np.testing.assert_array_equal(quick, exact)
        assert len({frames.tobytes() for frames in exact}) == len(starts)


def test_pixels_are_those_of_the_scaler(film: Filmer) -> None:
    """Wide pictures lose their sides, not their middle; the resize is FFmpeg's bicubic of the whole frame."""

    def wide(number: int) -> np.ndarray:
        return np.pad(picture_of(number), ((0, 0), (SIZE, SIZE), (0, 0)))

    path = film("wide.mp4", EVEN[:50], pictures=wide, options={"crf": "10"})
    assert (probe(path).width, probe(path).height) == (3 * SIZE, SIZE)
    frames = next(decode_segments(path, [0.0], [2.0], num_frames=50, image_size=SIZE))
    assert frames.shape == (50, SIZE, SIZE, 3)
    for number, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - picture_of(number)).mean() < 6


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_metadata_is_applied(film: Filmer, rotation: int) -> None:
    """A phone's film: the picture is stored turned, the file says by how much to turn it back."""

    def tall(number: int) -> np.ndarray:
        return np.pad(picture_of(number), ((0, 32), (0, 0), (0, 0)))

    def stored(number: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(tall(number), -rotation // 90))

    path = film("turned.mp4", EVEN[:25], pictures=stored, rotation=rotation, options={"crf": "10"})
    info = probe(path)
    assert (info.width, info.height, info.rotation % 360) == (SIZE, SIZE + 32, rotation % 360)
    frames = next(decode_segments(path, [0.0], [1.0], num_frames=5, image_size=SIZE))
    for frame, number in zip(frames, (2, 7, 12, 17, 22), strict=True):
        assert np.abs(frame.astype(int) - tall(number)[16 : 16 + SIZE]).mean() < 6
    picture = Image.open(io.BytesIO(thumbnails(path, [0.5], height=48)[0]))
    assert picture.size == (32, 48)


def test_thumbnails_come_in_the_order_asked_for(film: Filmer) -> None:
    path = film("a.mp4", EVEN, options=H264 | {"g": "25"})
    pictures = thumbnails(path, [10.0, 0.02, 5.01, 5.01], height=SIZE)
    assert [number_in(np.asarray(Image.open(io.BytesIO(p)))) for p in pictures] == [250, 0, 125, 125]


# --- bad files ------------------------------------------------------------------------------------------------------------


def _sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_bad_files_have_reasons(tmp_path: Path, film: Filmer) -> None:
    good = film("good.mp4", EVEN, options=H264).read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("these are words, and no video at all\n" * 50)
    (tmp_path / "half.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere")
    _sound(tmp_path / "sound.mp4")
    for name, reason in {
        "empty": "is empty",
        "text": "not a video",
        "half": "index is missing",
        "link": "broken link",
        "sound": "no video, only audio",
    }.items():
        with pytest.raises(VideoError, match=reason):
            probe(tmp_path / f"{name}.mp4")


def test_a_truncated_file_gives_what_is_there_and_says_so(tmp_path: Path, film: Filmer) -> None:
    path = film("a.mp4", EVEN, options=H264 | {"g": "25", "crf": "5"}, container_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    starts = np.arange(12.0)
    for skip in (True, False):
        got: list[int] = []
        with pytest.raises(VideoError, match=r"truncated: it says it lasts 12.0 s, and ends after \d\.\d s") as caught:
            got.extend(
                number_in(f[0])
                for f in decode_segments(cut, starts, starts + 1, num_frames=1, image_size=32, skip=skip)
            )
        assert got == [12 + 25 * i for i in range(len(got))]
        assert len(got) >= 3
        assert caught.value.decoded_until == len(got)


def test_nothing_of_a_last_long_group_is_lost(tmp_path: Path, film: Filmer) -> None:
    """A transport stream that ends long before it is said to: all frames of the only group of pictures are given."""
    path = film("a.ts", EVEN[:200], options=H264 | {"g": "250", "sc_threshold": "0"})
    starts = np.arange(12.0)
    for skip in (True, False):
        got: list[int] = []
        with pytest.raises(VideoError, match=r"says it lasts 12.0 s, and ends after 8.0 s") as caught:
            got.extend(
                number_in(f[0])
                for f in decode_segments(path, starts, starts + 1, num_frames=1, image_size=32, skip=skip)
            )
        assert got == [12 + 25 * i for i in range(8)]
        assert caught.value.decoded_until == 8.0
