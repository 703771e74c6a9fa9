"""LanguageBind Video: what the `languagebind` package computes, recorded by tests/golden/make_languagebind.py."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import edit_json, film_frames, holds_the_contract, refuses_other_weights
from torch.nn.functional import interpolate, normalize

from lvmae.encoders import languagebind, load_encoder
from lvmae.errors import InputError, WorkError

GOLDEN = Path(__file__).parents[1] / "golden" / "languagebind.safetensors"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE, FRAMES = 14, 4


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    with safe_open(GOLDEN, "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


@pytest.fixture(scope="module")
def folder(
    golden: dict[str, torch.Tensor], facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Model folders as they are distributed; the one with low-rank updates has a pickled file, as the released ones do."""

    def write(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind)
        (path / "config.json").write_text(json.dumps(facts["configs"][kind]))
        (path / "vocab.json").write_text(json.dumps(facts["vocabulary"]))
        (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(facts["merges"]))
        start = f"{kind}/weights/"
        weights = {k.removeprefix(start): v.float() for k, v in golden.items() if k.startswith(start)}
        # Older files hold these two tables of indices, too.
        weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        weights["text_model.embeddings.position_ids"] = torch.arange(20)[None]
        if kind == "lora":
            torch.save(weights, path / "pytorch_model.bin")
        else:
            save_file(weights, path / "model.safetensors", {"format": "pt"})
        return path

    return write


@pytest.mark.parametrize("kind", ["first", "newer", "lora"])
def test_numbers_of_the_package(
    kind: str, folder: Callable[[str], Path], golden: dict[str, torch.Tensor], facts: dict[str, Any]
) -> None:
    encoder = load_encoder("languagebind-huge", model=str(folder(kind)), device="cpu")
    assert (encoder.dim, encoder.num_frames, encoder.image_size) == (12, FRAMES, SIZE)
    video = encoder.encode_video(golden["frames"].numpy())
    np.testing.assert_allclose(video, normalize(golden[f"{kind}/video"], dim=-1).numpy(), atol=2e-6)
    text = encoder.encode_text(facts["texts"])
    np.testing.assert_allclose(text, normalize(golden[f"{kind}/text"], dim=-1).numpy(), atol=2e-6)


def test_attention_over_time_is_one_call_a_layer_for_all_places(
    folder: Callable[[str], Path], golden: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = load_encoder("languagebind-huge", model=str(folder("newer")), device="cpu")
    shapes: list[tuple[int, ...]] = []
    attend = languagebind.scaled_dot_product_attention

    def counted(query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        shapes.append(tuple(query.shape))
        assert query.stride(-1) == 1
        assert query.untyped_storage().nbytes() == query.numel() * query.element_size()  # a view, not a copy
        return attend(query, *arguments, **options)

    monkeypatch.setattr(languagebind, "scaled_dot_product_attention", counted)
    encoder.encode_video(golden["frames"].numpy())
    own = encoder._network.vision_model.encoder["layers"][0].temporal_attn
    places = 1 + (SIZE // encoder._network.config.vision_config.patch_size) ** 2
    wanted = (len(golden["frames"]), places * own.num_heads, FRAMES, own.head_dim)
    assert shapes == [wanted] * len(encoder._network.vision_model.encoder["layers"])


@pytest.mark.parametrize("kind", ["first", "newer"])
def test_contract(kind: str, folder: Callable[[str], Path]) -> None:
    encoder = load_encoder("languagebind-base", model=str(folder(kind)), device="cpu")
    assert (encoder.interpolation, encoder.framing) == ("bilinear", "crop")
    assert encoder.space_id.endswith("/4x14px-bilinear-crop/mean-of-cls")
    holds_the_contract(encoder, "languagebind-base")


def the_packages_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 (T, H, W, 3) -> (T, 3, S, S): normalised, short side to S without antialiasing, centre cut out, nothing flipped."""
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD
    )[:, None, None]
    height, width = frames.shape[1:3]
    short = min(height, width)
    size = math.floor(height / short * SIZE), math.floor(width / short * SIZE)
    pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    top, left = round((size[0] - SIZE) / 2), round((size[1] - SIZE) / 2)
    return pixels[:, :, top : top + SIZE, left : left + SIZE]


def test_pixels_of_the_package(folder: Callable[[str], Path], golden: dict[str, torch.Tensor]) -> None:
    """Equal on frames of the right size; the function above, which stands for the package, is right about larger ones."""
    encoder: Any = load_encoder("languagebind-huge", model=str(folder("newer")))
    frames = golden["frames"][0]
    torch.testing.assert_close(encoder.pixels(frames), the_packages_pixels(frames.numpy()), atol=1e-6, rtol=0)
    recorded = golden["resized"].float().transpose(0, 1)  # (T, 3, S, S), rounded to float16
    torch.testing.assert_close(the_packages_pixels(golden["large"].numpy()), recorded, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("size", "most"), [((48, 28), 0.01), ((160, 90), 0.02)])
def test_frames_that_the_decoder_resized_are_near_the_packages(
    size: tuple[int, int], most: float, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The decoder's scaler is antialiased and the package's is not: the more a frame shrinks, the more that shows."""
    encoder: Any = load_encoder("languagebind-huge", model=str(folder("newer")))
    whole, ours = film_frames(tmp_path / "film.mp4", size, encoder)
    pixels = the_packages_pixels(whole)
    assert (encoder.pixels(torch.tensor(ours)) - pixels).abs().mean() < most  # of a standard deviation
    with torch.no_grad():
        theirs = normalize(encoder._embed_video(pixels[None]), dim=-1).numpy()
    vectors = encoder.encode_video(np.stack([ours, ours[:, :, ::-1]]))
    apart, mirrored = np.linalg.norm(vectors - theirs, axis=1)
    assert (vectors[0] @ theirs[0]) > 0.9999
    assert apart < 0.25 * mirrored  # all cosines of a random network are high, so there is something to compare with


def test_weights_that_are_missing_or_left_over_are_refused(folder: Callable[[str], Path]) -> None:
    path = folder("first")
    refuses_other_weights(path, "languagebind-huge", "vision_model.encoder.layers.1.temporal_attn.q_proj.weight")
    edit_json(path / "config.json", projection_dim=13)
    with pytest.raises(WorkError, match="has another shape of 2 weights"):
        load_encoder("languagebind-huge", model=str(path))


def test_other_kinds_of_model_are_named(folder: Callable[[str], Path], facts: dict[str, Any]) -> None:
    path = folder("newer")
    for change, says in (
        ({"add_time_attn": False}, "not a LanguageBind video model"),
        ({"tube_size": 2}, "tubes of 2"),
    ):
        vision = facts["configs"]["newer"]["vision_config"] | change
        edit_json(path / "config.json", vision_config=vision)
        with pytest.raises(InputError, match=says):
            load_encoder("languagebind-huge", model=str(path))
    edit_json(path / "config.json", vision_config=facts["configs"]["newer"]["vision_config"])
    (path / "merges.txt").unlink()
    with pytest.raises(InputError, match="has no tokenizer that can be loaded"):
        load_encoder("languagebind-huge", model=str(path))
    (path / "vocab.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer: none of tokenizer.json, vocab.json"):
        load_encoder("languagebind-huge", model=str(path))
    shutil.rmtree(path)
    with pytest.raises(InputError, match="no folder"):
        load_encoder("languagebind-huge", model=str(path))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("languagebind-huge", "LanguageBind/LanguageBind_Video_Huge_V1.5_FT"),
        ("languagebind-base", "LanguageBind/LanguageBind_Video_FT"),
    ],
)
def test_names_stand_for_the_released_models(
    name: str, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=f"run `hf download {model}`"):
        load_encoder(name)
