"""The cache gives what was written into it, or makes it again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lvmae.errors import InputError, WorkError
from lvmae.files import cache
from lvmae.files.cache import bytes_of, cached, entries, forget, prune

CONTENT = bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Writes a file, or a folder of two files, and counts."""

    def __init__(self, *, a_folder: bool = False) -> None:
        self.times, self._a_folder = 0, a_folder

    def __call__(self, path: Path) -> None:
        self.times += 1
        if self._a_folder:
            path.mkdir()
            (path / "tokenizer.json").write_bytes(CONTENT)
            (path / "inner").mkdir()
            (path / "inner" / "weights").write_bytes(CONTENT[::-1])
        else:
            path.write_bytes(CONTENT)


def test_it_is_made_once_and_its_use_is_noted(folder: Path) -> None:
    make = Maker()
    path = cached("stores", "one.arrow", make, of="/films/store")
    about = path.with_name("one.arrow.about.json")
    os.utime(about, (1, 1))
    assert cached("stores", "one.arrow", make) == path == folder / "stores" / "one.arrow"
    assert make.times == 1
    (entry,) = entries()
    assert (entry.kind, entry.of, entry.size) == ("stores", "/films/store", len(CONTENT))
    assert entry.used == pytest.approx(time.time(), abs=600)


def _overwritten(path: Path, content: bytes) -> None:
    """With the old times, as a tool that restores them would do it."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: _overwritten(path, CONTENT[:-100]),
        lambda path: _overwritten(path, b""),
        lambda path: _overwritten(path, bytes(len(CONTENT))),
        lambda path: _overwritten(path, CONTENT[:77] + bytes([CONTENT[77] ^ 4]) + CONTENT[78:]),
        Path.unlink,
        lambda path: path.with_name(path.name + ".about.json").unlink(missing_ok=True),
        lambda path: path.with_name(path.name + ".about.json").write_text('{"files": {".": 3}}'),
        lambda path: path.with_name(path.name + ".about.json").write_text("[" * 100_000),
    ],
    ids=["truncated", "empty", "zeroed", "a bit", "gone", "unnoted", "odd note", "nested note"],
)
def test_damage_is_noticed_and_made_good(harm: Callable[[Path], None]) -> None:
    make = Maker()
    path = cached("stores", "one", make)
    harm(path)
    assert cached("stores", "one", make).read_bytes() == CONTENT
    assert make.times == 2
    cached("stores", "one", make)
    assert make.times == 2


def test_a_folder_with_a_changed_missing_or_further_file_is_made_again() -> None:
    make = Maker(a_folder=True)
    path = cached("conse", "sentences", make)
    for number, harm in enumerate(
        [
            lambda: _overwritten(path / "inner" / "weights", CONTENT),
            (path / "tokenizer.json").unlink,
            (path / "added").touch,
        ]
    ):
        harm()
        assert (cached("conse", "sentences", make) / "inner" / "weights").read_bytes() == CONTENT[::-1]
        assert make.times == number + 2
    assert {part.name for part in path.iterdir()} == {"tokenizer.json", "inner"}


def test_a_copied_cache_is_taken_after_its_bytes_were_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    cached("stores", "one", make)
    shutil.copytree(folder, folder.with_name("copy"))
    monkeypatch.setenv("LVMAE_CACHE", str(folder.with_name("copy")))
    cached("stores", "one", make)
    assert make.times == 1
    monkeypatch.setattr(cache, "_sha256", lambda path: pytest.fail("the bytes were noted and need not be read again"))
    cached("stores", "one", make)


def test_a_limit_evicts_what_was_not_used_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(["new", "old", "oldest"]):
        path = cached("stores", name, Maker())
        used = time.time() - 7200 * age
        os.utime(path.with_name(name + ".about.json"), (used, used))
    monkeypatch.setenv("LVMAE_CACHE_LIMIT", str(2 * len(CONTENT)))
    cached("stores", "newest", Maker())
    assert {entry.path.name for entry in entries()} == {"new", "newest"}
    monkeypatch.setenv("LVMAE_CACHE_LIMIT", "1")  # what is in use stays
    cached("stores", "last", Maker())
    assert {entry.path.name for entry in entries()} == {"new", "newest", "last"}
    monkeypatch.setenv("LVMAE_CACHE_LIMIT", "much")
    with pytest.raises(InputError, match="'much' is not a size; write it like 500M or 20GB"):
        cached("stores", "further", Maker())


def test_pruning_takes_copies_of_what_is_gone(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "store").mkdir()
    cached("stores", "there", Maker(), of=str(tmp_path / "store"))
    cached("stores", "gone", Maker(), of=str(tmp_path / "gone"))
    cached("stores", "afar", Maker(), of="s3://bucket/store")
    cached("conse", "sentences", Maker(a_folder=True), of="a-package")
    (folder / "stores" / "old-version.arrow").write_bytes(b"old")
    unfinished = folder / "stores" / ".tmp-0123"
    unfinished.touch()
    assert {entry.path.name for entry in prune(gone=True)} == {"gone", "old-version.arrow"}
    os.utime(unfinished, (1, 1))
    assert [entry.path for entry in prune(gone=True)] == [unfinished]
    assert forget(str(tmp_path / "store")) == 1
    assert [entry.path.name for entry in entries()] == ["sentences", "afar"]
    prune(everything=True)
    assert entries() == []
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(WorkError, match=r"could not write to the cache .*; point LVMAE_CACHE to a folder with room$"):
        cached("stores", "one", Maker())

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WorkError, match="the disk is full"):
        cached("stores", "one", full)
    assert entries() == []


def test_sizes_are_read_as_people_write_them() -> None:
    assert [bytes_of(size) for size in ("7", "500M", "1.5 GB", "2tib", "10k")] == [
        7,
        5 * 10**8,
        15 * 10**8,
        2 * 10**12,
        10**4,
    ]
    with pytest.raises(InputError):
        bytes_of("-1")
