"""Finding by text, picture and moment, within filters, and what other programs open: against brute force, index or not."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from films import write_film
from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.library import Library, nearest, similar_videos
from lvmae.library.filters import Filter
from lvmae.library.playlists import to_csv, to_edl, to_m3u
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize, located, relocate

DIM = 16


def write(path: Path, rows: dict[str, np.ndarray], sources: dict[str, str] | None = None) -> EmbeddingStore:
    with StoreWriter(path, Manifest("made", DIM, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        for name, values in rows.items():
            starts = np.arange(len(values)) * 5.0
            source = (sources or {}).get(name, f"films/{name}.mp4")
            writer.add(VideoRecord(name, source, len(values) * 5.0, starts, starts + 5, values))
    return EmbeddingStore.open(path)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**31), st.booleans())
def test_the_first_of_many_are_the_few(top: int, seed: int, hold: bool) -> None:
    """Also among equal scores, which come by id; held in memory or read from the disk."""
    import tempfile

    generator = np.random.default_rng(seed)
    kinds = generator.normal(size=(6, DIM))
    rows = {f"v{i:02d}": kinds[generator.integers(6, size=20)] for i in range(40)}
    with tempfile.TemporaryDirectory() as folder:
        library = Library(write(Path(folder) / "store", rows))
        if hold:
            assert library.held is not None
        query = generator.normal(size=DIM)
        few, many = library.moments(query, top), library.moments(query, 40)
        assert many[:top] == few
        keys = [(-m.score, m.video, m.segment) for m in many]
        assert keys == sorted(keys)
        one = similar_videos(library.store, "v07", 5)
        assert similar_videos(library.store, "v07", 39)[:5] == one


def test_two_identical_films_are_alike_and_cosines_are_cosines(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, DIM))
    twins = write(tmp_path / "twins", {"a": values, "b": values.copy()})
    assert similar_videos(twins, "a")[0].score == pytest.approx(1, abs=1e-3)
    nearly = {"a": values, "b": values + 1e-3, "c": values - 1e-3}
    assert [v.score for v in similar_videos(write(tmp_path / "nearly", nearly), "a")] == pytest.approx([1, 1], abs=1e-3)
    apart = write(tmp_path / "apart", {"a": np.ones((3, DIM)), "b": -np.ones((3, DIM))})
    assert similar_videos(apart, "a")[0].score == pytest.approx(-1, abs=1e-6)
    for library in (Library(twins), Library(apart)):
        for row in library.store[0].embeddings:
            assert all(-1 <= moment.score <= 1 for moment in library.moments(row, 5))


@pytest.fixture
def films(tmp_path: Path) -> EmbeddingStore:
    """Videos of 1 to 60 segments in two folders."""
    generator = np.random.default_rng(3)
    rows = {
        f"{folder}/f{i:02d}": generator.normal(size=(1 + i, DIM)) for folder in ("news", "sport") for i in range(60)
    }
    sources = {name: str(tmp_path / "films" / f"{name}.mp4") for name in rows}
    return write(tmp_path / "store", rows, sources)


@pytest.mark.parametrize("indexed", [False, True])
def test_filtered_scores_are_those_of_an_exact_search_of_what_passes(
    films: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    if indexed:
        pytest.importorskip("faiss", reason="faiss, which builds the index, is not installed")
        monkeypatch.setattr(nearest, "INDEX_FROM", 100)
        monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "id,label\n" + "".join(f"{name},{'odd' if i % 2 else 'even'}\n" for i, name in enumerate(films.ids))
    )
    kept = Filter(folder="sport", min_seconds=50, max_seconds=200, labels=labels, label=("odd",))
    videos = kept.videos(films)
    expected = [
        place
        for place, name in enumerate(films.ids)
        if name.startswith("sport/") and 50 <= films.durations[place] <= 200 and place % 2
    ]
    assert videos.tolist() == expected
    library = Library(films)
    assert (library._nearest.index is not None) == indexed
    query = np.random.default_rng(9).normal(size=DIM)
    found = library.only(videos).moments(query, 8)
    cosines = {
        (place, segment): score
        for place in expected
        for segment, score in enumerate(l2_normalize(films.embeddings(place)) @ l2_normalize(query))
    }
    for moment in found:
        assert moment.score == pytest.approx(cosines[moment.index, moment.segment], abs=1e-6)
    assert found[0].score == pytest.approx(max(cosines.values()), abs=1e-6)
    alone = write(tmp_path / "alone", {films.ids[p]: np.array(films.embeddings(p)) for p in expected})
    theirs = Library(alone, exact=True).moments(query, 8)
    assert [(m.video, m.first, m.last) for m in found] == [(m.video, m.first, m.last) for m in theirs]
    assert [m.score for m in found] == pytest.approx([m.score for m in theirs], abs=1e-6)
    videos_once = library.only(videos).moments(query, 8, one_a_video=True)
    assert len({m.video for m in videos_once}) == len(videos_once) == 8


def test_dates_sources_and_requests_that_make_no_sense(films: EmbeddingStore, tmp_path: Path) -> None:
    assert len(Filter(source="*/news/f0?.mp4").videos(films)) == 10
    for name, stamp in (("news/f03", 1_700_000_000), ("news/f04", 1_600_000_000)):  # 2023-11-14, 2020-09-13
        path = tmp_path / "films" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (stamp, stamp))
    assert [films.ids[p] for p in Filter(after="2023-11-14").videos(films)] == ["news/f03"]
    assert [films.ids[p] for p in Filter(after="2020-01-01", before="2023-11-14").videos(films)] == ["news/f04"]
    for wrong in (Filter(after="yesterday"), Filter(label=("x",)), Filter(min_seconds=-1)):
        with pytest.raises(InputError):
            wrong.videos(films)
    assert main(["search", films.path, "--video", "news/f03", "--at", "9999"]) == 2
    assert main(["search", films.path, "--video", "news/f03", "--at", "1", "--folder", "nowhere"]) == 2
    assert main(["search", films.path, "--video", "news/f03", "--out", "x.csv"]) == 2
    assert main(["search", films.path, "text", "--picture", "x.png"]) == 2


def test_a_moment_finds_itself_and_other_programs_open_what_is_found(
    films: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", films.path, "--video", "sport/f20", "--at", "73.5", "--top", "3"]
    for suffix in ("csv", "json", "m3u", "edl"):
        assert main([*command, "--out", str(tmp_path / f"found.{suffix}")]) == 0
    with (tmp_path / "found.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["video"], float(first["start"]), float(first["score"])) == ("sport/f20", 70.0, 1.0)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found[0]["segment"], found[0]["source"]) == (14, films[films.index("sport/f20")].source)
    assert "#EXTVLCOPT:start-time=70.000\n#EXTVLCOPT:stop-time=75.000\n" in (tmp_path / "found.m3u").read_text()
    edl = (tmp_path / "found.edl").read_text().splitlines()
    assert edl[3] == "001  AX       V     C        00:01:10:00 00:01:15:00 00:00:00:00 00:00:05:00"
    assert edl[7].split()[-2:] == ["00:00:05:00", "00:00:10:00"]
    capsys.readouterr()
    assert main(["search", films.path, "--video", "sport/f20", "--at", "73.5", "--json", "--top", "1"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["start"] == 70.0


def test_a_name_cannot_write_an_entry_of_its_own(tmp_path: Path) -> None:
    store = write(tmp_path / "store", {"=A1\n#EXTINF:1,evil": np.eye(DIM)[:3]}, {"=A1\n#EXTINF:1,evil": "x\n002  AX"})
    moments = Library(store).moments(np.eye(DIM)[0], 1)
    assert len(to_m3u(store, moments).splitlines()) == 5
    assert len(to_edl(store, moments).splitlines()) == 7
    with (tmp_path / "t.csv").open("w+", newline="") as file:
        file.write(to_csv(store, moments))
        file.seek(0)
        assert [row[0] for row in csv.reader(file)] == ["video", "'=A1\n#EXTINF:1,evil"]


def test_text_minus_text_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("all_minilm_l6_v2", reason="the offline encoder's weights are not installed")
    from PIL import Image

    from lvmae.encoders import load_encoder
    from lvmae.encoders.photographs import photograph

    encoder = load_encoder("conse")
    shown = {"dahlia": "flower.jpg", "palace": "china.jpg"}
    manifest = Manifest(encoder.space_id, encoder.dim, {"kind": "fixed", "seconds": 5.0}, {"name": "conse"})
    with StoreWriter(tmp_path / "store", manifest) as writer:
        for name, file in shown.items():
            row = encoder.encode_video(np.repeat(photograph(file, 192)[None], 3, 0)[None])
            writer.add(VideoRecord(name, "", 5.0, np.zeros(1), np.full(1, 5.0), row))
    library = Library(tmp_path / "store")
    picture = tmp_path / "flower.png"
    Image.fromarray(photograph("flower.jpg", 192)).save(picture)
    found = library.moments(library.vector_of_picture(picture), 1)
    assert (found[0].video, found[0].score) == ("dahlia", pytest.approx(1, abs=1e-3))
    assert library.moments(library.vector_of("a daisy"), 1)[0].video == "dahlia"
    assert library.moments(library.vector_of("a daisy and a palace", "a daisy"), 1)[0].video == "palace"
    vectors = library.vectors_of([("a daisy", ""), ("a palace", "")])
    np.testing.assert_allclose(vectors[1], library.vector_of("a palace"), atol=1e-5)


# ---- where the videos are --------------------------------------------------------------------------------------------------


def test_a_store_made_with_relative_paths_is_read_from_anywhere_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("all_minilm_l6_v2", reason="the offline encoder's weights are not installed")
    home = tmp_path / "home"
    (home / "films" / "a").mkdir(parents=True)
    write_film(home / "films" / "a" / "one.mp4", list(range(0, 3000, 200)))
    monkeypatch.chdir(home)
    assert main(["embed", "films", "--out", "../stores/store", "--workers", "1"]) == 0
    monkeypatch.chdir("/")
    store = EmbeddingStore.open(tmp_path / "stores" / "store")
    source = store[0].source
    assert not Path(source).is_absolute()
    assert Path(located(store, source)) == home / "films" / "a" / "one.mp4"
    shutil.move(home, tmp_path / "elsewhere")
    assert located(store, source) == source  # found nowhere
    assert main(["relocate", store.path, "--to", str(tmp_path / "stores")]) == 2
    assert main(["relocate", store.path, "--to", str(tmp_path / "elsewhere")]) == 0
    assert "1 of 1 local videos are found" in capsys.readouterr().out
    assert Path(located(store, source)) == tmp_path / "elsewhere" / "films" / "a" / "one.mp4"
    with pytest.raises(InputError, match="no folder"):
        relocate(store, tmp_path / "nowhere")
