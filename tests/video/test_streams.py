"""Which of several streams is the film: the one that ffmpeg plays, wherever it stands in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("imageio_ffmpeg", reason="its ffmpeg makes and reads the films")

from lvmae.video.decoding import probe
from lvmae.video.errors import VideoError
from played import assert_as_played, ffmpeg, film_of

DEFAULTS = {"film": ["0", "default"], "preview": ["default", "0"], "both": ["default", "default"], "none": ["0", "0"]}


@pytest.mark.parametrize("suffix", ["mkv", "mov", "ts", "mp4"])
@pytest.mark.parametrize(
    ("default", "sizes"), [("film", (128, 64)), ("none", (64, 128)), ("both", (64, 128)), ("preview", (64, 128))]
)
def test_previews_and_films(suffix: str, default: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    """The first has 1,000 and more; which of the two it should be depends on flags and sizes, and ffmpeg knows."""
    preview = film_of(tmp_path / "preview.mp4", 1000, 100, size=sizes[0])
    film = film_of(tmp_path / "film.mp4", 0, 200, size=sizes[1])
    path = tmp_path / f"two.{suffix}"
    flags = [option for k in (0, 1) for option in (f"-disposition:v:{k}", DEFAULTS[default][k])]
    ffmpeg("-i", preview, "-i", film, "-map", "0", "-map", "1", "-c", "copy", *flags, path)
    times, numbers = assert_as_played(path)
    if default == "film" and suffix != "ts":  # transport streams have no such flag, and the larger one is played
        assert (len(times), numbers[0]) == (200, 0)


def test_a_still_picture_before_the_film(tmp_path: Path) -> None:
    still = tmp_path / "still.mjpeg"
    ffmpeg("-i", film_of(tmp_path / "one.mp4", 5000, 3, size=128), "-frames:v", "1", still)
    film = film_of(tmp_path / "film.mp4", 0, 200)
    for suffix in ("mkv", "mov"):
        path = tmp_path / f"all.{suffix}"
        flags = ["-disposition:v:0", "0", "-disposition:v:1", "default"]
        ffmpeg("-i", still, "-i", film, "-map", "0", "-map", "1", "-c", "copy", *flags, path)
        _, numbers = assert_as_played(path)
        assert numbers.tolist() == list(range(200))


def test_a_programme_that_never_comes(tmp_path: Path) -> None:
    """Announced as the first stream of a broadcast, and not one packet of it is sent."""
    first, film = film_of(tmp_path / "a.mp4", 1000, 100, size=256), film_of(tmp_path / "b.mp4", 0, 200)
    both = tmp_path / "both.ts"
    ffmpeg("-i", first, "-i", film, "-map", "0", "-map", "1", "-c", "copy", both)
    data = both.read_bytes()
    cells = [data[i : i + 188] for i in range(0, len(data), 188)]
    path = tmp_path / "dead.ts"
    path.write_bytes(b"".join(cell for cell in cells if (cell[1] & 31) << 8 | cell[2] != 0x100))
    assert probe(path).width == 64
    _, numbers = assert_as_played(path)
    assert numbers.tolist() == list(range(200))


def test_a_cover_alone_is_no_film(tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.png", tmp_path / "song.mp3"
    ffmpeg("-i", film_of(tmp_path / "one.mp4", 1, 3), "-frames:v", "1", cover)
    flags = ["-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic"]
    ffmpeg("-f", "lavfi", "-i", "sine=duration=2", "-i", cover, *flags, song)
    with pytest.raises(VideoError, match="no video, only a cover picture and audio"):
        probe(song)
