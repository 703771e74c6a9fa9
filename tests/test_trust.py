"""A store is somebody's data: the code that it names runs only for those who allow it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lvmae.encoders import encoder_of, load_encoder
from lvmae.errors import InputError
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord
from lvmae.trust import VARIABLE, UntrustedCodeError, is_trusted, trusting

# An encoder of two words, which writes a file as soon as it is imported.
_ENCODER = """
from pathlib import Path
import numpy as np
Path(__file__).with_suffix(".ran").touch()
class Planted:
    name, dim, num_frames, image_size, interpolation, framing, has_text = "planted", 2, 1, 1, "bicubic", "crop", True
    space_id, licence, options, vocabulary = "planted", "CC0", {}, ("cat", "dog")
    def encode_video(self, frames): return np.zeros((len(frames), 2), np.float32)
    def encode_text(self, texts): return np.array([[1.0, 0] if "cat" in text else [0, 1.0] for text in texts], np.float32)
    def self_test(self): ...
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "strangers.py").write_text(_ENCODER)
    with StoreWriter(
        tmp_path / "store", Manifest("planted", 2, {"kind": "fixed", "seconds": 5.0}, {"name": "strangers:Planted"})
    ) as writer:
        starts = np.arange(4) * 5.0
        turns = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
        writer.add(VideoRecord("film", "", 20.0, starts, starts + 5, turns))
    return tmp_path / "store"


def lvmae(store: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != VARIABLE}
    paths = os.pathsep.join([str(store.parent), clean.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "lvmae", *map(str, arguments)],
        env={**clean, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_search_runs_no_code_of_a_store_unless_told(store: Path) -> None:
    refused = lvmae(store, "search", store, "a cat")
    assert refused.returncode == 2
    assert "names the code 'strangers:Planted', and nothing of it was run" in refused.stderr
    assert "--trust-code" in refused.stderr
    assert not (store.parent / "strangers.ran").exists()
    untitled = lvmae(store, "timeline", store, "film")
    assert untitled.returncode == 0
    assert "no titles" in untitled.stderr
    assert not (store.parent / "strangers.ran").exists()
    allowed = lvmae(store, "search", store, "a cat", "--trust-code")
    assert (allowed.returncode, "film" in allowed.stdout) == (0, True)
    listed = lvmae(store, "search", store, "a cat", **{VARIABLE: "mine:Other, strangers:Planted"})
    assert listed.returncode == 0


def test_trust_ends_with_its_block(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(store.parent))
    manifest = EmbeddingStore.open(store).manifest
    with pytest.raises(UntrustedCodeError, match=r"with lvmae.trusting\(\)") as caught:
        encoder_of(manifest)
    assert "--" not in str(caught.value)
    with trusting():
        assert encoder_of(manifest).name == "planted"
    with pytest.raises(InputError):
        encoder_of(manifest)
    assert load_encoder("strangers:Planted").dim == 2  # named by the caller, not by data


def test_the_users_own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mine:Encoder,lab.models")
    names = ("mine:Encoder", "mine:Other", "lab.models:Any", "lab.models.inner:Any", "lab:models")
    assert [is_trusted(name) for name in names] == [True, False, True, False, False]
