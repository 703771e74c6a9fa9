"""Many stores become one: what ranks wrote equals what one process writes; what differs is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lvmae.errors import InputError
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, merge_stores

MANIFEST = Manifest("test-space", 4, {"kind": "fixed", "seconds": 5.0}, {"name": "none"})


def record(number: int, **changes: object) -> VideoRecord:
    rng = np.random.default_rng(number)
    starts = np.arange(number % 4 + 1) * 5.0
    values = rng.normal(size=(len(starts), 4))
    made = VideoRecord(f"v{number:02d}", f"/films/{number}.mp4", len(starts) * 5.0, starts, starts + 5, values)
    return replace(made, **changes)  # type: ignore[arg-type]


def write(
    path: Path, *records: VideoRecord, manifest: Manifest = MANIFEST, failed: dict[str, str] | None = None
) -> Path:
    with StoreWriter(path, manifest, shard_bytes=40) as writer:
        for one in records:
            writer.add(one)
        for name, reason in (failed or {}).items():
            writer.fail(name, f"/films/{name}.mp4", reason)
    return path


def contents(path: Path) -> list[tuple[object, ...]]:
    return [
        (r.id, r.source, r.duration, r.starts.tobytes(), r.ends.tobytes(), r.embeddings.tobytes(), r.shortened)
        for r in EmbeddingStore.open(path)
    ]


def test_shares_merge_to_the_store_of_one_process(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", *map(record, range(9)), failed={"bad": "why"})
    parts = [write(tmp_path / f"part{i}", *map(record, range(i, 9, 3))) for i in range(3)]
    write(parts[1], failed={"bad": "why"})
    summary = merge_stores(parts, tmp_path / "out")
    assert (summary.stores, summary.added, summary.skipped, summary.failed) == (3, 9, 0, 1)
    assert contents(tmp_path / "out") == contents(whole)
    merged, alone = EmbeddingStore.open(tmp_path / "out"), EmbeddingStore.open(whole)
    assert merged.fingerprint == alone.fingerprint
    assert merged.failures == alone.failures
    assert merged.manifest == alone.manifest
    again = merge_stores(parts, tmp_path / "out")  # as after a crash
    assert (again.added, again.skipped) == (0, 9)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_video_in_two_stores_must_be_the_same_in_both(tmp_path: Path) -> None:
    one = write(tmp_path / "one", record(0), record(1))
    same = write(tmp_path / "same", record(1, source="/elsewhere/1.mp4"), record(2))
    summary = merge_stores([one, same], tmp_path / "out")
    assert (summary.added, summary.skipped) == (3, 1)
    assert EmbeddingStore.open(tmp_path / "out")[1].source == "/films/1.mp4"  # the first one's
    for name, changes in (
        ("values", {"embeddings": record(1).embeddings + 0.5}),
        ("times", {"ends": record(1).ends + 0.5}),
        ("in part", {"shortened": "truncated"}),
    ):
        other = write(tmp_path / name, record(1, **changes))
        for stores, out in (([one, other], f"{name} fresh"), ([other], "out")):
            with pytest.raises(InputError, match=r"'v01' in .* differs from that in"):
                merge_stores(stores, tmp_path / out)
    assert len(contents(tmp_path / "out")) == 3


def test_failures_are_merged_and_those_that_succeeded_elsewhere_dropped(tmp_path: Path) -> None:
    one = write(tmp_path / "one", record(0), failed={"v01": "no permission", "v02": "empty"})
    two = write(tmp_path / "two", record(1), record(3, shortened="truncated"), failed={"v02": "the file is empty"})
    summary = merge_stores([one, two], tmp_path / "out")
    assert (summary.added, summary.failed, summary.partial) == (3, 1, 1)
    store = EmbeddingStore.open(tmp_path / "out")
    assert {f.id: (f.reason, f.kept) for f in store.failures} == {"v02": ("empty", 0.0), "v03": ("truncated", 20.0)}
    assert store[store.index("v03")].shortened == "truncated"
    assert merge_stores([one, two], tmp_path / "out").added == 0


def test_representations_merge_with_their_pooled_features(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, kind="representations", run={"fingerprint": "x"})
    pooled = {"cls": np.arange(4, dtype=np.float32), "mean": np.ones(4, np.float32)}
    parts = [write(tmp_path / str(i), record(i, **pooled), manifest=manifest) for i in range(2)]
    merge_stores(parts, tmp_path / "out")
    np.testing.assert_array_equal(EmbeddingStore.open(tmp_path / "out").cls_features, [np.arange(4)] * 2)


def test_what_is_not_to_be_merged_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one", record(0))
    other = write(tmp_path / "other", record(1), manifest=replace(MANIFEST, space_id="other"))
    rule = write(tmp_path / "rule", record(2), manifest=replace(MANIFEST, segments={"kind": "fixed", "seconds": 2.0}))
    (tmp_path / "nothing").mkdir()
    for stores, out, says in (
        ([one, other], "out", "two never mix"),
        ([one, rule], "out", "segment rule"),
        ([other], "one", "two never mix"),
        ([one, tmp_path / "nothing"], "out", "is not a store, and there are no stores of ranks in it"),
        ([one, tmp_path / "missing"], "out", "is not a store"),
        ([one], "one", "is one of the stores to merge"),
        ([], "out", "No store was given"),
    ):
        with pytest.raises(InputError, match=says):
            merge_stores(stores, tmp_path / out)
    assert not (tmp_path / "out").exists()


def test_streaming_gives_every_row_and_leaves_no_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s", *map(record, (3, 1, 2)))
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))
    streamed = list(EmbeddingStore(path).stream())
    assert [one.id for one in streamed] == ["v03", "v01", "v02"]  # as on disk
    np.testing.assert_array_equal(streamed[0].embeddings, record(3).embeddings.astype(np.float16))
    assert not (tmp_path / "cache").exists()
