"""What is to be embedded, and under which id."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmae.embedding import find_videos
from lvmae.errors import InputError


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/x.MKV", "a/x.mp4", "a/y.webm", "notes.txt", ".hidden.mp4", "a.b.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {v.id: v.path for v in find_videos(tmp_path)}
    assert list(found) == ["a/x.MKV", "a/x.mp4", "a/y", "a.b", "b"]
    assert found["a/x.MKV"] == str(tmp_path / "a/x.MKV")
    assert [v.id for v in find_videos([tmp_path / "b.mp4", str(tmp_path / "a")])] == ["b", "x.MKV", "x.mp4", "y"]
    assert [v.id for v in find_videos(tmp_path / "notes.txt")] == ["notes"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="There is no video in"):
        find_videos(tmp_path / "none")
    with pytest.raises(InputError, match="no file or folder"):
        find_videos(tmp_path / "missing")
