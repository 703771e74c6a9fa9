"""sentence-transformers' multimodal models: a CLIP by frames, a Qwen3-VL-Embedding by videos, against the library's own calls."""

from __future__ import annotations

import json
from importlib.util import find_spec
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
    holds_the_contract,
    randomised,
    refuses_other_weights,
)
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from lvmae.encoders import load_encoder
from lvmae.errors import InputError

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.base.modules import Transformer  # noqa: E402

SIZE = 32
PROMPTS = {"query": "find: ", "document": ""}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer CLIP, as sentence-transformers saves it, with a prompt for queries."""
    source, path = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("sentence-clip")
    width = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    vocabulary = byte_vocabulary("<|startoftext|>", "<|endoftext|>")
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    vision = {"image_size": SIZE, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=width | text, vision_config=width | vision, projection_dim=16)
    randomised(CLIPModel(config)).save_pretrained(source)
    sides = {"height": SIZE, "width": SIZE}
    pixels = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=sides)
    CLIPProcessor(image_processor=pixels, tokenizer=clip_tokenizer(24)).save_pretrained(source)
    model = SentenceTransformer(modules=[Transformer(str(source))], device="cpu", prompts=PROMPTS)
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def encoder(clip: Path) -> Any:
    return load_encoder("sentence-transformers", model=str(clip), num_frames=4, device="cpu")


def test_contract(encoder: Any) -> None:
    assert (encoder.dim, encoder.num_frames, encoder.image_size) == (16, 4, SIZE)
    assert (encoder.interpolation, encoder.framing) == ("bicubic", "crop")
    assert encoder.space_id.endswith("/4x32px-bicubic-crop/mean-of-normalised-frames")
    holds_the_contract(encoder, "sentence-transformers", in_time=False)


def test_equals_the_librarys_own_calls(encoder: Any, clip: Path) -> None:
    """Pictures against the network and processor by hand; texts, which have the prompt for queries, against the library."""
    from PIL import Image

    network, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    frames = clips(4, SIZE)
    pictures = [Image.fromarray(frame) for frame in frames.reshape(-1, SIZE, SIZE, 3)]
    with torch.no_grad():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        features = torch.nn.functional.normalize(network.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        expected = torch.nn.functional.normalize(features.reshape(3, 4, -1).mean(1), dim=-1)
    np.testing.assert_allclose(encoder.encode_video(frames), expected.numpy(), atol=2e-6)

    library = SentenceTransformer(str(clip), device="cpu", local_files_only=True)
    prompted = library.encode(["find: " + text for text in TEXTS], normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), prompted, atol=2e-6)


def test_another_size_or_framing_is_another_space(clip: Path, encoder: Any) -> None:
    other = load_encoder(
        "sentence-transformers", model=str(clip), num_frames=4, image_size="48", framing="stretch", device="cpu"
    )
    assert (other.image_size, other.framing) == (48, "stretch")
    assert other.space_id != encoder.space_id
    assert other.encode_video(clips(4, 48)).shape == (3, 16)


def test_wrong_options(clip: Path) -> None:
    for options, says in (({"seconds": "0"}, "positive number"), ({"framing": "pad"}, "crop, stretch")):
        with pytest.raises(InputError, match=says):
            load_encoder("sentence-transformers", model=str(clip), **options)


def test_other_weights_are_refused(clip: Path) -> None:
    refuses_other_weights(clip, "sentence-transformers", "visual_projection.weight", strangers=False, device="cpu")


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    source, path = tmp_path / "bert", tmp_path / "sentence-bert"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=600, **sizes)).save_pretrained(source)
    clip_tokenizer(24).save_pretrained(source)
    SentenceTransformer(modules=[Transformer(str(source))], device="cpu").save(str(path))
    with pytest.raises(InputError, match="embeds text: neither videos nor pictures"):
        load_encoder("sentence-transformers", model=str(path))


def test_without_the_library(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'lvmae\[sentence-transformers\]'"):
        load_encoder("sentence-transformers", model=str(clip))


# --- a model that takes videos ----------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|endoftext|>"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
SPECIAL += ("<|image_pad|>", "<|video_pad|>")


def _qwen_network(source: Path) -> Any:
    """A Qwen3-VL of two layers is saved; its tokeniser, left-padding as the embedding models do."""
    from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

    vocabulary = byte_vocabulary(*SPECIAL)
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.padding_side = "left"
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer)}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 8, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    ids = {f"{kind}_token_id": vocabulary[f"<|{kind}_pad|>"] for kind in ("image", "video")}
    ids |= {f"vision_{side}_token_id": vocabulary[f"<|vision_{side}|>"] for side in ("start", "end")}
    torch.manual_seed(0)
    randomised(Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))).save_pretrained(source)
    return tokenizer


def _qwen(source: Path, path: Path) -> None:
    """As Qwen3-VL-Embedding is made of a Qwen3-VL: the last token's state, normalised."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = _qwen_network(source)
    budget = {"shortest_edge": 16 * 16, "longest_edge": 10**6}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, size=budget),
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=8, size=budget),
        chat_template=TEMPLATE,
    ).save_pretrained(source)
    modules = [Transformer(str(source)), Pooling(32, "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(path))


@pytest.mark.skipif(not find_spec("torchvision"), reason="transformers' video processors need torchvision")
def test_videos_with_their_times(tmp_path: Path) -> None:
    _qwen(tmp_path / "qwen", tmp_path / "sentence-qwen")
    settings = {"model": str(tmp_path / "sentence-qwen"), "num_frames": 4, "image_size": 32, "device": "cpu"}
    encoder = load_encoder("sentence-transformers", **settings)
    assert (encoder.dim, encoder.framing) == (32, "crop")
    assert encoder.space_id.endswith("/4x32px-bicubic-crop/video-of-5s")
    holds_the_contract(encoder, "sentence-transformers")

    library = SentenceTransformer(str(tmp_path / "sentence-qwen"), device="cpu", local_files_only=True)
    frames = clips(4, 32)
    for seconds in (5.0, 40.0):
        metadata = {"fps": 4 / seconds, "total_num_frames": 4, "duration": seconds, "frames_indices": [0, 1, 2, 3]}
        videos = [{"array": np.moveaxis(clip, -1, 1), "video_metadata": dict(metadata)} for clip in frames]
        expected = library.encode(videos, processing_kwargs={"video": {"do_sample_frames": False}})
        told = load_encoder("sentence-transformers", **settings, seconds=seconds)
        np.testing.assert_allclose(told.encode_video(frames), expected, atol=5e-6)
    # The times of the frames are part of what the model reads.
    assert np.abs(told.encode_video(frames) - encoder.encode_video(frames)).max() > 1e-4


@pytest.mark.skipif(bool(find_spec("torchvision")), reason="torchvision is here")
def test_a_video_model_without_torchvision_says_so(tmp_path: Path) -> None:
    _qwen_network(tmp_path).save_pretrained(tmp_path)
    parts = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    (tmp_path / "modules.json").write_text(json.dumps([parts]))
    processors = {
        "processor_class": "Qwen3VLProcessor",
        "image_processor": {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {"video_processor_type": "Qwen3VLVideoProcessor"},
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(processors))
    with pytest.raises(InputError, match=r"needs another package: .*Torchvision"):
        load_encoder("sentence-transformers", model=str(tmp_path))
