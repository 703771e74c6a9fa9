"""Writing whole or not at all, and one writer at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvmae.errors import InputError, WorkError
from lvmae.files.locks import Lock
from lvmae.files.writing import remove_leftovers, replacing, write_bytes, write_json, write_text


def test_a_file_is_replaced_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "film.txt"
    target.write_text("old")
    with replacing(target) as beside:
        beside.write_text("new")
        assert beside.suffix == ".txt"
        assert beside.parent == tmp_path
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["film.txt"]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "kept").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as beside:  # noqa: PT012
        beside.mkdir()
        (beside / "half").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (target / "kept").read_text() == "old"


def test_what_a_killed_process_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from lvmae.files.writing import replacing\n"
        "with replacing(sys.argv[1]) as beside: beside.mkdir(); (beside / 'half').touch(); os._exit(9)"
    )
    (tmp_path / "inner").mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "inner/folder")], check=False)
    assert done.returncode == 9
    assert len(list((tmp_path / "inner").iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list((tmp_path / "inner").iterdir()) == []


def test_json_is_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "value.json", {"id": "Ünï"})
    assert (tmp_path / "value.json").read_bytes() == '{\n  "id": "Ünï"\n}\n'.encode()


def test_errors_say_why_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(WorkError, match=r"plain/file could not be written: .*\.$"):
        write_text(tmp_path / "plain" / "file", "text")
    (tmp_path / "plain").unlink()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"file could not be written: the disk is full\.$"):
        write_bytes(tmp_path / "file", b"bytes")
    assert list(tmp_path.iterdir()) == []


def test_one_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    first, second = (Lock(tmp_path / "new" / ".lock", "somebody is at work here") for _ in range(2))
    first.take()
    with pytest.raises(InputError, match=r"^somebody is at work here$"):
        second.take()
    first.release()
    second.take()
    second.release()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file where a folder is needed"):
        Lock(tmp_path / "file" / ".lock", "busy").take()


def test_links_pipes_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept" / "file")
    write_text(tmp_path / "link", "through")
    assert (tmp_path / "kept" / "file").read_text() == "through"
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    write_text(tmp_path / "pipe", "into")
    assert reader.communicate()[0] == b"into"
    write_text("/dev/null", "gone")
    assert Path("/dev/null").is_char_device()
