"""What is to be embedded, and under which id."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from lvmae.embedding import find_videos
from lvmae.embedding.sources import VideoFile, search_videos, share_of
from lvmae.errors import InputError
from lvmae.files.identity import identity_of
from lvmae.files.tables import write_parquet_rows
from lvmae.store import StoredSource, StoredSources


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/x.MKV", "a/x.mp4", "a/y.webm", "notes.txt", ".hidden.mp4", "a.b.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {v.id: v.path for v in find_videos(tmp_path)}
    assert list(found) == ["a/x.MKV", "a/x.mp4", "a/y", "a.b", "b"]
    assert found["a/x.MKV"] == str(tmp_path / "a/x.MKV")
    assert [v.id for v in find_videos([tmp_path / "b.mp4", str(tmp_path / "a")])] == ["b", "x.MKV", "x.mp4", "y"]
    assert [v.id for v in find_videos(tmp_path / "notes.txt")] == ["notes"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="There is no video in"):
        find_videos(tmp_path / "none")
    with pytest.raises(InputError, match="no file or folder"):
        find_videos(tmp_path / "missing")


def ids(*inputs: Path | str, stored: StoredSources | None = None) -> list[str]:
    return [video.id for video in find_videos(list(inputs), stored)]


def test_an_id_does_not_depend_on_what_else_is_asked_for(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "a/x.MKV", "a/y.mp4", "b/x.mp4", "b/y.mp4", "c/b/y.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    a, b = tmp_path / "a", tmp_path / "b"
    assert ids(a / "x.mp4") == ["x.mp4"]  # beside it is x.MKV
    assert ids(b / "x.mp4") == ["x"]
    assert ids(a) == ["x.MKV", "x.mp4", "y"]
    assert sorted(ids(a, b)) == sorted(ids(b, a)) == ["a/y", "b/y", "x", "x.MKV", "x.mp4"]
    assert ids(b, tmp_path / "c/b") == ["x", f"{tmp_path.name}/b/y", "c/b/y"]
    assert ids(a / "y.mp4", a, tmp_path) == ["y", "x.MKV", "x.mp4", "b/x", "b/y", "c/b/y"]  # each file once
    film = write_table(tmp_path / "m.csv", "path,id\na/y.mp4,mine\n")
    assert ids(film, a) == ids(film, a / "y.mp4", a) == ["mine", "x.MKV", "x.mp4"]


def test_what_a_store_has_keeps_its_id(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "b/x.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    a, b = tmp_path / "a/x.mp4", tmp_path / "b/x.mp4"
    stored = StoredSources({"x": StoredSource(str(a), identity_of(a))})
    assert ids(tmp_path, stored=stored) == ["x", "b/x"]
    assert ids(b, stored=stored) == ["b/x"]
    (tmp_path / "a/x.mkv").touch()
    assert ids(tmp_path / "a", stored=stored) == ["x.mkv", "x"]
    table = write_table(tmp_path / "m.csv", "path,id\nb/x.mp4,x\n")
    with pytest.raises(InputError, match=r"gives the id 'x' to .*b/x.mp4, and in the store it is that of .*a/x.mp4"):
        find_videos(table, stored)
    clips = write_table(tmp_path / "c.csv", "path,start,end\na/x.mp4,1,2\n")
    assert ids(clips, stored=stored) == ["a/x.mp4@1-2"]
    older = StoredSources({"x": StoredSource(str(a))})  # from before the content was noted
    assert ids(b, stored=older) == ["b/x"]
    a.unlink()
    assert ids(b, stored=older) == ["x"]  # it was moved
    assert ids(b, stored=stored) == ["b/x"]  # it was not: the content is another


def test_every_file_that_can_be_a_video_is_found(tmp_path: Path) -> None:
    names = "a.m2t b.MOD c.vro d.3g2 e.qt f.m2v g.dv h.wtv i.rm j.rmvb k.h264 l.dav m.265 n.y4m"
    found = names.split()
    for name in [*found, "notes.txt", "cover.jpg", "cover.JPG", ".hidden.mp4", "numbers.dat", "song.ogg", "README"]:
        (tmp_path / name).touch()
    (tmp_path / "vcd.dat").write_bytes(b"RIFF\0\0\0\0CDXAfmt ")
    (tmp_path / "clip.ogg").write_bytes(b"OggS" + bytes(24) + b"\x80theora")
    search = search_videos(tmp_path)
    assert {Path(video.path).name for video in search.videos} == {*found, "vcd.dat", "clip.ogg"}
    assert search.left_out.startswith("7 files that are no videos: 2 .jpg, ")
    for part in ("1 .txt", "1 hidden", "1 .dat", "1 .ogg", "1 without suffix"):
        assert part in search.left_out


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    (tmp_path / "in/real").mkdir(parents=True)
    (tmp_path / "out/deep").mkdir(parents=True)
    for name in ("in/real/a.mp4", "out/b.mp4", "out/deep/c.mp4"):
        (tmp_path / name).touch()
    for name, target in (("in/1", "out"), ("in/2", "out"), ("in/0", "in/real"), ("out/back", "in"), ("in/up", ".")):
        (tmp_path / name).symlink_to(tmp_path / target)
    (tmp_path / "in/circle").symlink_to(tmp_path / "in/circle")
    assert ids(tmp_path / "in") == ["1/b", "1/deep/c", "real/a"]


def test_signed_urls_are_files(tmp_path: Path) -> None:
    url = "https://host/films/film.mp4?X-Amz-Signature=abc&X-Amz-Expires=9"
    (video,) = find_videos(url)
    assert (video.id, video.path) == ("film", url)
    table = write_table(tmp_path / "m.csv", f"path\n{url}\nhttps://me:word@host/other/film.mp4?v=2\n")
    assert ids(table) == ["films/film", "other/film"]
    stored = StoredSources({"film": StoredSource("https://host/films/film.mp4")})
    assert ids(table, stored=stored) == ["film", "other/film"]


# --- manifests ------------------------------------------------------------------------------------------------------------


def write_table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_manifest_names_videos_and_clips(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "clips.csv",
        "path,id,start,end,label\n"
        "a/one.mp4,first,2.5,10,cook\n"
        "a/one.mp4,,10,12.5,cook\n"
        "a/one.mp4,,60,,\n"
        "./b/one.mkv,,,,\n"
        "/films/whole.mp4,,,,\n"
        "s3://bucket/films/far.mp4,far,,,\n",
    )
    found = [(v.id, v.path, v.start, v.end) for v in find_videos(table)]
    here = str(tmp_path)
    assert found == [
        ("first", f"{here}/a/one.mp4", 2.5, 10.0),
        ("a/one@10-12.5", f"{here}/a/one.mp4", 10.0, 12.5),
        ("a/one@60-", f"{here}/a/one.mp4", 60.0, None),
        ("b/one", f"{here}/b/one.mkv", None, None),
        ("whole", "/films/whole.mp4", None, None),
        ("far", "s3://bucket/films/far.mp4", None, None),
    ]


def test_manifests_of_every_kind_say_the_same(tmp_path: Path) -> None:
    rows = [("x.mp4", "one", 0.0, 4.0), ("ü y.mp4", "two", 4.0, None)]
    text = [["path", "id", "start", "end"], *[["" if v is None else str(v) for v in row] for row in rows]]
    write_table(
        tmp_path / "m.csv", "\ufeff" + "\r\n".join(",".join(line) for line in text)
    )  # as a spreadsheet saves it
    write_table(tmp_path / "m.tsv", "\n".join("\t".join(line) for line in text))
    columns = {"path": str, "id": str, "start": float, "end": float}
    write_parquet_rows(tmp_path / "m.parquet", [dict(zip(columns, row, strict=True)) for row in rows], columns)
    videos = find_videos(tmp_path / "m.csv")
    assert [(v.id, v.start, v.end) for v in videos] == [("one", 0.0, 4.0), ("two", 4.0, None)]
    assert find_videos(tmp_path / "m.tsv") == find_videos(tmp_path / "m.parquet") == videos


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lists no video"),
        ("path,start\n", "lists no video"),
        ("file,start\nx.mp4,1\n", "has no column 'path'; its columns are 'file', 'start'"),
        ("path,starts\nx.mp4,1\n", "has a column 'starts'; it should be called 'start'"),
        ("Path\nx.mp4\n", "has a column 'Path'; it should be called 'path'"),
        ("path,id\n ,a\n", "line 2: the path is empty"),
        ("path,start\nx.mp4,1\nx.mp4,one\n", "line 3: start must be a number of seconds from 0 on, not 'one'"),
        ("path,start\nx.mp4,-1\n", "not '-1'"),
        ("path,end\nx.mp4,nan\n", "not 'nan'"),
        ("path,start,end\nx.mp4,5,5\n", "the clip ends at 5 s, which is not after its start at 5 s"),
        ("path\nx.mp4,5\n", "line 2: it has 2 fields and the header names 1 columns"),
        ("path,id\nx.mp4,a\ny.mp4,a\n", "line 3 gives the id 'a' a second time, after .*line 2"),
        ('path\n"x.mp4\n', "line 2: a quote in it is not closed"),
    ],
)
def test_a_wrong_manifest_is_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    table = write_table(tmp_path / "m.csv", text)
    with pytest.raises(InputError, match=says) as refusal:
        find_videos(table)
    assert "\n" not in str(refusal.value)


def test_manifests_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path\n\xff\xfe.mp4\n")
    (tmp_path / "m.parquet").write_text("path\n")
    for name, says in (("m.csv", "in UTF-8"), ("m.parquet", "as Parquet"), ("none.csv", "There is no file")):
        with pytest.raises(InputError, match=says):
            find_videos(tmp_path / name)


def test_folders_and_manifests_behind_urls() -> None:
    files = fsspec.filesystem("memory")
    for name in ("b.mp4", "sub/a.mkv", "sub/.hidden.mp4", "notes.txt"):
        files.pipe_file(f"/sources/{name}", b"12345")
    files.pipe_file("/sources/list.csv", b"path,id\nsub/a.mkv,one\n")
    found = find_videos("memory://sources")
    assert [(v.id, v.path, v.size()) for v in found] == [
        ("b", "memory:///sources/b.mp4", 5),
        ("sub/a", "memory:///sources/sub/a.mkv", 5),
    ]
    assert [(v.id, v.path) for v in find_videos("memory://sources/b.mp4")] == [("b", "memory://sources/b.mp4")]
    assert [(v.id, v.path) for v in find_videos("memory://sources/list.csv")] == [("one", "memory://sources/sub/a.mkv")]
    files.pipe_file("/empty/notes.txt", b"")
    for url, says in (("memory://empty", "There is no video in"), ("nosuch://bucket", "cannot open nosuch")):
        with pytest.raises(InputError, match=says):
            find_videos(url)


# --- shares ---------------------------------------------------------------------------------------------------------------


def test_every_video_is_the_share_of_one_rank_whatever_the_others() -> None:
    videos = [VideoFile(f"film {i}", f"/films/{i}.mp4") for i in range(200)]
    shares = [share_of(videos, rank, 3) for rank in range(3)]
    assert sorted(v.id for share in shares for v in share) == sorted(v.id for v in videos)
    assert min(map(len, shares)) > 40
    assert share_of(videos[::-1][:50], 1, 3) == [v for v in videos[::-1][:50] if v in shares[1]]
    for rank, world in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(InputError, match="must lie between 0 and world size - 1"):
            share_of(videos, rank, world)
