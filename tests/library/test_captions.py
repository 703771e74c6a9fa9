"""Caption files and their alignment: literal values, and one clear sentence for what cannot be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmae.errors import InputError
from lvmae.library.captions import Caption, align, captions_by_video, load_captions, parse_time
from lvmae.store import VideoRecord

ROWS = [Caption("a", 0.0, 5.0, "a cat sleeps"), Caption("b", 62.5, 3725.25, "rain")]


def record(*edges: float) -> VideoRecord:
    """A video whose segments lie between consecutive edges."""
    starts, ends = np.array(edges[:-1]), np.array(edges[1:])
    return VideoRecord("a", "", float(edges[-1]), starts, ends, np.zeros((len(starts), 2), np.float16))


def said(*captions: tuple[float, float, str]) -> list[Caption]:
    return [Caption("a", *caption) for caption in captions]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("12.5", 12.5), (7, 7.0), ("1:02.5", 62.5), ("01:02:03,250", 3723.25), ("0:00:00", 0.0), ("90:00", 5400.0)],
)
def test_times(written: object, seconds: float) -> None:
    assert parse_time(written) == seconds


@pytest.mark.parametrize("written", ["", "x", "-1", "nan", "inf", "1:60", "1:60:00", None, True, "1:2:3:4"])
def test_no_times(written: object) -> None:
    with pytest.raises(ValueError):
        parse_time(written)


def write_table(folder: Path, suffix: str) -> Path:
    path = folder / f"captions{suffix}"
    rows = [("a", "0", "5", "a cat sleeps"), ("b", "1:02.5", "1:02:05.25", "rain")]
    if suffix == ".parquet":
        pq.write_table(
            pa.table(dict(zip(("video", "start", "end", "text"), zip(*rows, strict=True), strict=True))), path
        )
    elif suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(("video", "start", "end", "text"), r, strict=True))) + "\n" for r in rows)
        )
    else:
        split = "\t" if suffix == ".tsv" else ","
        lines = [split.join(("extra", "video", "start", "end", "text"))] + [split.join(("-", *row)) for row in rows]
        path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_table_gives_the_same_captions(tmp_path: Path, suffix: str) -> None:
    assert load_captions(write_table(tmp_path, suffix)) == ROWS


def test_csv_with_quoted_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('video,start,end,text\na,0,1,"one,\ntwo"\n', encoding="utf-8")
    assert load_captions(path) == said((0, 1, "one, two"))


def test_srt(tmp_path: Path) -> None:
    path = tmp_path / "film.srt"
    path.write_bytes(
        "\ufeff1\r\n00:00:01,000 --> 00:00:02,500 X1:40\r\n{\\an8}<i>Hello</i> &amp;\r\nbye\r\n\r\n"
        "2\r\n00:01:00,000 --> 00:01:01,000\r\n\r\n3\r\n01:00:00,000 --> 01:00:01,000\r\nend\r\n".encode()
    )
    assert load_captions(path) == [Caption("film", 1.0, 2.5, "Hello & bye"), Caption("film", 3600.0, 3601.0, "end")]


def test_a_folder_of_subtitles_is_named_by_video(tmp_path: Path) -> None:
    (tmp_path / "season").mkdir()
    (tmp_path / "season" / "one.vtt").write_text(
        "WEBVTT - title\nKind: captions\n\nNOTE not --> a cue\n\nSTYLE\n::cue {}\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start\n<v Ann><c.loud>Look</c>\n\n1:00:02.000 --> 1:00:03.000\nthere\n",
        encoding="utf-8",
    )
    (tmp_path / "two.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhi\n", encoding="utf-8")
    assert load_captions(tmp_path) == [
        Caption("season/one", 1.0, 2.0, "Look"),
        Caption("season/one", 3602.0, 3603.0, "there"),
        Caption("two", 0.0, 1.0, "hi"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.csv", "", "holds no captions"),
        ("c.csv", "video,start,end,text\n", "holds no captions"),
        ("c.csv", "video,start,text\na,0,x\n", "no column 'end'"),
        ("c.csv", "video,start,end,text\na,0,5,x\na,0,,y\n", "line 3: start '0' and end ''"),
        ("c.csv", "video,start,end,text\na,5,5,x\n", "ends at 5 s, which is not after"),
        ("c.csv", "video,start,end,text\na,0,5,\n", "column 'text' is empty"),
        ("c.csv", "video,start,end,text\n,0,5,x\n", "column 'video' is empty"),
        ("c.csv", b"video,start,end,text\na,0,5,\xff\xfe\n", "not UTF-8"),
        ("c.jsonl", '{"video": "a"\n', "line 1: this is no JSON"),
        ("c.jsonl", "\n[1]\n", "line 2: each line must be an object"),
        ("c.parquet", "no", "cannot be read as Parquet"),
        ("c.srt", "1\n00:00:01 -> 00:00:02\nx\n", "line 1: expected a subtitle's times"),
        ("c.srt", "1\n00:00:01,000 -->\nx\n", "line 2: these are no times"),
        ("c.txt", "x", "is no caption file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(says)) as raised:
        load_captions(path)
    assert "\n" not in str(raised.value)


def test_no_file_and_a_folder_without_subtitles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no captions at"):
        load_captions(tmp_path / "none.csv")
    with pytest.raises(InputError, match="holds no subtitles"):
        load_captions(tmp_path)


def test_unknown_videos_are_named() -> None:
    assert list(captions_by_video(ROWS, ["b", "a", "c"])) == ["a", "b"]
    with pytest.raises(InputError, match=r"1 of 2 videos .*first is 'b'.*look like 'a.mp4'") as raised:
        captions_by_video(ROWS, ["a.mp4", "a"])
    assert "\n" not in str(raised.value)


def test_align_by_largest_overlap() -> None:
    texts = align(
        said(
            (0, 20, "scene"),
            (1, 2, "short"),
            (3, 8, "two thirds in the second"),
            (4, 6, "half and half"),
            (30, 40, "late"),
        ),
        record(0, 5, 10, 15, 20),
    )
    assert texts == [
        ["scene", "short", "half and half"],
        ["scene", "two thirds in the second", "half and half"],
        ["scene"],
        ["scene"],
    ]


def test_align_gives_a_caption_that_fits_nowhere_to_its_largest_share() -> None:
    # 1.5 and 1 of its 4.5 seconds lie in segments of 8: less than half of either.
    video = VideoRecord("a", "", 20.0, np.array([0.0, 10.0]), np.array([8.0, 18.0]), np.zeros((2, 2), np.float16))
    assert align(said((6.5, 11.0, "long")), video) == [["long"], []]


def test_align_repeats_no_text_and_takes_no_captions() -> None:
    assert align(said((0, 2, "x"), (2, 5, "x"), (1, 4, "y")), record(0, 5)) == [["x", "y"]]
    assert align([], record(0, 5, 10)) == [[], []]


@given(st.floats(0, 99), st.floats(0.01, 50), st.integers(1, 20))
def test_the_segment_that_shares_most_has_the_caption(start: float, seconds: float, segments: int) -> None:
    edges = np.linspace(0, 100, segments + 1)
    texts = align(said((start, start + seconds, "x")), record(*edges))
    shared = np.minimum(start + seconds, edges[1:]) - np.maximum(start, edges[:-1])
    assert texts[int(shared.argmax())] == ["x"]
