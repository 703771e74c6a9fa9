"""VideoPrism LvT: transformers' own full forward pass on the same frames and texts, its pixels, and what every adapter promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import (
    TEXTS,
    clips,
    film_frames,
    holds_the_contract,
    randomised,
    recorded,
    refuses_other_weights,
)
from transformers import VideoPrismClipModel, VideoPrismConfig, VideoPrismTokenizer

from lvmae.encoders import load_encoder
from lvmae.encoders.videoprism import canonical
from lvmae.errors import InputError

SIZE = 36
PROCESSOR = {  # tests/golden/make_processors.py has the same
    "video_processor_type": "LlavaOnevisionVideoProcessor",
    "resample": 3,
    "size": {"height": 288, "width": 288},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer LvT for 4 frames of 36 pixels."""
    path = tmp_path_factory.mktemp("videoprism")
    letters = [(f"{start}{letter}", -2.0) for letter in "abcdefghijklmnopqrstuvwxyz." for start in ("", "▁")]
    tokenizer = VideoPrismTokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters])
    tokenizer.save_pretrained(path)
    width = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    vision = {"image_size": SIZE, "num_frames": 4, "num_spatial_layers": 1, "num_temporal_layers": 1}
    vision |= {"num_auxiliary_layers": 1}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 1}
    torch.manual_seed(0)
    network = VideoPrismClipModel(VideoPrismConfig(vision_config=width | vision, text_config=width | text))
    randomised(network).save_pretrained(path)
    (path / "video_preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Any:
    return load_encoder("videoprism", model=str(folder), device="cpu")


def test_contract(encoder: Any) -> None:
    assert (encoder.dim, encoder.num_frames, encoder.image_size) == (32, 4, SIZE)
    assert (encoder.interpolation, encoder.framing) == ("bicubic", "stretch")
    assert encoder.licence == "apache-2.0"
    assert encoder.space_id.endswith("/4x36px-bicubic-stretch/attention")
    holds_the_contract(encoder, "videoprism")


def test_equals_the_full_forward_pass(encoder: Any, folder: Path) -> None:
    network = VideoPrismClipModel.from_pretrained(folder).eval()
    frames = clips(4, SIZE)
    pixels = torch.tensor(frames).permute(0, 1, 4, 2, 3) / 255
    tokens = VideoPrismTokenizer.from_pretrained(folder)(
        [canonical(text) for text in TEXTS], padding="max_length", max_length=64, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = network(
            pixel_values_videos=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    # The model's own normalisation adds 1e-6 under the root.
    np.testing.assert_allclose(encoder.encode_video(frames), output.video_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), output.text_embeds.numpy(), atol=2e-6)


def test_texts_are_written_as_in_training() -> None:
    assert canonical("Hello,  WORLD!..") == "hello world."
    assert canonical("a dog_on-a beach.") == "a dog on a beach."
    assert canonical("") == "."


def test_upper_case_and_punctuation_do_not_matter(encoder: Any) -> None:
    one, other = encoder.encode_text(["a red flower", "A red FLOWER!"])
    np.testing.assert_array_equal(one, other)


def test_pixels_are_the_models_own(encoder: Any, tmp_path: Path) -> None:
    """On frames of the model's size to rounding; on others, up to how FFmpeg's scaler and torchvision's round."""
    ours = encoder.pixels(torch.tensor(clips(4, SIZE)[0]))
    torch.testing.assert_close(ours, recorded("videoprism.same"), atol=1e-6, rtol=0)
    for width, height in ((120, 80), (64, 112)):
        _, prepared = film_frames(tmp_path / f"{width}.mkv", (width, height), encoder)
        difference = (encoder.pixels(torch.tensor(prepared)) - recorded(f"videoprism.{width}x{height}")).abs() * 255
        assert float(difference.mean()) < 0.5
        assert float(difference.max()) < 2.01


def test_another_number_of_frames(folder: Path) -> None:
    encoder = load_encoder("videoprism", model=str(folder), num_frames="6", device="cpu")
    assert encoder.num_frames == 6
    assert encoder.encode_video(clips(6, SIZE)).shape == (3, 32)
    assert encoder.space_id != load_encoder("videoprism", model=str(folder), device="cpu").space_id


def test_large_is_another_default() -> None:
    with pytest.raises(InputError, match="google/videoprism-lvt-large-f8r288"):
        load_encoder("videoprism-large")  # no network here; the sentence names what is missing


def test_other_weights_are_refused(folder: Path) -> None:
    refuses_other_weights(folder, "videoprism", "text_model.layernorm.weight", device="cpu")
