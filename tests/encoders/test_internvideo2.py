"""InternVideo2: a small repository with code of its own and the documented methods, and that its code runs only by permission."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import TEXTS, clips, film_frames, holds_the_contract, randomised, refuses_other_weights
from transformers import AutoConfig, AutoModel

from lvmae.embedding import embed_videos
from lvmae.encoders import encoder_of, load_encoder
from lvmae.errors import InputError
from lvmae.store import EmbeddingStore, Manifest

SIZE = 28
# The interface of OpenGVLab's repositories: features have length 1 and, of a video, a dimension of one; a text comes alone.
CODE = """
import os
import torch
from transformers import PretrainedConfig, PreTrainedModel

if "CANARY" in os.environ:
    open(os.environ["CANARY"], "w").write("the repository's code has run")


class InternVideo2Config(PretrainedConfig):
    model_type = "small_internvideo2"

    def __init__(self, embed_dim=12, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim


class InternVideo2_Stage2(PreTrainedModel):
    config_class = InternVideo2Config

    def __init__(self, config):
        super().__init__(config)
        self.vision_encoder = torch.nn.Conv3d(3, 8, (2, 14, 14), stride=(1, 14, 14))
        self.vision_proj = torch.nn.Linear(8, config.embed_dim)
        self.text_encoder = torch.nn.Embedding(128, config.embed_dim)
        self.post_init()

    def get_vid_feat(self, frames):
        x = torch.tanh(self.vision_encoder(frames.permute(0, 2, 1, 3, 4))).amax((2, 3, 4))
        x = self.vision_proj(x)[:, None]
        x /= x.norm(dim=-1, keepdim=True)
        return x
    METHODS

"""
TEXT_METHOD = """
    def get_txt_feat(self, text):
        assert isinstance(text, str)
        ids = torch.tensor([[ord(c) % 128 for c in "^" + text][:32]]).to(self.config.device)
        x = self.text_encoder(ids).mean(1)
        return x / x.norm(dim=-1, keepdim=True)
"""


def _repository(path: Path, methods: str = TEXT_METHOD, **config: Any) -> Path:
    path.mkdir(parents=True)
    (path / "modeling_internvideo2.py").write_text(CODE.replace("    METHODS\n", methods))
    where = {"AutoConfig": "InternVideo2Config", "AutoModel": "InternVideo2_Stage2"}
    auto_map = {auto: f"modeling_internvideo2.{name}" for auto, name in where.items()}
    (path / "config.json").write_text(json.dumps({"model_type": "small_internvideo2", "auto_map": auto_map} | config))
    (path / "README.md").write_text("---\nlicense: mit\n---\n")
    torch.manual_seed(0)
    configuration = AutoConfig.from_pretrained(path, trust_remote_code=True)
    network = AutoModel.from_config(configuration, trust_remote_code=True)
    randomised(network)
    network.save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"model_type": "small_internvideo2", "auto_map": auto_map} | config))
    return path


@pytest.fixture(autouse=True)
def _no_permission(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("LVMAE_TRUST_REMOTE_CODE", "")  # so that what a test sets is taken back


@pytest.fixture(scope="module", autouse=True)
def _modules(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where transformers copies a repository's code to."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _repository(tmp_path_factory.mktemp("internvideo2") / "stage2-f4")


OPTIONS: dict[str, Any] = {"image_size": SIZE, "device": "cpu"}


def test_contract(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder("internvideo2", model=str(folder), trust_remote_code="true", **OPTIONS)
    assert (encoder.dim, encoder.num_frames, encoder.image_size) == (12, 4, SIZE)
    assert (encoder.interpolation, encoder.framing, encoder.licence) == ("bilinear", "stretch", "mit")
    assert "trust_remote_code" not in encoder.options
    monkeypatch.setenv("LVMAE_TRUST_REMOTE_CODE", os.fspath(folder))
    holds_the_contract(encoder, "internvideo2")


def test_equals_the_repositorys_own_calls(folder: Path) -> None:
    encoder = load_encoder("internvideo2", model=str(folder), trust_remote_code=True, **OPTIONS)
    network = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    network.config.device = "cpu"
    frames = clips(4, SIZE)
    normalised = (frames / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        video = network.get_vid_feat(torch.tensor(normalised).permute(0, 1, 4, 2, 3).float())[:, 0]
        text = torch.cat([network.get_txt_feat(t) for t in TEXTS])
    np.testing.assert_allclose(encoder.encode_video(frames), video.numpy(), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), text.numpy(), atol=1e-6)


def test_no_code_runs_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    # Permission for one model is none for another.
    load_encoder("internvideo2", model=str(folder), trust_remote_code=True, **OPTIONS)
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    stranger = shutil.copytree(folder, tmp_path / "stranger")
    for options in ({}, {"trust_remote_code": "false"}):
        with pytest.raises(InputError, match=r"trust_remote_code=true .*`lvmae import`"):
            load_encoder("internvideo2", model=str(stranger), **options, **OPTIONS)
    # Nor does a store give it, whatever its manifest says.
    encoder = {"name": "internvideo2", "options": {"model": str(stranger), "trust_remote_code": True}}
    with pytest.raises(InputError, match="trust_remote_code=true"):
        encoder_of(Manifest(space_id="x", dim=12, segments={}, encoder=encoder))
    assert not canary.exists()
    load_encoder("internvideo2", model=str(stranger), trust_remote_code=True, **OPTIONS)
    assert canary.exists()  # the canary sings


def test_permission_reaches_a_stores_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_encoder("internvideo2", model=str(folder), trust_remote_code=True, **OPTIONS)
    manifest = Manifest(
        space_id=made.space_id, dim=12, segments={}, encoder={"name": "internvideo2", "options": made.options}
    )
    monkeypatch.setenv("LVMAE_TRUST_REMOTE_CODE", "")
    with pytest.raises(InputError, match="LVMAE_TRUST_REMOTE_CODE="):
        encoder_of(manifest)
    monkeypatch.setenv("LVMAE_TRUST_REMOTE_CODE", os.fspath(folder))
    np.testing.assert_array_equal(encoder_of(manifest).encode_text(TEXTS), made.encode_text(TEXTS))


def test_a_change_of_the_code_is_another_space(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "stage2-f4")
    with (other / "modeling_internvideo2.py").open("a") as file:
        file.write("# changed\n")
    spaces = {
        load_encoder("internvideo2", model=str(f), trust_remote_code=True, **OPTIONS).space_id for f in (folder, other)
    }
    assert len(spaces) == 2


def test_without_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _repository(tmp_path / "vision_only", "")
    encoder = load_encoder("internvideo2", model=str(path), trust_remote_code=True, num_frames=8, **OPTIONS)
    assert (encoder.dim, encoder.has_text) == (12, False)
    monkeypatch.setenv("LVMAE_TRUST_REMOTE_CODE", os.fspath(path))
    holds_the_contract(encoder, "internvideo2")
    with pytest.raises(InputError, match="no text side"):
        encoder.encode_text(["a"])


def test_code_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = _repository(tmp_path / "other_methods", "")
    code = path / "modeling_internvideo2.py"
    code.write_text(code.read_text().replace("get_vid_feat", "get_something"))
    with pytest.raises(InputError, match="has no get_vid_feat"):
        load_encoder("internvideo2", model=str(path), trust_remote_code=True, **OPTIONS)
    code.write_text("import a_package_that_is_not_here\n" + code.read_text())
    with pytest.raises(InputError, match=r"needs other packages: .*a_package_that_is_not_here"):
        load_encoder("internvideo2", model=str(path), trust_remote_code=True, **OPTIONS)


def test_other_weights_are_refused(folder: Path) -> None:
    """What is left over is the repository's affair."""
    refuses_other_weights(
        folder, "internvideo2", "vision_proj.weight", strangers=False, trust_remote_code=True, **OPTIONS
    )


def test_a_job_and_its_workers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The permission reaches the processes that embed, and the store does not hold it."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = load_encoder("internvideo2", model=str(folder), trust_remote_code=True, **OPTIONS)
    monkeypatch.setenv("LVMAE_TRUST_REMOTE_CODE", "")
    (tmp_path / "films").mkdir()
    film_frames(tmp_path / "films" / "pan.mkv", (64, 48), made)
    summary = embed_videos(
        tmp_path / "films",
        tmp_path / "store",
        encoder="internvideo2",
        encoder_options={"model": str(folder), "trust_remote_code": "true", **OPTIONS},
        segment_seconds=1.0,
        workers=1,
    )
    assert (summary.embedded, summary.failed) == (1, 0)
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.space_id == made.space_id
    assert "trust" not in (tmp_path / "store" / "manifest.json").read_text()
    _, prepared = film_frames(tmp_path / "again.mkv", (64, 48), made)
    np.testing.assert_allclose(store[0].embeddings, made.encode_video(prepared[None]), atol=1e-3)  # float16
