"""X-CLIP: transformers' own full forward pass and processor on the same frames and texts, and what every adapter promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import (
    TEXTS,
    byte_vocabulary,
    clip_tokenizer,
    clips,
    edit_json,
    film_frames,
    holds_the_contract,
    randomised,
    refuses_other_weights,
)
from transformers import AutoImageProcessor, CLIPTokenizer, XCLIPConfig, XCLIPModel

from lvmae.encoders import load_encoder

SIZE = 32
# What microsoft/xclip-base-patch32 holds, but for the size.
PROCESSOR = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "VideoMAEFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "processor_class": "XCLIPProcessor",
    "resample": 2,
    "size": SIZE,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer X-CLIP for 4 frames of 32 pixels."""
    path = tmp_path_factory.mktemp("xclip")
    clip_tokenizer(24).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (path / "README.md").write_text("---\nlicense: mit\n---\n")
    vocabulary = byte_vocabulary("<|startoftext|>", "<|endoftext|>")
    width = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    vision = {"image_size": SIZE, "patch_size": 8, "num_frames": 4, "mit_hidden_size": 16, "mit_intermediate_size": 24}
    vision |= {"mit_num_hidden_layers": 1, "mit_num_attention_heads": 2}
    torch.manual_seed(0)
    config = XCLIPConfig(
        text_config=width | text,
        vision_config=width | vision,
        projection_dim=16,
        prompt_num_attention_heads=2,
        prompt_layers=1,
    )
    randomised(XCLIPModel(config)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Any:
    return load_encoder("xclip", model=str(folder), device="cpu")


def test_contract(encoder: Any) -> None:
    assert (encoder.dim, encoder.num_frames, encoder.image_size) == (16, 4, SIZE)
    assert (encoder.interpolation, encoder.framing, encoder.licence) == ("bilinear", "crop", "mit")
    assert encoder.space_id.endswith("/4x32px-bilinear-crop/multiframe-integration")
    holds_the_contract(encoder, "xclip")


def test_equals_the_full_forward_pass(encoder: Any, folder: Path) -> None:
    """Video: as it is. Texts: where the prompts, which depend on the video, add nothing; where they do, the full model's differ."""
    network = XCLIPModel.from_pretrained(folder).eval()
    frames = clips(4, SIZE)
    mean, std = (torch.tensor(PROCESSOR[key])[:, None, None] for key in ("image_mean", "image_std"))
    pixels = (torch.tensor(frames).permute(0, 1, 4, 2, 3) / 255 - mean) / std
    tokens = CLIPTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        prompted = network(pixel_values=pixels, **tokens)
        network.prompts_generator.alpha.zero_()
        plain = network(pixel_values=pixels, **tokens)
    np.testing.assert_allclose(encoder.encode_video(frames), prompted.video_embeds.numpy(), atol=1e-6)
    for of_one_video in plain.text_embeds:
        np.testing.assert_allclose(encoder.encode_text(TEXTS), of_one_video.numpy(), atol=1e-6)
    assert np.abs(encoder.encode_text(TEXTS) - prompted.text_embeds[0].numpy()).max() > 1e-3


def _processor(folder: Path) -> Any:
    """The model's own. Its class cuts out 224 pixels where the file is silent, which suits all released models but those of 336."""
    return AutoImageProcessor.from_pretrained(folder, crop_size={"height": SIZE, "width": SIZE})


def test_pixels_are_the_models_own(encoder: Any, folder: Path) -> None:
    processor = _processor(folder)
    frames = clips(4, SIZE)
    own = processor([list(clip) for clip in frames], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(encoder.pixels(torch.tensor(frames)), own, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(120, 80), (64, 112)])
def test_resized_frames_are_nearly_the_models_own(
    encoder: Any, folder: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """FFmpeg's scaler and Pillow's differ in how they round: by 0.2 of 255 on average, and by 1 at most."""
    whole, prepared = film_frames(tmp_path / "film.mkv", size, encoder)
    own = _processor(folder)(list(whole), return_tensors="pt")["pixel_values"]
    ours = encoder.pixels(torch.tensor(prepared)[None])
    std = torch.tensor(PROCESSOR["image_std"])[:, None, None]
    difference = (ours - own).abs() * std * 255
    assert float(difference.mean()) < 0.4
    assert float(difference.max()) < 1.01
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(encoder._embed_video(own), dim=-1)[0].numpy()
    assert float(encoder.encode_video(prepared[None])[0] @ theirs) > 0.999


def test_a_large_model_is_cut_out_as_large(folder: Path) -> None:
    """xclip-large-patch14-16-frames says `"size": 336` and no crop size: 336 pixels reach the network."""
    from lvmae.encoders.xclip import _pixels

    assert str(_pixels(PROCESSOR | {"size": 336})) == "336px-bilinear-crop"
    assert _pixels({}) == _pixels(PROCESSOR | {"size": 224})
    written = {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
    }  # as transformers 4 and 5 save it
    assert str(_pixels(PROCESSOR | written)) == "256px-bilinear-crop-centre224"


def test_other_weights_are_refused(folder: Path) -> None:
    refuses_other_weights(folder, "xclip", "mit.position_embedding", device="cpu")


def test_another_kind_of_model_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    from lvmae.errors import InputError, WorkError

    other = shutil.copytree(folder, tmp_path / "other")
    edit_json(other / "config.json", projection_dim=24)
    with pytest.raises((InputError, WorkError), match=str(other)):
        load_encoder("xclip", model=str(other))
