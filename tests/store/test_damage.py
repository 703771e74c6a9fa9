"""Nothing rots unseen: flipped bits, lost, copied and exchanged shards are noticed by every reader."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lvmae.errors import InputError, LVMAEError, WorkError
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, merge_stores
from stores import SEGMENTS, as_version_0_1, random_videos, video, write_store


def _all_of(store: EmbeddingStore) -> list[tuple[object, ...]]:
    return [
        (
            one.id,
            one.source,
            one.duration,
            one.starts.tolist(),
            one.ends.tolist(),
            one.embeddings.tolist(),
            one.shortened,
        )
        for one in store
    ]


def shards_of(path: Path) -> list[Path]:
    return sorted((path / "data").glob("part-*.parquet"))


READERS: dict[str, Callable[[Path], object]] = {
    "open": EmbeddingStore.open,
    "stream": lambda path: list(EmbeddingStore(path).stream()),
    "write": lambda path: StoreWriter(path, Manifest("test-space", 4, SEGMENTS, {})).close(),
    "merge": lambda path: merge_stores(path, path.with_name("merged")),
    "fingerprint": lambda path: EmbeddingStore(path).fingerprint,
    "ids": lambda path: EmbeddingStore(path).ids,
}


def test_a_flipped_bit_of_any_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = write_store(path, random_videos(3, length=2), failed={"bad": "it is damaged"})
    right, failures = _all_of(store), store.failures
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name not in (".lock", "README.md")]
    generator = np.random.default_rng(0)
    for number in range(400):
        file = files[number % len(files)]
        content = file.read_bytes()
        harmed = bytearray(content)
        place = int(generator.integers(len(content)))
        harmed[place] ^= 1 << int(generator.integers(8))
        before = file.stat()
        file.write_bytes(harmed)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        said = ""
        try:
            again = EmbeddingStore(path)
            assert (_all_of(again), again.failures) == (right, failures), f"byte {place} of {file}"
        except LVMAEError as error:
            said = str(error)
        if file.suffix == ".parquet":
            assert f"{file.name} is damaged" in said
            assert file.parent.name == "failures" or "with v000, v001, v002" in said
        elif file.parent.name == "index":
            assert not said or "index" in said or "lost" in said
        file.write_bytes(content)
    assert (_all_of(EmbeddingStore(path)), EmbeddingStore(path).failures) == (right, failures)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("lost", "concerned"), [(5, "v005"), (2, "v002"), (0, "v000")])
def test_every_reader_notices_a_lost_shard(tmp_path: Path, reader: str, lost: int, concerned: str) -> None:
    write_store(tmp_path / "s", random_videos(6), shard_bytes=1)
    shards_of(tmp_path / "s")[lost].unlink()
    with pytest.raises(
        WorkError, match=rf"has lost data/part-{lost:08d}\.parquet, with {concerned}; restore it, or repair"
    ):
        READERS[reader](tmp_path / "s")


@pytest.mark.parametrize("onto", [1, 6], ids=["another", "a new one"])
@pytest.mark.parametrize("reader", ["open", "stream", "fingerprint"])
def test_a_copied_shard_is_noticed(tmp_path: Path, reader: str, onto: int) -> None:
    write_store(tmp_path / "s", random_videos(6), shard_bytes=1)
    shutil.copy2(shards_of(tmp_path / "s")[4], tmp_path / "s" / f"data/part-{onto:08d}.parquet")
    with pytest.raises(WorkError, match=rf"part-{onto:08d}\.parquet is damaged"):
        READERS[reader](tmp_path / "s")


def test_a_shard_of_another_store_with_the_old_time_is_noticed(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", random_videos(1))
    assert len(_all_of(store)) == 1  # a copy is in the cache
    write_store(tmp_path / "other", random_videos(1, seed=1))
    (shard,), (other,) = shards_of(tmp_path / "s"), shards_of(tmp_path / "other")
    assert shard.stat().st_size == other.stat().st_size
    os.utime(other, ns=(shard.stat().st_atime_ns, shard.stat().st_mtime_ns))
    shutil.copy2(other, shard)
    with pytest.raises(WorkError, match=r"part-00000000\.parquet is damaged .*with v000"):
        EmbeddingStore.open(tmp_path / "s")
    as_version_0_1(tmp_path / "s")  # nobody can know it there; but what is read is what lies there
    assert _all_of(EmbeddingStore.open(tmp_path / "s")) == _all_of(EmbeddingStore.open(tmp_path / "other"))


def test_a_lost_entry_of_the_index_costs_nothing_and_is_written_again(tmp_path: Path) -> None:
    right = _all_of(write_store(tmp_path / "s", random_videos(3), shard_bytes=1))
    fingerprint = EmbeddingStore(tmp_path / "s").fingerprint
    entries = sorted(path.name for path in (tmp_path / "s/index").iterdir())
    (tmp_path / "s/index" / entries[-1]).unlink()  # as where the writer was killed before it
    (tmp_path / "s/index" / entries[0]).unlink()
    assert _all_of(EmbeddingStore(tmp_path / "s")) == right
    assert EmbeddingStore(tmp_path / "s").fingerprint == fingerprint
    write_store(tmp_path / "s", {"new": np.ones((1, 4))})
    assert sorted(path.name for path in (tmp_path / "s/index").iterdir())[:3] == entries


def test_the_fingerprint_covers_every_value(tmp_path: Path) -> None:
    videos = random_videos(2)
    first = write_store(tmp_path / "first", videos)
    assert write_store(tmp_path / "again", videos, shard_bytes=1).fingerprint == first.fingerprint
    for place in [(0, 0), (2, 3)]:  # neither lies in the segment in the middle, which is all that the old one saw
        changed = {name: values.copy() for name, values in videos.items()}
        changed["v001"][place] += 0.5
        other = write_store(tmp_path / f"changed{place[0]}", changed)
        assert other.fingerprint != first.fingerprint
        assert other.old_fingerprint == first.old_fingerprint
    with StoreWriter(tmp_path / "later", first.manifest) as writer:
        for name, values in videos.items():
            record = video(name, values)
            record.ends = record.ends + (name == "v000")
            writer.add(record)
    assert EmbeddingStore(tmp_path / "later").fingerprint != first.fingerprint


def test_a_fingerprint_of_an_older_version_still_matches(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", random_videos(3))
    new = store.fingerprint
    assert store.old_fingerprint == "f341b5fca7904da6"
    as_version_0_1(tmp_path / "s")
    old = EmbeddingStore.open(tmp_path / "s")
    assert old.fingerprint == new
    assert old.has_fingerprint(new)
    assert old.has_fingerprint("f341b5fca7904da6")
    assert not old.has_fingerprint("f341b5fca7904da6"[::-1])
    assert not old.has_fingerprint(None)


def test_a_store_of_an_older_version_is_read_and_added_to(tmp_path: Path) -> None:
    right = _all_of(write_store(tmp_path / "s", random_videos(3), shard_bytes=1))
    as_version_0_1(tmp_path / "s")
    assert _all_of(EmbeddingStore.open(tmp_path / "s")) == right
    store = write_store(tmp_path / "s", {"v999": np.ones((1, 4))})
    assert _all_of(store)[:3] == right
    shards_of(tmp_path / "s")[3].unlink()
    with pytest.raises(WorkError, match=r"lost data/part-00000003\.parquet, with v999"):
        EmbeddingStore.open(tmp_path / "s")


def test_pages_carry_checksums_for_other_readers(tmp_path: Path) -> None:
    write_store(tmp_path / "s", random_videos(3, dim=64, length=20))
    (shard,) = shards_of(tmp_path / "s")
    chunk = pq.read_metadata(shard).row_group(0).column(5)  # of the embeddings
    content = bytearray(shard.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 16
    shard.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.ParquetFile(shard, page_checksum_verification=True).read()


def test_an_unreadable_or_odd_shard_is_one_sentence(tmp_path: Path) -> None:
    write_store(tmp_path / "s", random_videos(1))
    (shard,) = shards_of(tmp_path / "s")
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", shard.read_bytes()[:-9]):
        shard.write_bytes(content)
        with pytest.raises(WorkError, match=r"part-00000000\.parquet is damaged"):
            EmbeddingStore.open(tmp_path / "s")
    table = pq.read_table(write_store(tmp_path / "other", random_videos(1)).path + "/data/part-00000000.parquet")
    shutil.rmtree(tmp_path / "s/index")
    for odd in (table.drop_columns(["starts"]), table.drop_columns(["embeddings"]), table.select(["id"])):
        pq.write_table(odd, shard)
        with pytest.raises(WorkError, match=r"part-00000000\.parquet is damaged \(it lacks"):
            EmbeddingStore.open(tmp_path / "s")
    shard.unlink()
    shard.mkdir()
    with pytest.raises((WorkError, InputError), match=r"part-00000000\.parquet"):
        EmbeddingStore.open(tmp_path / "s")
