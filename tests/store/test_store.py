"""The store keeps what it was given, atomically, and gives any window of it back."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmae.errors import InputError, WorkError
from lvmae.files.identity import UNKNOWN, identity_of, stat_of
from lvmae.files.tables import read_parquet_rows
from lvmae.inspection import inspect_store
from lvmae.library import similar_videos
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize, merge_stores
from stores import as_version_0_1

MANIFEST = Manifest("test-space", 4, {"kind": "fixed", "seconds": 5.0}, {"name": "none"})


def record(name: str, length: int, dim: int = 4, **pooled: np.ndarray) -> VideoRecord:
    rng = np.random.default_rng([length, len(name)])
    starts = np.arange(length) * 5.0
    return VideoRecord(
        name, f"/films/{name}.mp4", length * 5.0, starts, starts + 5, rng.normal(size=(length, dim)), **pooled
    )


def write(path: Path, *lengths: int, **kwargs: Any) -> EmbeddingStore:
    with StoreWriter(path, MANIFEST, **kwargs) as writer:
        for number, length in enumerate(lengths):
            writer.add(record(f"v{number}", length))
    return EmbeddingStore.open(path)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), shard_bytes=st.sampled_from([1, 100, 10**6]))
def test_what_goes_in_comes_out_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard_bytes: int
) -> None:
    store = write(tmp_path_factory.mktemp("s") / "store", *lengths, shard_bytes=shard_bytes)
    assert store.lengths.tolist() == lengths
    assert store.ids == [f"v{i}" for i in range(len(lengths))]
    for place, length in enumerate(lengths):
        expected = record(f"v{place}", length)
        got = store[place]
        np.testing.assert_array_equal(got.embeddings, expected.embeddings.astype(np.float16))
        np.testing.assert_array_equal(got.starts, expected.starts)
        np.testing.assert_array_equal(got.ends, expected.ends)
        assert (got.id, got.source, got.duration) == (expected.id, expected.source, expected.duration)
        assert store.index(got.id) == place


def test_order_is_by_id_not_by_who_came_first(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", MANIFEST, shard_bytes=40) as writer:
        for name, length in (("c", 3), ("a", 1), ("b", 9), ("0", 2)):
            writer.add(record(name, length))
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.ids == ["0", "a", "b", "c"]
    assert store.lengths.tolist() == [2, 1, 9, 3]
    assert store.durations.tolist() == [10.0, 5.0, 45.0, 15.0]
    assert [item.id for item in store] == store.ids
    assert store[-1].id == "c"
    np.testing.assert_array_equal(store.embeddings(store.index("b")), record("b", 9).embeddings.astype(np.float16))


def test_a_window_is_a_view_on_the_map(tmp_path: Path) -> None:
    store = write(tmp_path / "s", 3, 10)
    window = store.embeddings(1, 2, 5)
    np.testing.assert_array_equal(window, record("v1", 10).embeddings[2:5].astype(np.float16))
    assert not window.flags.owndata
    assert not window.flags.writeable
    with pytest.raises(IndexError):
        store.embeddings(0, 0, 4)
    with pytest.raises(IndexError):
        store.embeddings(2)


def test_datasets_opens_a_store_with_no_code_of_ours(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "s", 3, 1)
    by_files = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "s/data/*.parquet"), cache_dir=str(tmp_path / "c")
    )
    by_folder = datasets.load_dataset(str(tmp_path / "s"), cache_dir=str(tmp_path / "c"))
    for found in (by_files["train"], by_folder["train"]):
        assert found["id"] == ["v0", "v1"] or list(found["id"]) == ["v0", "v1"]
        np.testing.assert_allclose(np.array(found[0]["embeddings"]), record("v0", 3).embeddings, atol=2e-3)


def test_pickles_to_its_path(tmp_path: Path) -> None:
    store = write(tmp_path / "s", 30)
    content = pickle.dumps(store)
    assert len(content) < 400
    np.testing.assert_array_equal(pickle.loads(content)[0].embeddings, store[0].embeddings)


def test_going_on_keeps_what_was_committed(tmp_path: Path) -> None:
    write(tmp_path / "s", 3)
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        assert writer.done == {"v0"}
        with pytest.raises(ValueError, match="in the store already"):
            writer.add(record("v0", 3))
        writer.add(record("w", 2))
    assert EmbeddingStore.open(tmp_path / "s").ids == ["v0", "w"]


def test_kill_9_loses_only_what_was_not_committed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        from test_store import MANIFEST, record
        from lvmae.store import StoreWriter
        writer = StoreWriter(sys.argv[1], MANIFEST)
        writer.add(record("kept", 3)); writer.commit()
        writer.add(record("lost", 3)); (writer._folder.local / "data" / ".tmp-half").write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    died = subprocess.run([sys.executable, "-c", script, tmp_path / "s", Path(__file__).parent], check=False)
    assert died.returncode == -signal.SIGKILL
    assert EmbeddingStore.open(tmp_path / "s").ids == ["kept"]
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        assert writer.done == {"kept"}
        writer.add(record("lost", 3))
    assert EmbeddingStore.open(tmp_path / "s").ids == ["kept", "lost"]
    assert not list((tmp_path / "s").glob("**/.tmp-*"))


def test_failures_are_rows_until_they_succeed(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        writer.add(record("good", 1))
        writer.fail("bad", "/films/bad.mp4", "no video stream")
        writer.fail("worse", "/films/worse.mp4", "empty file")
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        assert {f.id: f.reason for f in writer.failed.values()} == {"bad": "no video stream", "worse": "empty file"}
        writer.add(record("bad", 2))
    assert [(f.id, f.path, f.reason) for f in EmbeddingStore.open(tmp_path / "s").failures] == [
        ("worse", "/films/worse.mp4", "empty file")
    ]


def test_rows_tell_what_their_source_was_and_older_shards_do_not(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(bytes(range(256)) * 8192)
    known = identity_of(film)
    assert (known.bytes, known.changed) == (film.stat().st_size, film.stat().st_mtime)
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        writer.add(record("old", 2))
        writer.fail("bad", str(film), "it is damaged")
    as_version_0_1(tmp_path / "s")
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        assert writer.failed["bad"].identity == UNKNOWN
        writer.add(replace(record("new", 3), identity=known))
        writer.fail("worse", str(film), "it is damaged", known)
    store = EmbeddingStore.open(tmp_path / "s")
    assert [item.identity for item in store] == [known, UNKNOWN]
    assert [item.identity for item in store.stream()] == [UNKNOWN, known]
    assert {failure.id: failure.identity for failure in store.failures} == {"bad": UNKNOWN, "worse": known}
    json.dumps(inspect_store(store))


def test_a_changed_source_differs(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"a" * 3_000_000)
    known = identity_of(film)
    assert not known.differs(str(film), stat_of(film))
    os.utime(film, (1, 1))
    assert not known.differs(str(film), stat_of(film))  # touched, or copied: the content is the same
    film.write_bytes(b"a" * 2_999_999 + b"b")
    assert known.differs(str(film), stat_of(film))
    film.write_bytes(b"a" * 10)
    assert known.differs(str(film), stat_of(film))
    assert not UNKNOWN.differs(str(film), stat_of(film))


def test_a_video_that_is_embedded_again_counts_once(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        writer.add(record("a", 2))
        writer.add(replace(record("b", 3), shortened="it breaks off"))
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        with pytest.raises(ValueError, match="already"):
            writer.add(record("b", 5))
        writer.add(record("b", 5), replaces=True)
        writer.add(record("c", 1))
        assert not writer.failed
    store = EmbeddingStore.open(tmp_path / "s")
    assert (len(store), store.ids, store.lengths.tolist(), store.failures) == (3, ["a", "b", "c"], [2, 5, 1], [])
    assert store.durations.tolist() == [10.0, 25.0, 5.0]
    assert store.mean_features.shape == (3, 4)
    np.testing.assert_array_equal(store[1].embeddings, record("b", 5).embeddings.astype(np.float16))
    assert [(item.id, len(item.starts)) for item in store.stream()] == [("a", 2), ("b", 5), ("c", 1)]
    merge_stores(tmp_path / "s", tmp_path / "merged")
    assert EmbeddingStore.open(tmp_path / "merged").fingerprint == store.fingerprint


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", MANIFEST), pytest.raises(InputError, match="another process is writing"):
        StoreWriter(tmp_path / "s", MANIFEST)
    StoreWriter(tmp_path / "s", MANIFEST).close()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Manifest("other", 4, MANIFEST.segments, {}), "embedding space 'test-space', not 'other'"),
        (Manifest("test-space", 8, MANIFEST.segments, {}), "width 4, not 8"),
        (Manifest("test-space", 4, {"kind": "fixed", "seconds": 10.0}, {}), "segment rule"),
    ],
)
def test_two_spaces_never_mix(tmp_path: Path, other: Manifest, words: str) -> None:
    write(tmp_path / "s", 1)
    with pytest.raises(InputError, match=words):
        StoreWriter(tmp_path / "s", other)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda r: r.__class__(**{**vars(r), "embeddings": r.embeddings[:, :3]}), "shape"),
        (lambda r: r.__class__(**{**vars(r), "ends": r.ends[:1]}), "1 ends"),
        (lambda r: r.__class__(**{**vars(r), "embeddings": r.embeddings * np.nan}), "not finite"),
        (lambda r: r.__class__(**{**vars(r), "embeddings": r.embeddings * 1e6}), "do not fit float16"),
        (lambda r: r.__class__(r.id, r.source, 0.0, r.starts[:0], r.ends[:0], r.embeddings[:0]), "0 embeddings"),
    ],
)
def test_rows_that_make_no_sense_are_refused(tmp_path: Path, bad: Any, words: str) -> None:
    with StoreWriter(tmp_path / "s", MANIFEST) as writer, pytest.raises(ValueError, match=words):
        writer.add(bad(record("x", 2)))


def test_places_that_hold_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a store"):
        EmbeddingStore.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        StoreWriter(tmp_path / "file", MANIFEST)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not empty"):
        StoreWriter(tmp_path / "full", MANIFEST)
    StoreWriter(tmp_path / "empty", MANIFEST).close()
    with pytest.raises(InputError, match="holds no video"):
        EmbeddingStore.open(tmp_path / "empty")
    manifest = tmp_path / "empty" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 99}))
    with pytest.raises(InputError, match="version 99"):
        EmbeddingStore.open(tmp_path / "empty")


def test_lost_and_damaged_shards_are_named(tmp_path: Path) -> None:
    write(tmp_path / "s", 3, 3, 3, shard_bytes=1)
    second = tmp_path / "s/data/part-00000001.parquet"
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(WorkError, match=r"part-00000001\.parquet is damaged"):
        EmbeddingStore.open(tmp_path / "s")
    second.unlink()
    with pytest.raises(WorkError, match=r"lost data/part-00000001\.parquet"):
        EmbeddingStore.open(tmp_path / "s")


def test_a_full_disk_leaves_the_committed_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StoreWriter(tmp_path / "s", MANIFEST)
    writer.add(record("kept", 3))
    writer.commit()
    writer.add(record("next", 3))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match="the disk is full"):
        writer.commit()
    monkeypatch.undo()
    assert EmbeddingStore.open(tmp_path / "s").ids == ["kept"]
    assert not list((tmp_path / "s").glob("**/.tmp-*"))
    writer.commit()
    writer.close()
    assert EmbeddingStore.open(tmp_path / "s").ids == ["kept", "next"]


def test_fingerprint_follows_the_content_not_the_shards(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 3, 5, 2)
    many = write(tmp_path / "many", 3, 5, 2, shard_bytes=1)
    assert one.fingerprint == many.fingerprint
    assert write(tmp_path / "other", 3, 5, 4).fingerprint != one.fingerprint


def test_representations_carry_pooled_features(tmp_path: Path) -> None:
    manifest = Manifest("s", 4, MANIFEST.segments, {}, kind="representations", run={"fingerprint": "x"})
    pooled = {"cls": np.arange(4, dtype=np.float32), "mean": np.ones(4, np.float32)}
    with StoreWriter(tmp_path / "r", manifest) as writer:
        with pytest.raises(ValueError, match="lacks its cls"):
            writer.add(record("a", 2))
        writer.add(record("a", 2, **pooled))
        writer.add(record("b", 3, **{name: value + 1 for name, value in pooled.items()}))
    store = EmbeddingStore.open(tmp_path / "r")
    np.testing.assert_array_equal(store.cls_features, [[0, 1, 2, 3], [1, 2, 3, 4]])
    np.testing.assert_array_equal(store.mean_features, [[1] * 4, [2] * 4])
    np.testing.assert_array_equal(store[1].cls, [1, 2, 3, 4])


def test_raw_embeddings_are_pooled_after_normalising(tmp_path: Path) -> None:
    store = write(tmp_path / "s", 3)
    expected = l2_normalize(store.embeddings(0)).mean(axis=0)
    np.testing.assert_allclose(store.mean_features[0], expected, rtol=1e-6)
    with pytest.raises(InputError, match="no \\[CLS\\]"):
        _ = store.cls_features


def test_stores_by_url(tmp_path: Path) -> None:
    with StoreWriter("memory://lvmae-test/store", MANIFEST) as writer:
        writer.add(record("a", 2))
        writer.fail("b", "b.mp4", "why")
    store = EmbeddingStore.open("memory://lvmae-test/store")
    np.testing.assert_array_equal(store[0].embeddings, record("a", 2).embeddings.astype(np.float16))
    assert [failure.reason for failure in store.failures] == ["why"]


def test_normalising_keeps_zero() -> None:
    np.testing.assert_allclose(l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]], np.float16)), [[0.6, 0.8], [0, 0]])


def test_parquet_rows_are_plain(tmp_path: Path) -> None:
    write(tmp_path / "s", 3, 1)
    rows = list(read_parquet_rows(tmp_path / "s/data/part-00000000.parquet"))
    assert [row["id"] for row in rows] == ["v0", "v1"]
    np.testing.assert_array_equal(rows[0]["embeddings"], record("v0", 3).embeddings.astype(np.float16))
    assert rows[1]["starts"].tolist() == [0.0]
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(read_parquet_rows(tmp_path / "x.parquet"))


def test_no_password_or_signature_is_stored(tmp_path: Path) -> None:
    signed = "https://anna:s3cret@films.example/v0.mp4?X-Amz-Signature=s3cret"
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        writer.add(replace(record("v0", 3), source=signed, shortened=f"{signed} breaks off"))
        writer.fail("v1", signed, f"403 for {signed}")
    store = EmbeddingStore.open(tmp_path / "s")
    assert store[0].source == "https://films.example/v0.mp4"
    assert {failure.reason for failure in store.failures} == {
        "https://films.example/v0.mp4 breaks off",
        "403 for https://films.example/v0.mp4",
    }
    assert not any(b"s3cret" in path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file())


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-7, 1e-6, 1e-4, 1.0, 1e4, 1e5, 1e30])
def test_half_precision_keeps_directions_or_is_refused(tmp_path: Path, scale: float) -> None:
    given = np.random.default_rng(0).normal(size=(10, 64))
    manifest = replace(MANIFEST, dim=64)
    one = replace(record("v", 10, dim=64), embeddings=given * scale)
    with StoreWriter(tmp_path / "s", manifest) as writer:
        if scale in (1e-6, 1e-4, 1.0, 1e4):
            writer.add(one)
        else:
            with pytest.raises(
                ValueError, match="so small in segment [0-9].*power of 2" if scale < 1 else "65504 at most"
            ):
                writer.add(one)
            writer.add(replace(one, embeddings=np.ldexp(given * scale, -int(np.log2(scale)))))
    stored = l2_normalize(EmbeddingStore.open(tmp_path / "s").embeddings(0))
    assert np.einsum("ld,ld->l", stored, l2_normalize(given)).min() > 0.999


def test_one_small_segment_among_others_and_segments_of_zeros(tmp_path: Path) -> None:
    given = np.ones((3, 4))
    given[1] = 0
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        writer.add(replace(record("zeros", 3), embeddings=given))
        given[2] = [1e-8, 3e-8, 0, 0]
        with pytest.raises(ValueError, match="so small in segment 2"):
            writer.add(replace(record("small", 3), embeddings=given))


@given(st.floats(-38, 38), st.sampled_from([np.float32, np.float64]))
def test_unit_vectors_of_any_scale(exponent: float, kind: type) -> None:
    values = (np.random.default_rng(0).normal(size=(4, 8)) * 10.0**exponent).astype(kind)
    if np.isfinite(values).all():
        np.testing.assert_allclose(np.linalg.norm(l2_normalize(values), axis=1), 1, atol=1e-5)
    assert not l2_normalize(np.zeros((2, 8), kind)).any()


def test_what_grants_access_to_a_store_is_not_told() -> None:
    with pytest.raises((InputError, WorkError), match=r"https://127\.0\.0\.1:9/store cannot be reached") as told:
        EmbeddingStore("https://anna:s3cret@127.0.0.1:9/store?token=s3cret")
    assert "s3cret" not in str(told.value)


def test_a_video_that_is_no_numbers_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Written by something that did not look: the others stay usable, in every way to read a store."""
    monkeypatch.setattr("lvmae.store.writer.to_half", lambda values: values.astype(np.float16))
    with StoreWriter(tmp_path / "s", MANIFEST, shard_bytes=1) as writer:
        for name in ("a", "b", "c", "d"):
            video = record(name, 5)
            if name == "b":
                video.embeddings[2, 1] = np.nan
            if name == "d":
                video.embeddings[[0, 4]] = np.inf
            writer.add(video)
    store = EmbeddingStore.open(tmp_path / "s")
    assert (len(store), store.ids, store.lengths.tolist()) == (2, ["a", "c"], [5, 5])
    assert np.isfinite(store.mean_features).all()
    assert [one.id for one in store.stream()] == ["a", "c"]
    reasons = {failure.id: failure.reason for failure in store.failures}
    assert reasons["b"].startswith("1 of 5 segments hold NaN or infinity")
    assert reasons["d"].startswith("2 of 5 segments hold NaN or infinity")
    assert "the video 'b' is left out" in caplog.text
    similar = similar_videos(store, "a", 3)
    assert [one.video for one in similar] == ["c"]
    assert np.isfinite(similar[0].score)
    assert inspect_store(EmbeddingStore.open(tmp_path / "s"))["failed"] == 2
    assert merge_stores(tmp_path / "s", tmp_path / "merged").failed == 2
    assert EmbeddingStore.open(tmp_path / "merged").ids == ["a", "c"]
    with StoreWriter(tmp_path / "s", MANIFEST) as writer:
        writer.add(record("b", 4), replaces=True)
    assert EmbeddingStore.open(tmp_path / "s").ids == ["a", "b", "c"]
