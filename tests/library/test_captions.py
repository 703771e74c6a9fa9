"""Caption files and their alignment: literal values, and one clear sentence for what cannot be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
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


def test_captions_of_other_videos_are_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert list(captions_by_video(ROWS, ["b", "a", "c"])) == ["a", "b"]
    assert list(captions_by_video(ROWS, ["a.mp4", "a"])) == ["a"]
    assert "captions of 1 of 2 videos that are not in the store ('b') are left out" in caplog.text
    with pytest.raises(InputError, match=r"2 of 2 videos .*\('a', 'b'\).*look like 'a.mp4'") as raised:
        captions_by_video(ROWS, ["a.mp4"])
    assert "\n" not in str(raised.value)


def test_subtitles_of_a_language_belong_to_the_film(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("movie.de", "movie.en", "talk.en-US.forced", "show.en", "show", "x.zh-Hans", "part.two", "none.en"):
        (tmp_path / f"{name}.srt").write_text(f"1\n00:00:00,000 --> 00:00:01,000\n{name}\n")
    ids = ["movie", "talk", "show", "show.en", "x", "part.two", "part"]
    found = captions_by_video(load_captions(tmp_path), ids)
    texts = {video: [caption.text for caption in of] for video, of in found.items()}
    assert texts == {
        "movie": ["movie.en"],
        "talk": ["talk.en-US.forced"],
        "show": ["show"],
        "show.en": ["show.en"],
        "x": ["x.zh-Hans"],
        "part.two": ["part.two"],
    }
    assert all(caption.video == video for video, of in found.items() for caption in of)
    assert "the captions movie.de are left out: movie has others" in caplog.text
    assert "('none.en')" in caplog.text


def test_what_youtube_and_editors_write(tmp_path: Path) -> None:
    (tmp_path / "youtube.vtt").write_text(
        "WEBVTT\nKind: captions\nLanguage: en\n\n00:00:00.000 --> 00:00:02.000 align:start position:0%\n \n"
        "hello<00:00:00.500><c> there</c>\n\n00:00:02.000 --> 00:00:02.010 align:start position:0%\nhello there\n \n\n"
        "00:00:02.010 --> 00:00:04.000 align:start position:0%\nhello there\nmy<00:00:02.500><c> friend</c>\n"
    )
    (tmp_path / "close.vtt").write_text(
        "WEBVTT\n\n1\n00:01.250 --> 00:02.000\ncount\n7\n2\n00:02.000 --> 00:03.5\nYear\n1984\n"
    )
    (tmp_path / "blank.srt").write_text(
        "1\n00:00:01,000 --> 00:00:04,000\nFirst line\n\nsecond line\n\n2\n00:00:05,000 --> 00:00:08,000\nNext\n\n1984\n"
    )
    (tmp_path / "close.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,000\nHello\n2\n00:00:03.000 --> 00:00:04,000\nThere\n0:0:5,0 --> 0:0:6,5\nBye\n"
    )
    found = {
        path.name: [(caption.start, caption.end, caption.text) for caption in load_captions(path)]
        for path in tmp_path.iterdir()
    }
    assert found == {
        "youtube.vtt": [(0.0, 2.0, "hello there"), (2.0, 2.01, "hello there"), (2.01, 4.0, "hello there my friend")],
        "close.vtt": [(1.25, 2.0, "count 7"), (2.0, 3.5, "Year 1984")],
        "blank.srt": [(1.0, 4.0, "First line second line"), (5.0, 8.0, "Next 1984")],
        "close.srt": [(1.0, 2.0, "Hello"), (3.0, 4.0, "There"), (5.0, 6.5, "Bye")],
    }


@settings(max_examples=50, deadline=None)
@given(
    cues=st.lists(
        st.tuples(st.integers(0, 10**7), st.integers(1, 10**5), st.text("abc 0189.,!?äß", min_size=1).filter(lambda t: t.strip())),
        min_size=1, max_size=8,
    ),
    suffix=st.sampled_from(["srt", "vtt"]), gap=st.sampled_from(["\n", ""]),
)  # fmt: skip
def test_every_cue_comes_back(
    tmp_path_factory: pytest.TempPathFactory, cues: list[tuple[int, int, str]], suffix: str, gap: str
) -> None:
    """Whatever the times, the texts and the empty lines."""
    mark = "," if suffix == "srt" else "."

    def clock(t: int) -> str:
        return f"{t // 3600000:02d}:{t // 60000 % 60:02d}:{t // 1000 % 60:02d}{mark}{t % 1000:03d}"

    blocks = [f"{n}\n{clock(s)} --> {clock(s + d)}\n{text}\n{gap}" for n, (s, d, text) in enumerate(cues, start=1)]
    path = tmp_path_factory.mktemp("c") / f"a.{suffix}"
    path.write_text(("WEBVTT\n\n" if suffix == "vtt" else "") + "".join(blocks), encoding="utf-8")
    expected = [(s / 1000, (s + d) / 1000, " ".join(text.split())) for s, d, text in cues]
    assert [(round(c.start, 3), round(c.end, 3), c.text) for c in load_captions(path)] == expected


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
