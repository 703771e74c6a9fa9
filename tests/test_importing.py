"""Import: every form of file gives the same store; what cannot be used is a row of failures, or one sentence."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from lvmae.errors import InputError
from lvmae.importing import import_embeddings
from lvmae.store import EmbeddingStore

LENGTHS = {"a": 1, "b": 4, "sub/c": 9}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(length, 6)).astype(np.float32) for name, length in LENGTHS.items()}


def _nested(values: np.ndarray) -> list[list[float]]:
    return [row.tolist() for row in values]


def _write(kind: str, arrays: dict[str, np.ndarray], folder: Path) -> Path:
    """Writes the arrays in one of the accepted forms and returns what to import."""
    if kind in {"parquet videos", "parquet fixed"}:
        values = pa.list_(pa.list_(pa.float32(), 6)) if kind == "parquet fixed" else pa.list_(pa.list_(pa.float64()))
        table = pa.table(
            {"id": list(arrays), "embeddings": pa.array([_nested(a) for a in arrays.values()], values), "fps": [25] * 3}
        )
        pq.write_table(table, folder / "x.parquet")
        return folder / "x.parquet"
    if kind in {"parquet vectors", "parquet columns"}:
        # Within a video the rows are out of order on purpose, and a column of times must not become a value.
        rows = [(name, i, row) for name, a in arrays.items() for i, row in reversed(list(enumerate(a)))]
        columns: dict[str, object] = {"id": [r[0] for r in rows], "segment": [r[1] for r in rows]}
        columns["start"] = [r[1] * 5.0 for r in rows]
        if kind == "parquet vectors":
            columns["embedding"] = [r[2].tolist() for r in rows]
        else:
            columns |= {f"e{i}": [float(r[2][i]) for r in rows] for i in (3, 1, 0, 2, 5, 4)}
        pq.write_table(pa.table(columns), folder / "x.parquet")
        return folder / "x.parquet"
    if kind.startswith("hdf5"):
        with h5py.File(folder / "x.h5", "w") as file:
            for name, a in arrays.items():
                file[f"{name}/features" if kind == "hdf5 groups" else name] = a
                if kind == "hdf5 groups":
                    file[f"{name}/fps"] = 25.0
        return folder / "x.h5"
    for name, a in arrays.items():
        path = folder / "in" / f"{name}.{kind.split(maxsplit=1)[0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "npy":
                np.save(path, a.astype(np.float64))
            case "npz":
                np.savez(path, features=a, fps=np.array(25.0))
            case "safetensors":
                save_file({"x": a}, path)
            case "pt":
                torch.save(torch.from_numpy(a), path)
            case "pt dict":
                torch.save({"features": torch.from_numpy(a), "other": torch.zeros(3, 3)}, path)
    return folder / "in"


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("npy", None),
        ("npz", None),
        ("safetensors", None),
        ("pt", None),
        ("pt dict", "features"),
        ("parquet videos", None),
        ("parquet fixed", "embeddings"),
        ("parquet vectors", None),
        ("parquet columns", None),
        ("hdf5", None),
        ("hdf5 groups", "features"),
    ],
)
def test_every_form_gives_the_same_store(
    kind: str, key: str | None, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    source = _write(kind, arrays, tmp_path)
    summary = import_embeddings(source, tmp_path / "store", segment_seconds=2.5, space="s", key=key)
    assert (summary.added, summary.failed, summary.videos, summary.segments, summary.dim) == (3, 0, 3, 14, 6)
    store = EmbeddingStore.open(tmp_path / "store")
    assert (store.space_id, store.manifest.segments) == ("s", {"kind": "fixed", "seconds": 2.5})
    assert sorted(store.ids) == sorted(LENGTHS)
    for record in store:
        np.testing.assert_array_equal(record.embeddings, arrays[record.id].astype(np.float16))
        np.testing.assert_array_equal(record.starts, 2.5 * np.arange(LENGTHS[record.id]))
        np.testing.assert_array_equal(record.ends - record.starts, 2.5)
        assert record.duration == 2.5 * LENGTHS[record.id]


def test_bfloat16_tensors_are_read(tmp_path: Path) -> None:
    torch.save(torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), tmp_path / "a.pt")
    import_embeddings(tmp_path / "a.pt", tmp_path / "store", segment_seconds=5, space="s")
    np.testing.assert_array_equal(EmbeddingStore.open(tmp_path / "store")[0].embeddings, [[1.5, -2.0]])


def test_unusable_files_become_failures_with_their_reason(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    good = np.ones((3, 4), np.float32)
    bad = {
        "d_width": np.ones((3, 5), np.float32),
        "e_empty": np.ones((0, 4), np.float32),
        "f_nan": np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]], np.float32),
        "g_flat": np.ones(4, np.float32),
        "h_large": np.full((1, 4), 1e6, np.float32),
        "i_zero": np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32),
        "j_text": np.array([["a", "b", "c", "d"]]),
        "k_object": np.array([{"x": 1}], dtype=object),
    }
    np.save(source / "a.npy", good)
    np.savez(source / "a.npz", good)
    (source / "b.npy").write_bytes(b"not an array")
    np.savez(source / "c.npz", x=good, y=good)
    for name, array in bad.items():
        np.save(source / f"{name}.npy", array, allow_pickle=name == "k_object")
    torch.save({"x": [1, 2]}, source / "l.pt")
    torch.save(Path("an object"), source / "m.pt")
    summary = import_embeddings(source, tmp_path / "store", segment_seconds=5, space="s")
    store = EmbeddingStore.open(tmp_path / "store")
    reasons = {Path(failure.path).name: failure.reason for failure in store.failures}
    assert (summary.added, summary.failed, store.ids) == (1, len(reasons), ["a"])
    assert "id 'a' is taken" in reasons["a.npz"]
    assert "2 arrays of two dimensions (x, y)" in reasons["c.npz"]
    assert reasons["d_width.npy"] == "the embeddings are 5 wide where the store's are 4"
    assert "empty, of shape (0, 4)" in reasons["e_empty.npy"]
    assert reasons["f_nan.npy"] == "1 of 2 segments hold NaN or infinity (the first is 1)"
    assert "shape (4,), not (segments, width)" in reasons["g_flat.npy"]
    assert "exceed 65504" in reasons["h_large.npy"]
    assert "1 of 3 segments are zero" in reasons["i_zero.npy"]
    assert "not real numbers" in reasons["j_text.npy"]
    assert "allow_pickle" in reasons["k_object.npy"]
    assert "0 arrays of two dimensions" in reasons["l.pt"]
    assert "more than tensors" in reasons["m.pt"]
    assert "b.npy" in reasons
    # Importing again adds nothing, neither videos nor the same failures once more.
    again = import_embeddings(source, tmp_path / "store", segment_seconds=5, space="s")
    assert (again.added, again.kept) == (0, 1)
    assert len(list((tmp_path / "store" / "failures").iterdir())) == 1


def test_a_second_import_adds_what_is_new_and_refuses_another_space(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    np.save(source / "a.npy", np.ones((2, 4)))
    import_embeddings(source, tmp_path / "store", segment_seconds=5, space="s")
    np.save(source / "b.npy", np.ones((3, 4)))
    summary = import_embeddings(source, tmp_path / "store", segment_seconds=5, space="s")
    assert (summary.added, summary.kept, summary.segments) == (1, 1, 5)
    np.save(source / "c.npy", np.ones((3, 4)))
    with pytest.raises(InputError, match="embedding space"):
        import_embeddings(source, tmp_path / "store", segment_seconds=5, space="t")
    with pytest.raises(InputError, match="segment rule"):
        import_embeddings(source, tmp_path / "store", segment_seconds=4, space="s")


def test_the_width_can_be_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4)))
    np.save(tmp_path / "b.npy", np.ones((2, 8)))
    assert import_embeddings(tmp_path, tmp_path / "store", segment_seconds=5, space="s", dim=8).dim == 8
    assert EmbeddingStore.open(tmp_path / "store").ids == ["b"]


def test_the_rows_of_a_video_must_stand_together(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b", "a"], "segment": [0, 0, 1], "embedding": [[1.0, 2.0]] * 3})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="video 'a' do not stand together"):
        import_embeddings(tmp_path / "x.parquet", tmp_path / "store", segment_seconds=5, space="s")
    assert not (tmp_path / "store").exists()


def test_a_gap_between_segments_is_a_failure(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "a", "b"], "segment": [0, 2, 0], "embedding": [[1.0, 2.0]] * 3})
    pq.write_table(table, tmp_path / "x.parquet")
    import_embeddings(tmp_path / "x.parquet", tmp_path / "store", segment_seconds=5, space="s")
    store = EmbeddingStore.open(tmp_path / "store")
    assert (store.ids, store.failures[0].reason) == (["b"], "segment skips numbers between 0 and 2")


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("absent", {}, "does not exist"),
        ("empty", {}, "holds no embeddings"),
        ("x.mat", {}, "of no kind that can be imported"),
        ("x.csv", {}, "text where numbers are expected"),
        ("damaged.parquet", {}, "cannot be read as Parquet"),
        ("damaged.h5", {}, "cannot be read as HDF5"),
        ("noid.parquet", {}, "no column id or video_id or video"),
        ("id.parquet", {}, "neither a column of lists"),
        ("id.parquet", {"key": "features"}, "no column 'features'"),
        ("hopeless", {}, "none of the 1 videos"),
        ("good", {"segment_seconds": 0.0}, "more than 0 seconds"),
        ("good", {"space": " "}, "needs a name"),
    ],
)
def test_hopeless_requests_get_one_sentence(
    source: str, options: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    for folder in ("empty", "hopeless", "good"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "hopeless" / "a.npy", np.ones(3))
    np.save(tmp_path / "good" / "a.npy", np.ones((3, 2)))
    for name in ("x.csv", "x.mat", "damaged.parquet", "damaged.h5"):
        (tmp_path / name).write_text("no such thing")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "noid.parquet")
    pq.write_table(pa.table({"id": ["a"], "fps": [25.0]}), tmp_path / "id.parquet")
    with pytest.raises(InputError, match=sentence) as caught:
        import_embeddings(tmp_path / source, tmp_path / "store", **{"segment_seconds": 5.0, "space": "s", **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.csv", "."])
def test_a_key_for_arrays_without_names_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if name != "a.csv":
        np.save(folder / "a.npy", np.eye(3))
    else:
        (folder / "a.csv").write_text("1,0,2\n0,1,3\n")
    with pytest.raises(InputError, match=r"arrays without names .* `key` chooses nothing; leave it out"):
        import_embeddings(folder / name, tmp_path / "store", segment_seconds=5, space="s", key="features")
    assert not (tmp_path / "store").exists()
    assert import_embeddings(folder / name, tmp_path / "store", segment_seconds=5, space="s").added == 1


def test_a_key_beside_a_table_of_ids_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "img_emb_0.npy", np.eye(3))
    pq.write_table(pa.table({"id": ["a", "a", "b"]}), tmp_path / "metadata_0.parquet")
    for source in (tmp_path, tmp_path / "img_emb_0.npy"):
        with pytest.raises(InputError, match="`key` chooses nothing"):
            import_embeddings(source, tmp_path / "store", segment_seconds=5, space="s", key="id")
