"""Figures of a store against counting by hand, and its export read back by other libraries."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from films import write_film
from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.library.exporting import export_chapters, export_segments
from lvmae.library.projection import segment_places
from lvmae.library.statistics import statistics
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

DIM = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Three videos: one stands still, one is black and has a file, one is unlike the others and costs $5."""
    folder = tmp_path_factory.mktemp("figures")
    generator = np.random.default_rng(0)
    towards = np.eye(DIM)[0] * 3
    rows = {
        "black": towards + generator.normal(size=(2, DIM)),
        "still": np.repeat(towards[None] + generator.normal(size=(1, DIM)), 6, axis=0),
        "up to $5 or $6": -towards + 0.1 * generator.normal(size=(4, DIM)),
    }
    film = write_film(
        folder / "black.mp4", list(range(0, 10_000, 500)), pictures=lambda _: np.zeros((64, 64, 3), np.uint8)
    )
    with StoreWriter(folder / "store", Manifest("made", DIM, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        for name, values in rows.items():
            starts = np.arange(len(values)) * 5.0
            source = str(film) if name == "black" else ""
            writer.add(VideoRecord(name, source, len(values) * 5.0, starts, starts + 5, values))
        writer.fail("a", "a.mp4", "no frame could be decoded: at byte 12")
        writer.fail("b", "b.mp4", "no frame could be decoded: at byte 99")
    return EmbeddingStore.open(folder / "store")


def test_figures_are_those_counted_by_hand(
    store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = statistics(store, pictures=True)
    assert (found.videos, found.segments, found.hours) == (3, 12, round(60 / 3600, 4))
    assert found.duration == {"least": 10, "median": 20, "mean": 20, "most": 30}
    assert found.still_share == round(5 / 9, 4)
    assert found.black_share == 1.0  # of those that could be looked at
    assert found.failures == {"no frame could be decoded": 2}
    assert found.unusual[0][0] == "up to $5 or $6"
    assert {name for name, _ in found.central[:2]} == {"black", "still"}
    features = l2_normalize(store.mean_features)
    assert found.typicality == pytest.approx(features @ l2_normalize(features.mean(0)), abs=1e-4)
    assert statistics(store).black_share is None
    for suffix in ("json", "txt", "png"):
        assert main(["stats", store.path, "--out", str(tmp_path / f"s.{suffix}")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["segments"] == 12
    with Image.open(tmp_path / "s.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    capsys.readouterr()
    assert main(["stats", store.path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 3
    assert main(["stats", store.path, "--out", "x.pdf"]) == 2


def test_a_table_of_segments_is_read_back(store: EmbeddingStore, tmp_path: Path) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("video,start,end,text\nstill,4,11,a wall\n")
    out = tmp_path / "segments.parquet"
    assert main(["export", store.path, "--to", str(out), "--captions", str(captions)]) == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["key"] for row in rows] == [
        f"{name}#{s}" for name, count in (("black", 2), ("still", 6), ("up to $5 or $6", 4)) for s in range(count)
    ]
    np.testing.assert_allclose([row["vector"] for row in rows[2:8]], store.embeddings(1), atol=1e-6)
    assert [row["text"] for row in rows[2:8]] == ["a wall"] * 3 + ["still"] * 3
    assert rows[0]["link"].endswith("black.mp4#t=0,5")
    assert rows[2]["link"] is None
    with Image.open(io.BytesIO(base64.b64decode(rows[0]["thumbnail"].partition(",")[2]))) as picture:
        assert picture.height == 90
    assert rows[2]["novelty"] is None
    assert rows[3]["novelty"] == pytest.approx(0, abs=1e-3)
    assert all(not key.startswith("still#") for row in rows[2:8] for key in row["neighbours"])
    assert rows[0]["neighbours"][0].startswith("still#")
    with pytest.raises(InputError, match=r"\.parquet"):
        export_segments(store, tmp_path / "x.csv")


def test_the_plane_keeps_what_varies_most(store: EmbeddingStore) -> None:
    places = segment_places(store)
    assert places.shape == (12, 2)
    assert np.abs(places).max() == pytest.approx(1)
    far = places[8:].mean(0) - places[:8].mean(0)
    assert abs(far[0]) > 3 * places[8:, 0].std()
    np.testing.assert_array_equal(places, segment_places(store))
    with pytest.raises(InputError, match="pca, umap"):
        segment_places(store, "tsne")


def test_chapters_of_all_videos(store: EmbeddingStore, tmp_path: Path) -> None:
    written = export_chapters(store, tmp_path / "chapters")
    assert sorted(path.name for path in written) == ["black.vtt", "still.vtt", "up to $5 or $6.vtt"]
    assert all(path.read_text().startswith("WEBVTT\n") for path in written)
    with StoreWriter(tmp_path / "odd", Manifest("made", DIM, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        writer.add(VideoRecord("../../out", "", 5.0, np.zeros(1), np.full(1, 5.0), np.ones((1, DIM))))
    with pytest.raises(InputError, match="leads out"):
        export_chapters(tmp_path / "odd", tmp_path / "chapters")
