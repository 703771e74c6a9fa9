"""Verify, repair, remove and migrate: damage is found and put aside, what is removed is gone, and every step can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lvmae.cli import main
from lvmae.errors import InputError, WorkError
from lvmae.files import cache, writing
from lvmae.inspection import inspect
from lvmae.serving.tags import Tags
from lvmae.store import (
    EmbeddingStore,
    Manifest,
    StoreWriter,
    migrate_store,
    remove_videos,
    repair_store,
    verify_store,
)
from lvmae.store.folder import StoreFolder
from stores import SEGMENTS, as_version_0_1, random_videos, video, write_store

MANIFEST = Manifest("test-space", 4, SEGMENTS, {"name": "none"})


def problems(path: Path) -> dict[str, tuple[str, ...]]:
    """File -> videos concerned."""
    return {problem.file: problem.ids for problem in verify_store(path).problems}


def shard(path: Path, number: int, table: str = "data") -> Path:
    return path / table / f"part-{number:08d}.parquet"


def flip(file: Path, place: int = -40) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 8
    file.write_bytes(content)


def holds(path: Path, needle: bytes) -> list[Path]:
    """Files below `path` with these bytes in them."""
    return [file for file in path.rglob("*") if file.is_file() and needle in file.read_bytes()]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_whole_store_has_no_problem(tmp_path: Path) -> None:
    write_store(tmp_path / "s", random_videos(5), shard_bytes=1, failed={"bad": "it is damaged"})
    told: list[tuple[int, int]] = []
    found = verify_store(tmp_path / "s", progress=lambda done, total: told.append((done, total)))
    assert (found.problems, found.videos, found.files) == ([], 5, 12)  # 6 shards and their entries
    sizes = sum(file.stat().st_size for file in (tmp_path / "s").glob("*/part-*"))
    assert told[-1] == (sizes, sizes)
    assert main(["verify", str(tmp_path / "s")]) == 0


def test_damaged_and_lost_shards_are_put_aside_and_their_videos_can_be_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, videos = tmp_path / "s", random_videos(6)
    right = {one.id: one.embeddings.tolist() for one in write_store(path, videos, shard_bytes=1)}
    flip(shard(path, 1))
    shard(path, 5).unlink()
    shard(path, 3).write_bytes(shard(path, 2).read_bytes())
    assert problems(path) == {
        "data/part-00000001.parquet": ("v001",),
        "data/part-00000003.parquet": ("v003",),
        "data/part-00000005.parquet": ("v005",),
    }
    assert main(["verify", str(path)]) == 1
    assert "data/part-00000005.parquet: it is lost (1 videos: v005)" in capsys.readouterr().out
    assert main(["verify", str(path), "--repair"]) == 0
    assert problems(path) == {}
    store = EmbeddingStore.open(path)
    assert store.ids == ["v000", "v002", "v004"]
    with StoreWriter(path, MANIFEST) as writer:
        assert set(videos) - writer.done == {"v001", "v003", "v005"}
    assert {
        one.id: one.embeddings.tolist() for one in write_store(path, {k: videos[k] for k in ("v001", "v003", "v005")})
    } == right
    assert problems(path) == {}
    assert len(list((path / "damaged").iterdir())) == 2 + 3  # shards, and what the index said of all three


def test_an_earlier_row_of_a_video_that_was_embedded_again_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_store(path, {"a": np.ones((2, 4)), "b": np.ones((1, 4))})
    with StoreWriter(path, MANIFEST) as writer:
        writer.add(video("a", np.full((2, 4), 2.0)), replaces=True)
    flip(shard(path, 1))
    repair_store(path, verify_store(path))
    assert EmbeddingStore.open(path).ids == ["b"]
    assert problems(path) == {}


@pytest.mark.parametrize("harm", ["lost", "empty", "odd", "another space", "another encoder"])
def test_a_manifest_is_written_again(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "s"
    right = write_store(path, random_videos(2)).manifest
    manifest = path / "manifest.json"
    text = manifest.read_text()
    if harm == "lost":
        manifest.unlink()
    else:
        harmed = {
            "empty": "",
            "odd": '{"schema_version": 1, "space_id": 3}',
            "another space": text.replace("test-space", "fest-space"),
            "another encoder": text.replace('"none"', '"nona"'),
        }
        manifest.write_text(harmed[harm])
    assert "manifest.json" in problems(path)
    found = verify_store(path)
    repair_store(path, found)
    assert found.repaired == ["manifest.json was written again, from data/part-00000000.parquet"]
    assert EmbeddingStore.open(path).manifest == right
    assert problems(path) == {}


def test_a_store_of_an_older_version_without_its_manifest_is_told(tmp_path: Path) -> None:
    write_store(tmp_path / "s", random_videos(1))
    as_version_0_1(tmp_path / "s")
    (tmp_path / "s/manifest.json").unlink()
    with pytest.raises(WorkError, match=r"no shard that tells what its rows mean .* restore manifest\.json"):
        repair_store(tmp_path / "s", verify_store(tmp_path / "s"))
    with pytest.raises(InputError, match="is no store"):
        verify_store(tmp_path)


def test_damaged_entries_of_the_index_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_store(path, random_videos(2), shard_bytes=1)
    before = {file.name: file.read_bytes() for file in (path / "index").iterdir()}
    for file in (path / "index").iterdir():
        flip(file, 5)
    assert len(problems(path)) == 2
    assert EmbeddingStore.open(path).ids == ["v000", "v001"]
    repair_store(path, verify_store(path))
    assert {file.name: file.read_bytes() for file in (path / "index").iterdir()} == before


def test_migrating_adds_hashes_and_columns_and_changes_no_value(tmp_path: Path) -> None:
    path = tmp_path / "s"
    videos = random_videos(3)
    write_store(path, videos, shard_bytes=1, failed={"bad": "it is damaged"})
    columns = {file: pq.read_schema(file).names for file in path.glob("*/part-*")}
    as_version_0_1(path)
    assert {file: pq.read_schema(file).names for file in path.glob("*/part-*")} != columns
    before = EmbeddingStore.open(path)
    fingerprint = before.fingerprint
    assert any("lvmae migrate" in note for note in verify_store(path).notes)
    assert migrate_store(path) == 4
    assert migrate_store(path) == 0
    # Other tools read all shards as one table, so old shards have the columns of new ones.
    assert {file: pq.read_schema(file).names for file in path.glob("*/part-*")} == columns
    after = EmbeddingStore.open(path)
    assert after.fingerprint == fingerprint
    assert {one.id: np.asarray(one.embeddings).tolist() for one in after} == {
        id_: rows.astype(np.float16).tolist() for id_, rows in videos.items()
    }
    assert [(one.id, one.reason) for one in after.failures] == [("bad", "it is damaged")]
    assert verify_store(path).notes == []
    flip(shard(path, 2))
    assert problems(path) == {"data/part-00000002.parquet": ("v002",)}


@pytest.mark.parametrize("old", [False, True], ids=["", "of an older version"])
@pytest.mark.parametrize("shard_bytes", [1, 10**6], ids=["shards of one", "one shard"])
def test_removed_is_gone_and_stays_out(tmp_path: Path, own_cache: Path, shard_bytes: int, old: bool) -> None:
    path, videos = tmp_path / "s", random_videos(4)
    videos["v001"][:] = 1.2344  # bytes that can be looked for
    write_store(path, videos, shard_bytes=shard_bytes, failed={"bad": "no such file"})
    if old:
        as_version_0_1(path)
    right = {one.id: one.embeddings.tolist() for one in EmbeddingStore.open(path)}
    needle = np.full(12, 1.2344, np.float16).tobytes()
    assert holds(own_cache, needle)
    other = write_store(tmp_path / "other", {"x": np.ones((1, 4))})
    assert other.ids == ["x"]  # its copy stays
    done = remove_videos(path, ["v001", "bad"])
    assert (done.videos, done.rows) == (1, 2)
    assert not holds(own_cache, needle)
    assert [entry.of for entry in cache.entries()] == [str(tmp_path / "other")]
    assert [file.parent.name for file in holds(path, b"v001")] == ["removed"]
    assert problems(path) == {}
    store = EmbeddingStore.open(path)
    assert {one.id: one.embeddings.tolist() for one in store} == {k: v for k, v in right.items() if k != "v001"}
    assert store.failures == []
    assert store.removed == {"v001", "bad"}
    with StoreWriter(path, MANIFEST) as writer:
        assert writer.removed == {"v001", "bad"}
        with pytest.raises(ValueError, match="'v001' was removed"):
            writer.add(video("v001", videos["v001"]))
        writer.admit(["v001", "never there"])
        writer.add(video("v001", videos["v001"]))
    assert {one.id: one.embeddings.tolist() for one in EmbeddingStore.open(path)} == right
    assert remove_videos(path, ["bad"]).rows == 0
    with pytest.raises(InputError, match="holds no video 'v9' and 1 more"):
        remove_videos(path, ["v002", "v9", "w9"])
    assert "v002" in EmbeddingStore.open(path).ids


class Killed(BaseException):
    """Stands for the end of a process: nothing handles it, and files that are half-written stay."""


def killed_at(step: int, call: Callable[[], object]) -> bool:
    """Runs a call that ends before its `step`-th change on the disk; whether it ended before its own end."""
    left = step

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def changed(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args, **kwargs)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "remove", lambda path: None)
        for owner, name in [(StoreFolder, "write"), (StoreFolder, "delete"), (StoreFolder, "move"), (Path, "replace")]:
            patch.setattr(owner, name, deadly(getattr(owner, name)))
        try:
            call()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("old", [False, True], ids=["", "of an older version"])
def test_a_removal_that_is_killed_anywhere_is_finished_by_the_same_command(tmp_path: Path, old: bool) -> None:
    videos = random_videos(5)
    for step in range(40):
        path = tmp_path / f"s{step}"
        for names in (("v000", "v001"), ("v002",), ("v003", "v004")):
            write_store(path, {name: videos[name] for name in names})
        if old:
            as_version_0_1(path)
        killed = killed_at(step, lambda path=path: remove_videos(path, ["v001", "v002"]))  # type: ignore[misc]
        ids = EmbeddingStore.open(path).ids
        assert ids in (["v000", "v001", "v002", "v003", "v004"], ["v000", "v003", "v004"])
        assert set(problems(path)) <= {"data"}
        remove_videos(path, ["v001", "v002"])
        assert EmbeddingStore.open(path).ids == ["v000", "v003", "v004"]
        assert problems(path) == {}
        assert {file.parent.name for name in (b"v001", b"v002") for file in holds(path, name)} == {"removed"}
        assert {file.parent.name for file in holds(path, b"v000")} == {"data", "index"}
        if not killed:
            break
    assert 6 < step < 39


def test_a_repair_that_is_killed_anywhere_is_finished_by_the_same_command(tmp_path: Path) -> None:
    for step in range(40):
        path = tmp_path / f"s{step}"
        write_store(path, random_videos(4), shard_bytes=1)
        flip(shard(path, 1))
        shard(path, 2).unlink()
        (path / "manifest.json").write_text("")
        killed = killed_at(step, lambda path=path: repair_store(path, verify_store(path)))  # type: ignore[misc]
        repair_store(path, verify_store(path))
        assert EmbeddingStore.open(path).ids == ["v000", "v003"]
        assert problems(path) == {}
        if not killed:
            break
    assert 6 < step < 39


def test_a_first_write_that_is_killed_anywhere_leaves_nothing_that_is_refused(tmp_path: Path) -> None:
    for step in range(12):
        path = tmp_path / f"s{step}"
        killed = killed_at(step, lambda path=path: StoreWriter(path, MANIFEST).close())  # type: ignore[misc]
        assert write_store(path, random_videos(1)).ids == ["v000"]
        assert (path / "README.md").exists()
        assert not list(path.rglob(".tmp-*"))
        if not killed:
            break
    assert 2 < step < 11


def test_the_command_removes_rows_of_captions_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "s", random_videos(3))
    captions = tmp_path / "captions.csv"
    captions.write_text('video,start,end,text\nv000,0,5,"a cat, asleep"\nv001,0,5,"a ""dog"""\nv001,5,10,x\n')
    (tmp_path / "ids.txt").write_text("v001\n\n")
    command = ["remove", str(tmp_path / "s"), "--ids-from", str(tmp_path / "ids.txt"), "--captions", str(captions)]
    assert main(command) == 0
    assert "1 videos removed (1 rows)" in capsys.readouterr().out
    assert captions.read_text() == 'video,start,end,text\nv000,0,5,"a cat, asleep"\n'
    assert main(["remove", str(tmp_path / "s")]) == 2
    assert main(["remove", str(tmp_path / "s"), "nobody"]) == 2


def test_a_removed_video_loses_its_tags(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", random_videos(4))
    (tmp_path / "s" / "tags.csv").write_text("")  # a table of no tags
    assert main(["remove", str(tmp_path / "s"), "v003"]) == 0
    tags = Tags(store)
    for name, tag in (("v000", "a, b"), ("v001", "night"), ("v001", "rain"), ("v002", "night")):
        tags.change(name, tag)
    assert main(["remove", str(tmp_path / "s"), "v001"]) == 0
    assert tags.path.read_text() == 'id,label\nv000,"a, b"\nv002,night\n'
    assert Tags(EmbeddingStore.open(tmp_path / "s")).all() == {"v000": ["a, b"], "v002": ["night"]}


def test_the_cache_is_listed_and_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert EmbeddingStore.open(write_store(tmp_path / "s", random_videos(3)).path).ids
    assert EmbeddingStore.open(write_store(tmp_path / "t", random_videos(3)).path).ids
    (tmp_path / "t").rename(tmp_path / "moved")
    assert main(["cache", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {entry["of"] for entry in told["entries"]} == {str(tmp_path / "s"), str(tmp_path / "t")}
    assert main(["cache", "--prune"]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "s") in out
    assert "1 entries" in out
    assert "1 deleted" in out
    assert main(["cache", "--max-size", "lots"]) == 2
    assert main(["cache", "--max-size", "1"]) == 0
    assert cache.entries() == []


def test_a_busy_store_is_neither_repaired_nor_migrated(tmp_path: Path) -> None:
    write_store(tmp_path / "s", random_videos(1))
    with StoreWriter(tmp_path / "s", MANIFEST):
        for call in (migrate_store, lambda path: remove_videos(path, ["v000"])):
            with pytest.raises(InputError, match="another process is writing to"):
                call(tmp_path / "s")


def test_a_run_lists_what_it_was_trained_on_and_was_removed_since(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", random_videos(3))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"model_type": "lvmae"}')
    (run / "recipe.json").write_text(json.dumps({"recipe": {}, "stores": [{"path": store.path, "fingerprint": "x"}]}))
    (run / "split.csv").write_text("id,split,store\nv000,train,0\nv001,held_out,0\nv002,train,0\n")
    assert "trained on, and removed since" not in inspect(run)
    remove_videos(store.path, ["v001", "v002"])
    assert inspect(run)["trained on, and removed since"] == ["v002"]


def test_a_run_of_an_older_version_is_migrated_to_the_present_fingerprint(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", random_videos(3))
    recipe = tmp_path / "run" / "recipe.json"
    recipe.parent.mkdir()
    stores = [{"path": store.path, "fingerprint": store.old_fingerprint}, {"path": "gone", "fingerprint": "0" * 16}]
    recipe.write_text(json.dumps({"recipe": {}, "stores": stores}))
    assert main(["migrate", str(recipe.parent)]) == 0
    told = json.loads(recipe.read_text())["stores"]
    assert [one["fingerprint"] for one in told] == [store.fingerprint, "0" * 16]
