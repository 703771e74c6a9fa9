"""PE-AV: transformers' own full forward pass on the same frames and texts, in both kinds of repository, and the contract.

The image tower is a timm model. Where timm cannot be imported (it needs a torchvision built for the torch that is installed), a ViT
of transformers stands in for that tower; everything after it is the real model, saved and loaded as users do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import (
    TEXTS,
    byte_vocabulary,
    clips,
    film_frames,
    holds_the_contract,
    randomised,
    recorded,
    refuses_other_weights,
)
from transformers import (
    AutoTokenizer,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PeVideoConfig,
    PeVideoModel,
    ViTConfig,
    ViTForImageClassification,
)

from lvmae.encoders import load_encoder
from lvmae.errors import InputError

SIZE = 28
PROCESSOR = {  # facebook/pe-av-base's, but for the size
    "video_processor_type": "PeVideoVideoProcessor",
    "size": {"height": SIZE, "width": SIZE},
    "crop_size": None,
    "do_center_crop": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "num_frames": None,
    "resample": 2,
    "rescale_factor": 1 / 255,
}


class Tower:
    """In the place of `AutoModelForImageClassification`: a ViT with as many outputs as the timm model has."""

    @staticmethod
    def from_config(config: Any) -> ViTForImageClassification:
        sides = {"image_size": SIZE, "patch_size": 14, "hidden_size": 32, "intermediate_size": 48}
        layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        return ViTForImageClassification(ViTConfig(**sides, **layers, num_labels=config.num_labels))


@pytest.fixture(scope="module", autouse=True)
def _tower() -> Iterator[None]:
    if find_spec("timm"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.pe_video.modeling_pe_video.AutoModelForImageClassification", Tower)
        patch.setattr("lvmae.encoders.pe_av.find_spec", lambda name: name)
        yield


def _configuration() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The text tower, the video encoder, and the sizes of an encoder."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"head_dim": 16}
    arguments = {"img_size": SIZE, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2}
    arguments |= {"ref_feat_shape": [2, 2]}
    tower = {"architecture": "vit_pe_core_large_patch14_336", "num_classes": 24, "global_pool": "map"}
    tower |= {"do_pooling": True, "model_args": arguments}
    text = {"model_type": "modernbert", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "vocab_size": len(byte_vocabulary("[CLS]", "[SEP]", "[PAD]")), "pad_token_id": 2}
    text |= {"max_position_embeddings": 64, "cls_token_id": 0, "sep_token_id": 1}
    return text, sizes | {"vision_config": tower}, sizes


def _save_the_rest(path: Path) -> None:
    """The processor, the licence, and a byte-level tokeniser that puts [CLS] in front, as ModernBERT's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = byte_vocabulary("[CLS]", "[SEP]", "[PAD]")
    bytes_ = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bytes_, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", model_max_length=512
    ).save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps({"video_processor": PROCESSOR}))
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as it is released: audio, video and both in one `PeAudioVideoModel`."""
    path = tmp_path_factory.mktemp("pe-av")
    text, video, sizes = _configuration()
    codec = {"model_type": "dac", "encoder_hidden_size": 8, "downsampling_ratios": [2, 2], "decoder_hidden_size": 16}
    audio = sizes | {"dac_config": codec | {"codebook_dim": 4, "n_codebooks": 1}}
    config = PeAudioVideoConfig(
        text_config=text, audio_video_config=sizes | {"audio_config": audio, "video_config": video}
    )
    torch.manual_seed(0)
    randomised(PeAudioVideoModel(config)).save_pretrained(path)
    _save_the_rest(path)
    return path


@pytest.fixture(scope="module")
def video_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a `PeVideoModel`."""
    path = tmp_path_factory.mktemp("pe-video")
    text, video, _ = _configuration()
    torch.manual_seed(1)
    randomised(PeVideoModel(PeVideoConfig(text_config=text, video_config=video))).save_pretrained(path)
    _save_the_rest(path)
    return path


@pytest.fixture(scope="module")
def encoder(whole: Path) -> Any:
    return load_encoder("pe-av", model=str(whole), device="cpu", num_frames=5)


def test_contract(encoder: Any) -> None:
    assert (encoder.dim, encoder.num_frames, encoder.image_size) == (16, 5, SIZE)
    assert (encoder.interpolation, encoder.framing, encoder.licence) == ("bilinear", "stretch", "apache-2.0")
    assert encoder.space_id.endswith("/5x28px-bilinear-stretch/class-token")
    holds_the_contract(encoder, "pe-av")


def _inputs(folder: Path, num_frames: int) -> dict[str, torch.Tensor]:
    pixels = (torch.tensor(clips(num_frames, SIZE)).permute(0, 1, 4, 2, 3) / 255 - 0.5) / 0.5
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    return {"pixel_values_videos": pixels, **{key: tokens[key] for key in ("input_ids", "attention_mask")}}


def test_equals_the_full_forward_pass(encoder: Any, whole: Path) -> None:
    network = PeAudioVideoModel.from_pretrained(whole).eval()
    with torch.no_grad():
        output = network.video_model(**_inputs(whole, 5))
    video, text = (torch.nn.functional.normalize(v, dim=-1) for v in (output.video_embeds, output.text_video_embeds))
    np.testing.assert_allclose(encoder.encode_video(clips(5, SIZE)), video.numpy(), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), text.numpy(), atol=2e-6)


def test_pixels_are_the_models_own(encoder: Any, tmp_path: Path) -> None:
    """On frames of the model's size to rounding; on others, up to how FFmpeg's scaler and torchvision's round."""
    ours = encoder.pixels(torch.tensor(clips(5, SIZE)[0]))
    torch.testing.assert_close(ours, recorded("pe-av.same"), atol=1e-6, rtol=0)
    for width, height in ((120, 80), (64, 112)):
        _, prepared = film_frames(tmp_path / f"{width}.mkv", (width, height), encoder)
        difference = (encoder.pixels(torch.tensor(prepared)) - recorded(f"pe-av.{width}x{height}")).abs() * 0.5 * 255
        assert float(difference.mean()) < 0.5
        assert float(difference.max()) < 2.01


def test_a_video_model_alone(video_alone: Path) -> None:
    encoder: Any = load_encoder("pe-av", model=str(video_alone), device="cpu")
    assert encoder.num_frames == 16
    with torch.no_grad():
        output = PeVideoModel.from_pretrained(video_alone).eval()(**_inputs(video_alone, 16))
    expected = torch.nn.functional.normalize(output.video_embeds, dim=-1)
    np.testing.assert_allclose(encoder.encode_video(clips(16, SIZE)), expected.numpy(), atol=2e-6)


def test_the_number_of_frames_a_model_was_trained_on(video_alone: Path) -> None:
    path = video_alone / "processor_config.json"
    before = path.read_text()
    path.write_text(json.dumps({"video_processor": PROCESSOR | {"num_frames": 8}}))
    try:
        assert load_encoder("pe-av", model=str(video_alone), device="cpu").num_frames == 8
    finally:
        path.write_text(before)


def test_loading_prints_nothing(video_alone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_encoder("pe-av", model=str(video_alone), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_other_weights_are_refused(video_alone: Path) -> None:
    refuses_other_weights(video_alone, "pe-av", "video_head.proj.weight", device="cpu")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    _save_the_rest(tmp_path)
    with pytest.raises(InputError, match="is a vit model, not a PE-AV one"):
        load_encoder("pe-av", model=str(tmp_path))


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmae.encoders.pe_av.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs timm: pip install 'lvmae\[pe-av\]'"):
        load_encoder("pe-av")
