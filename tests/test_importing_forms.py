"""Import of what people have: arrays that are turned or nested, one file for all, a file a segment, links, false claims."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from lvmae.errors import InputError
from lvmae.files import tables as parquet_module
from lvmae.importing import ImportSummary, TurnedError, import_embeddings
from lvmae.importing import arrays as arrays_module
from lvmae.store import EmbeddingStore

RNG = np.random.default_rng(0)


def values(length: int, width: int = 6) -> np.ndarray:
    return RNG.normal(size=(length, width)).astype(np.float32)


def load(source: Path, out: Path, **options: Any) -> ImportSummary:
    return import_embeddings(source, out, **({"segment_seconds": 5.0, "space": "s"} | options))


def stored(out: Path) -> dict[str, np.ndarray]:
    return {record.id: np.array(record.embeddings) for record in EmbeddingStore.open(out)}


def reasons(out: Path) -> dict[str, str]:
    return {failure.path: failure.reason for failure in EmbeddingStore.open(out).failures}


def assert_holds(out: Path, expected: dict[str, np.ndarray]) -> None:
    found = stored(out)
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float16))


# --- how arrays lie ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def turned(tmp_path: Path) -> dict[str, np.ndarray]:
    """(segments, 6) arrays, written as (6, segments)."""
    arrays = {f"v{length}": values(length) for length in (4, 9, 9, 12)}
    (tmp_path / "in").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "in" / f"{name}.npy", array.T)
    return arrays


def test_arrays_that_are_turned_are_refused_until_somebody_says_so(
    tmp_path: Path, turned: dict[str, np.ndarray]
) -> None:
    with pytest.raises(TurnedError, match=r"look turned: all of the first 3 have 6 rows, and 4 to 12 columns"):
        load(tmp_path / "in", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    load(tmp_path / "in", tmp_path / "store", transpose=True)
    assert_holds(tmp_path / "store", turned)
    with pytest.raises(InputError, match="it looks turned: import it transposed"):
        load(tmp_path / "in", tmp_path / "other", dim=6)
    for name, array in turned.items():
        np.save(tmp_path / "in" / f"{name}.npy", array)
    with pytest.raises(TurnedError, match="as they are, not transposed"):
        load(tmp_path / "in", tmp_path / "other", transpose=True)


def test_no_first_file_decides(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", values(3, 4))
    for name in "bcd":
        np.save(tmp_path / f"in/{name}.npy", values(5 + ord(name) % 3, 8))
    summary = load(tmp_path / "in", tmp_path / "store")
    assert (summary.added, summary.failed, summary.dim) == (3, 1, 8)
    assert (
        reasons(tmp_path / "store")[str(tmp_path / "in/a.npy")] == "the embeddings are 4 wide where the store's are 8"
    )
    np.save(tmp_path / "in/b.npy", values(7, 4))
    np.save(tmp_path / "in/c.npy", values(9, 8))
    np.save(tmp_path / "in/d.npy", values(9, 8))
    with pytest.raises(InputError, match="different widths"):
        load(tmp_path / "in", tmp_path / "other")
    assert load(tmp_path / "in", tmp_path / "other", dim=4).added == 2


def test_axes_of_length_one_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shapes = {
        "batch": (1, 4, 6),
        "pooled": (4, 6, 1, 1),
        "both": (1, 4, 6, 1, 1),
        "middle": (4, 1, 6),
        "one": (1, 6, 1, 1),
        "two": (1, 1, 6),
    }
    expected = {name: values(1 if name in ("one", "two") else 4) for name in shapes}
    for name, shape in shapes.items():
        np.save(tmp_path / f"in/{name}.npy", expected[name].reshape(shape))
    np.save(tmp_path / "in/grid.npy", np.ones((4, 6, 7, 7), np.float32))
    np.save(tmp_path / "in/objects.npy", np.array([np.ones(6), np.ones(5)], dtype=object), allow_pickle=True)
    assert load(tmp_path / "in", tmp_path / "store").failed == 2
    assert_holds(tmp_path / "store", expected)
    found = reasons(tmp_path / "store")
    assert "average it over the other axes" in found[str(tmp_path / "in/grid.npy")]
    assert "numpy.save(path, numpy.stack" in found[str(tmp_path / "in/objects.npy")]


def test_zeros_at_the_end_are_padding(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    array = values(5)
    np.save(tmp_path / "in/padded.npy", np.concatenate([array, np.zeros((3, 6))]))
    np.save(tmp_path / "in/none.npy", np.zeros((3, 6)))
    hole = values(5)
    hole[2] = 0
    np.save(tmp_path / "in/hole.npy", hole)
    load(tmp_path / "in", tmp_path / "store")
    assert_holds(tmp_path / "store", {"padded": array})
    assert EmbeddingStore.open(tmp_path / "store")[0].duration == 25.0
    found = reasons(tmp_path / "store")
    assert found[str(tmp_path / "in/hole.npy")] == "1 of 5 segments are zero in half precision (the first is 2)"
    assert found[str(tmp_path / "in/none.npy")] == "all of its 3 segments are zero in half precision"


# --- one file for all, a file a segment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "pt", "safetensors", "clip-retrieval", "pair", "csv long", "csv folder"])
def test_forms_of_many_videos(kind: str, tmp_path: Path) -> None:
    expected = {"a": values(2), "b": values(5), "sub/c": values(3)}
    source = tmp_path / "in"
    source.mkdir()
    match kind:
        case "npz":
            np.savez(source := tmp_path / "all.npz", **expected)
        case "pt":
            nested = {
                "a": torch.from_numpy(expected["a"]),
                "b": torch.from_numpy(expected["b"]),
                "sub": {"c": torch.from_numpy(expected["sub/c"])},
            }
            torch.save(nested, source := tmp_path / "all.pt")
        case "safetensors":
            save_file(expected, source := tmp_path / "all.safetensors")
        case "clip-retrieval" | "pair":
            ids = [name for name, array in expected.items() for _ in array]
            rows, order = np.concatenate(list(expected.values())), np.arange(10)
            if kind == "pair":
                np.save(source := tmp_path / "features.npy", rows)
                pq.write_table(pa.table({"video_id": ids}), tmp_path / "features.parquet")
            else:
                (source / "img_emb").mkdir()
                (source / "metadata").mkdir()
                numbers = [i for array in expected.values() for i in range(len(array))]
                for part, chosen in enumerate((order[::-2], order[::-1][1::2])):
                    np.save(source / f"img_emb/img_emb_{part}.npy", rows[chosen])
                    table = {"id": [ids[i] for i in chosen], "segment": [numbers[i] for i in chosen]}
                    pq.write_table(pa.table(table), source / f"metadata/metadata_{part}.parquet")
        case "csv long":
            lines = [
                f"{n},{i}," + ",".join(map(repr, map(float, row)))
                for n, a in expected.items()
                for i, row in enumerate(a)
            ]
            source = tmp_path / "all.csv"
            source.write_text("video,segment," + ",".join(f"e{i}" for i in range(6)) + "\n" + "\n".join(lines))
        case "csv folder":
            for name, array in expected.items():
                (source / name).parent.mkdir(exist_ok=True)
                np.savetxt(
                    source / f"{name}.csv",
                    array,
                    delimiter=",",
                    header="" if name == "a" else "x,y,z,u,v,w",
                    comments="",
                )
    summary = load(source, tmp_path / "store")
    assert (summary.added, summary.failed) == (3, 0)
    assert_holds(tmp_path / "store", expected)


@pytest.mark.parametrize("kind", ["list", "list with ids", "rows"])
def test_one_file_a_segment(kind: str, tmp_path: Path) -> None:
    """The reference implementation's layout, whose CSV holds lists of paths; they are read as data, and no code of them runs."""
    expected = {"a": values(2), "b": values(3)}
    for name, array in expected.items():
        (tmp_path / name).mkdir()
        for i, row in enumerate(array):
            torch.save(torch.from_numpy(row).reshape((6,) if i % 2 else (1, 6)), tmp_path / name / f"{i}.pt")
    files = {name: [f"{name}/{i}.pt" for i in range(len(array))] for name, array in expected.items()}
    files["a"] = [str(tmp_path / path) for path in files["a"]]
    table = tmp_path / "videos.csv"
    match kind:
        case "list":
            table.write_text("embeddings\n" + "\n".join(f'"{paths}"' for paths in files.values()))
        case "list with ids":
            table.write_text("id,paths\n" + "\n".join(f'{name},"{paths}"' for name, paths in files.items()))
        case "rows":
            table.write_text(
                "id,path\n" + "\n".join(f"{name},{path}" for name, paths in files.items() for path in paths)
            )
    load(table, tmp_path / "store")
    assert_holds(tmp_path / "store", expected)
    evil = tmp_path / "evil.csv"
    evil.write_text(f"id,paths\nx,\"['a', __import__('os').system('touch {tmp_path}/ran')]\"\na,\"{files['a']}\"\n")
    assert load(evil, tmp_path / "other").failed == 1
    assert "cannot be read" in reasons(tmp_path / "other")[f"{evil}/x"]
    assert not (tmp_path / "ran").exists()


def test_text_that_numbers_segments(tmp_path: Path) -> None:
    rows = values(3)
    ids, numbers = ["a"] * 3 + ["b"], ["10", "8", "9", "first"]
    pq.write_table(
        pa.table({"id": ids, "segment": numbers, "embedding": [*rows.tolist(), [1.0] * 6]}), tmp_path / "x.parquet"
    )
    assert load(tmp_path / "x.parquet", tmp_path / "store").failed == 1
    assert_holds(tmp_path / "store", {"a": rows[[1, 2, 0]]})
    assert reasons(tmp_path / "store") == {
        f"{tmp_path}/x.parquet/b": "the column segment holds 'first', which is no number of a segment"
    }


def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/good.npy", good := values(3))
    torch.save(torch.ones(3, 6).to_sparse(), tmp_path / "in/sparse.pt")
    torch.save(torch.ones(3, 6, device="meta"), tmp_path / "in/meta.pt")
    torch.save([torch.ones(3, 6)], tmp_path / "in/list.pt")
    torch.save(torch.ones(1, 1).expand(1 << 20, 1 << 20), tmp_path / "in/expanded.pt")
    assert load(tmp_path / "in", tmp_path / "store").failed == 4
    assert_holds(tmp_path / "store", {"good": good})
    found = reasons(tmp_path / "store")
    assert ".to_dense()" in found[str(tmp_path / "in/sparse.pt")]
    assert "a dictionary from ids to tensors" in found[str(tmp_path / "in/list.pt")]
    assert "claims a shape of (1048576, 1048576)" in found[str(tmp_path / "in/expanded.pt")]


# --- HDF5 --------------------------------------------------------------------------------------------------------------------


def test_links_are_followed_by_name_and_not_out_of_the_folder(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    expected = {name: values(3) for name in "abc"}
    with h5py.File(folder / "more.h5", "w") as more, h5py.File(elsewhere / "secret.h5", "w") as secret:
        more["deep/c"] = expected["c"]
        secret["x"] = values(3)
        more["out"] = h5py.ExternalLink("../elsewhere/secret.h5", "x")
    with h5py.File(folder / "all.h5", "w") as file:
        file["a"], file["group/b"] = expected["a"], expected["b"]
        file["again"] = file["a"]  # a second name
        file["soft"] = h5py.SoftLink("/group/b")
        file["group/circle"] = file["group"]
        file["group/here"] = h5py.SoftLink("b")
        file["external"] = h5py.ExternalLink("more.h5", "deep/c")
        file["nowhere"] = h5py.SoftLink("/absent")
        file["loop"] = h5py.SoftLink("/loop")
        file["out"] = h5py.ExternalLink("../elsewhere/secret.h5", "x")
        file["out twice"] = h5py.ExternalLink("more.h5", "out")
        file["absolute"] = h5py.ExternalLink(str(folder / "more.h5"), "deep/c")
        file.create_dataset("raw", (2, 6), "f4", external=[(str(elsewhere / "secret.h5"), 0, 48)])
        layout = h5py.VirtualLayout((3, 6), "f4")
        layout[:] = h5py.VirtualSource(str(elsewhere / "secret.h5"), "x", (3, 6))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (10**6, 10**6), "f4", chunks=(1000, 1000))
        file["words"] = ["a", "b"]
    summary = load(folder / "all.h5", tmp_path / "store")
    names = {"a": "a", "again": "a", "group/b": "b", "soft": "b", "group/here": "b", "external": "c"}
    assert_holds(tmp_path / "store", {name: expected[array] for name, array in names.items()})
    found = {path.removeprefix(f"{folder}/all.h5/"): reason for path, reason in reasons(tmp_path / "store").items()}
    assert summary.failed == len(found) == 9
    for name, says in {
        "nowhere": "not there",
        "loop": "in a circle",
        "out": "outside of",
        "out twice": "outside of",
        "absolute": "outside of",
        "raw": "external storage",
        "virtual": "virtual data set",
        "huge": "claims a shape of (1000000, 1000000)",
        "words": "not real numbers",
    }.items():
        assert says in found[name], name


# --- claims ------------------------------------------------------------------------------------------------------------------


def test_what_is_claimed_is_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "_FREE_BYTES", 1 << 20)  # a smaller bomb is faster to build
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "good.npy", good := values(3))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 2048)})
    (folder / "header.npy").write_bytes(head.getvalue() + b"few bytes")
    with (
        zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("x.npy", "w") as file,
    ):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (3 << 10, 1024)})
        file.write(head.getvalue())
        for _ in range(3):
            file.write(bytes(1 << 20))
    np.savez(folder / "fine.npz", fine := values(4))
    np.save(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.npy")), good)
    summary = load(folder, tmp_path / "store")
    assert_holds(tmp_path / "store", {"good": good, "fine": fine})
    assert summary.failed == 3
    found = reasons(tmp_path / "store")
    assert "ends long before that" in found[str(folder / "header.npy")]
    assert "claims a shape of" in found[str(folder / "bomb.npz")]
    assert found[f"{folder}/caf\\xe9.npy"] == "its name is not UTF-8; rename it"


def test_a_parquet_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "_FREE_BYTES", 1 << 20)
    column = pa.array(np.zeros(1 << 20, np.float32))
    nested = pa.ListArray.from_arrays(pa.array([0, len(column)], pa.int32()), column)
    pq.write_table(pa.table({"id": ["a"], "embeddings": nested}), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(InputError, match=r"claims 0\.0 GiB in the column"):
        load(tmp_path / "x.parquet", tmp_path / "store")


# --- which are stored --------------------------------------------------------------------------------------------------------


def test_two_folders_with_files_of_one_name(tmp_path: Path) -> None:
    arrays = {name: values(3) for name in ("dog", "cat")}
    for name, array in arrays.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "000.npy", array)
    assert load(tmp_path / "dog", tmp_path / "store").added == 1
    assert load(tmp_path / "cat", tmp_path / "store").added == 1
    assert_holds(tmp_path / "store", {"000": arrays["dog"], "cat/000": arrays["cat"]})
    for name in arrays:
        again = load(tmp_path / name, tmp_path / "store")
        assert (again.added, again.kept, again.changed) == (0, 1, ())


def test_values_that_changed_are_told_and_stored_again_on_request(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first, second = values(3), values(4)
    np.save(tmp_path / "in/a.npy", first)
    np.save(tmp_path / "in/b.npy", first)
    (tmp_path / "in/notes.txt").touch()
    assert load(tmp_path / "in", tmp_path / "store").left_out == "1 files that are no arrays: 1 .txt"
    np.save(tmp_path / "in/a.npy", second)
    os.utime(tmp_path / "in/b.npy", (1, 1))
    told = load(tmp_path / "in", tmp_path / "store")
    assert (told.added, told.kept, told.changed) == (0, 2, ("a",))
    done = load(tmp_path / "in", tmp_path / "store", refresh=True)
    assert (done.added, done.kept, done.changed, done.videos) == (1, 1, (), 2)
    assert_holds(tmp_path / "store", {"a": second, "b": first})
