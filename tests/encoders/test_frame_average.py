"""CLIP and SigLIP 2 on video: transformers' own forward passes and processors on the same input; what all hub encoders share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import (
    TEXTS,
    clip_tokenizer,
    clips,
    edit_json,
    film_frames,
    holds_the_contract,
    randomised,
    refuses_other_weights,
)
from torch.nn.functional import normalize
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GemmaTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from lvmae.cli import main
from lvmae.encoders import load_encoder
from lvmae.encoders.hub import Pixels
from lvmae.errors import InputError, WorkError
from lvmae.store import EmbeddingStore
from lvmae.video.decoding import decode_segments

SIZE, LENGTH = 32, 16
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": SIZE, "patch_size": 8}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer(LENGTH)
    tokenizer.save_pretrained(path)
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = WIDTH | marks | {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "pad_token_id": 1}
    torch.manual_seed(0)
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=WIDTH | PICTURE, projection_dim=24))
    randomised(network).save_pretrained(path)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=size).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the released ones are: a SiglipModel with a Gemma tokeniser that ends a text and does not begin it."""
    path = tmp_path_factory.mktemp("siglip2")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklmnopqrstuvwxyz▁,.!"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=False, add_eos_token=True)
    tokenizer.save_pretrained(path)
    text = WIDTH | {"vocab_size": len(pieces), "max_position_embeddings": LENGTH, "projection_size": 32}
    text |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(1)
    network = SiglipModel(SiglipConfig(text_config=text, vision_config=WIDTH | PICTURE))
    randomised(network).save_pretrained(path)
    mean = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, **mean).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Any:
    return load_encoder("clip", model=str(clip_folder), num_frames=3, device="cpu")


@pytest.fixture(scope="module")
def siglip(siglip_folder: Path) -> Any:
    return load_encoder("siglip2", model=str(siglip_folder), num_frames=3, device="cpu")


def test_contract_of_clip(clip: Any) -> None:
    assert (clip.dim, clip.num_frames, clip.image_size) == (24, 3, SIZE)
    assert (clip.interpolation, clip.framing) == ("bicubic", "crop")
    assert clip.space_id.endswith("/3x32px-bicubic-crop/mean-of-normalised-frames")
    holds_the_contract(clip, "clip", in_time=False)


def test_contract_of_siglip(siglip: Any) -> None:
    assert (siglip.dim, siglip.num_frames, siglip.image_size) == (32, 3, SIZE)
    assert (siglip.interpolation, siglip.framing) == ("bicubic", "stretch")
    holds_the_contract(siglip, "siglip2", in_time=False)


def the_models_own(folder: Path, network: Any, processor: Any) -> np.ndarray:
    """transformers' vectors of each frame, averaged as the docs say."""
    frames = clips(3, SIZE)
    prepared = processor.from_pretrained(folder)(list(frames.reshape(-1, SIZE, SIZE, 3)), return_tensors="pt")
    with torch.no_grad():
        each = normalize(network.get_image_features(**prepared).pooler_output, dim=-1).reshape(3, 3, -1)
    return normalize(each.mean(1), dim=-1).numpy()


def test_clip_equals_transformers(clip: Any, clip_folder: Path) -> None:
    network = CLIPModel.from_pretrained(clip_folder).eval()
    own = the_models_own(clip_folder, network, CLIPImageProcessorPil)
    np.testing.assert_allclose(clip.encode_video(clips(3, SIZE)), own, atol=2e-6)
    tokens = clip_tokenizer(LENGTH)(TEXTS, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        texts = normalize(network.get_text_features(**tokens).pooler_output, dim=-1)
    np.testing.assert_allclose(clip.encode_text(TEXTS), texts.numpy(), atol=2e-6)


def test_siglip_equals_transformers(siglip: Any, siglip_folder: Path) -> None:
    network = SiglipModel.from_pretrained(siglip_folder).eval()
    own = the_models_own(siglip_folder, network, SiglipImageProcessorPil)
    np.testing.assert_allclose(siglip.encode_video(clips(3, SIZE)), own, atol=2e-6)
    tokenizer = GemmaTokenizer.from_pretrained(siglip_folder)
    ids = [[*tokenizer(text.lower(), add_special_tokens=False)["input_ids"][: LENGTH - 1], 1] for text in TEXTS]
    padded = torch.tensor(
        [[*row, *[0] * (LENGTH - len(row))] for row in ids]
    )  # [text, <eos>, <pad>...], all attended to
    with torch.no_grad():
        texts = normalize(network.get_text_features(input_ids=padded).pooler_output, dim=-1)
    np.testing.assert_allclose(siglip.encode_text(TEXTS), texts.numpy(), atol=2e-6)
    np.testing.assert_array_equal(siglip.encode_text(["A Red Flower"]), siglip.encode_text(["a red flower"]))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pixels_equal_the_models_own_processor(kind: str, request: pytest.FixtureRequest) -> None:
    encoder, folder = request.getfixturevalue(kind), request.getfixturevalue(f"{kind}_folder")
    processor = (CLIPImageProcessorPil if kind == "clip" else SiglipImageProcessorPil).from_pretrained(folder)
    frames = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    own = processor(list(frames), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(encoder.pixels(torch.tensor(frames)).numpy(), own, atol=1e-6)


def test_pixels_where_the_processor_cuts_out_less_than_it_resizes_to() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=2)
    pixels = Pixels.of(processor.to_dict())
    assert str(pixels) == "40px-bilinear-crop-centre32"
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    own = processor(list(frames), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels(torch.tensor(frames)).numpy(), own, atol=1e-6)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": {"height": 9, "width": 9}, "do_normalize": False}, Pixels(9, framing="stretch")),
        ({"size": {"shortest_edge": 9}, "do_normalize": False, "do_rescale": False}, Pixels(9, scale=1.0)),
        ({"size": 9, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 0.5},
         Pixels(9, (0.5,) * 3, (0.25,) * 3, "bilinear", "stretch", None, 0.5)),
        ({"size": {"height": 9, "width": 8}}, "does not make square frames"),
        ({"size": {"longest_edge": 9}}, "a size that is not understood"),
        ({"size": 9, "resample": 1}, "a method that is not offered here: 1"),
        ({}, "does not make square frames"),
        ({"size": 9}, "does not state by what"),
    ],
)  # fmt: skip
def test_processors_are_understood_or_refused(processor: dict[str, Any], expected: Pixels | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            Pixels.of(processor)
    else:
        assert Pixels.of(processor) == expected


@pytest.mark.parametrize(
    ("kind", "size", "least", "most"),
    [
        ("clip", (96, 72), 0.99999, 0.01),
        ("siglip", (96, 72), 0.99999, 0.01),
        ("siglip", (320, 180), 0.99999, 0.01),
        # 56.9 pixels wide: the processor makes it 56 and FFmpeg 57, so the two crops lie half a pixel apart.
        ("clip", (320, 180), 0.999, 0.1),
    ],
)
def test_frames_that_the_decoder_resized_are_nearly_the_processors(
    kind: str, size: tuple[int, int], least: float, most: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two bicubic scalers, both antialiased, FFmpeg's and PIL's: a third of a grey level apart."""
    encoder, folder = request.getfixturevalue(kind), request.getfixturevalue(f"{kind}_folder")
    processor = (CLIPImageProcessorPil if kind == "clip" else SiglipImageProcessorPil).from_pretrained(folder)
    whole, ours = film_frames(tmp_path / "film.mp4", size, encoder)
    own = torch.tensor(processor(list(whole), return_tensors="np")["pixel_values"])
    with torch.no_grad():
        theirs = normalize(encoder._embed_video(own[None]), dim=-1).numpy()
    assert (encoder.encode_video(ours[None]) * theirs).sum() > least
    assert np.abs(encoder.pixels(torch.tensor(ours)).numpy() - own.numpy()).mean() < most  # of a standard deviation


def test_what_changes_the_space_and_what_does_not(clip: Any, clip_folder: Path, tmp_path: Path) -> None:
    def space(folder: Path, **options: Any) -> str:
        return load_encoder("clip", model=str(folder), **{"num_frames": 3, **options}).space_id

    assert space(clip_folder, device="cpu", dtype="bfloat16") == clip.space_id
    assert space(clip_folder, num_frames="4") != clip.space_id
    moved = shutil.copytree(clip_folder, tmp_path / "moved")
    assert space(moved) == clip.space_id
    edit_json(moved / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert space(moved) != clip.space_id


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_same_space_to_rounding(dtype: str, clip: Any, clip_folder: Path) -> None:
    half = load_encoder("clip", model=str(clip_folder), num_frames=3, device="cpu", dtype=dtype)
    frames = clips(3, SIZE)
    assert half.options["dtype"] == dtype
    cosines = (half.encode_video(frames) * clip.encode_video(frames)).sum(1)
    assert 0.999 < cosines.min() < 1 - 1e-7  # rounded, so not the same; and little
    assert (half.encode_text(TEXTS) * clip.encode_text(TEXTS)).sum(1).min() > 0.999


def test_weights_that_are_missing_or_left_over_are_refused(clip_folder: Path) -> None:
    refuses_other_weights(clip_folder, "clip", "visual_projection.weight")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("clip", {"num_frames": "eight"}, "num_frames must be a whole number from 1 to 1024, not 'eight'"),
        ("clip", {"num_frames": 0}, "whole number"),
        ("clip", {"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16"),
        ("clip", {"device": "abacus"}, "device 'abacus' is not available here"),
        ("clip", {"revision": "main"}, "has no revisions"),
        ("clip", {"frames": 3}, "its options are: model, revision, num_frames, device, dtype"),
        ("siglip2", {}, "cannot be loaded as SiglipModel|does not hold the weights"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], says: str, clip_folder: Path) -> None:
    with pytest.raises((InputError, WorkError), match=says):
        load_encoder(name, model=str(clip_folder), **options)


def test_other_kinds_of_model_are_named(siglip_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    naflex = shutil.copytree(siglip_folder, tmp_path / "naflex")
    edit_json(naflex / "config.json", model_type="siglip2")
    with pytest.raises(InputError, match=r"NaFlex model.*such as google/siglip2-base-patch16-224"):
        load_encoder("siglip2", model=str(naflex))
    bare = shutil.copytree(clip_folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config.json"):
        load_encoder("clip", model=str(bare))


def test_a_batch_too_large_for_the_device_is_halved(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.concatenate([clips(3, SIZE)] * 2)
    whole, embed, seen = clip.encode_video(frames), clip._embed_video, []

    def short_of_memory(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError
        return embed(pixels)

    monkeypatch.setattr(clip, "_embed_video", short_of_memory)
    np.testing.assert_allclose(clip.encode_video(frames), whole, atol=2e-6)
    assert seen == [6, 3, 2, 1, 2, 1]  # what was too much once is not tried again

    def out_of_memory(pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(clip, "_embed_video", out_of_memory)
    with pytest.raises(WorkError, match="too little memory"):
        clip.encode_video(frames)


def test_self_test_fails_where_vectors_are_all_alike_or_not_numbers(clip_folder: Path) -> None:
    for damage in (1.0, float("nan")):
        encoder: Any = load_encoder("clip", model=str(clip_folder), num_frames=1)
        encoder._network.visual_projection.weight.fill_(damage)
        with pytest.raises(WorkError, match="similarities of pictures are all alike"):
            encoder.self_test()


def test_from_a_film_to_a_search_by_text(
    clip: Any, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands, with the worker's own copy of the model: what is stored and found is what the encoder says here."""
    film_frames(tmp_path / "film.mp4", (96, 72), clip)  # one second of three frames
    options = [f"model={clip_folder}", "num_frames=3", "device=cpu"]
    arguments = [argument for option in options for argument in ("--encoder-option", option)]
    store = tmp_path / "store"
    rule = ["--segment-seconds", "0.5", "--workers", "1"]
    assert main(["embed", str(tmp_path / "film.mp4"), "--out", str(store), "--encoder", "clip", *arguments, *rule]) == 0
    opened = EmbeddingStore.open(store)
    assert opened.manifest.space_id == clip.space_id
    assert opened.manifest.encoder["options"] == clip.options
    segments = np.stack(list(decode_segments(tmp_path / "film.mp4", [0, 0.5], [0.5, 1], num_frames=3, image_size=SIZE)))
    vectors = clip.encode_video(segments)
    np.testing.assert_allclose(opened[0].embeddings, vectors, atol=1e-3)  # the store keeps float16

    capsys.readouterr()
    assert main(["search", str(store), "a red flower", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = (vectors @ clip.encode_text(["a red flower"])[0]).max()
    assert found[0]["score"] == pytest.approx(best, abs=1e-3)
    assert main(["search", str(store), "a red flower"]) == 0
    (clip_folder / "config.json").rename(clip_folder / "config.away")
    try:
        assert main(["search", str(store), "a red flower"]) == 2
    finally:
        (clip_folder / "config.away").rename(clip_folder / "config.json")
