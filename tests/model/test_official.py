from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lvmae.model import LVMAEConfig, LVMAEForPreTraining

GRADIENTS = {
    "blocks.0.attn.qkv.weight": "lvmae.blocks.0.attn.qkv.weight",
    "cls_token": "lvmae.cls_token",
    "decoder_pred.weight": "decoder.pred.weight",
    "mask_token": "decoder.mask_token",
}


class Recorded:
    """A batch and what the official model computes from it."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = folder / "official_tiny.pth"
        self.values = load_file(folder / "official_tiny.safetensors")
        self.lengths = self.values["lengths"].tolist()
        places = torch.arange(self.values["masked"].shape[1])
        self.real = places[None] < self.values["lengths"][:, None]
        self.masked = self.values["masked"]
        self.num_visible = self.values["visible_count"].tolist()

    def arguments(self, form: str) -> dict[str, Any]:
        x = self.values["embeddings"]
        if form == "padded":
            return {"inputs_embeds": x, "attention_mask": self.real.long(), "bool_masked_pos": self.masked}
        return {
            "inputs_embeds": x[self.real][None],
            "bool_masked_pos": self.masked[self.real][None],
            "lengths": self.lengths,
            "num_visible": self.num_visible,
        }


@pytest.fixture
def recorded(shared: Path) -> Recorded:
    return Recorded(shared / "parity")


@pytest.fixture
def model(recorded: Recorded) -> LVMAEForPreTraining:
    return LVMAEForPreTraining.from_official_checkpoint(recorded.checkpoint)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_heads_and_sizes_come_from_the_file(model: LVMAEForPreTraining) -> None:
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (32, 2)
    assert (config.decoder_num_attention_heads, config.max_segments, config.loss) == (4, 16, "mse")
    assert (config.intermediate_size, config.decoder_intermediate_size) == (256, 128)
    assert not model.training


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("full", [False, True])
def test_loss_predictions_and_gradients(model: LVMAEForPreTraining, recorded: Recorded, form: str, full: bool) -> None:
    output = model(**recorded.arguments(form), output_full_reconstruction=full)
    assert_close(output.loss.reshape(1), recorded.values["loss"])
    shown = recorded.real if full else recorded.real & recorded.masked
    found = output.reconstruction
    found = found[shown] if form == "padded" else found[0][shown[recorded.real]]
    assert_close(found, recorded.values["pred"][shown])
    output.loss.backward()
    parameters = dict(model.named_parameters())
    for theirs, ours in GRADIENTS.items():
        gradient = parameters[ours].grad
        assert gradient is not None
        assert_close(gradient, recorded.values[f"grad.{theirs}"])


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_unmasked_encoding(model: LVMAEForPreTraining, recorded: Recorded, form: str) -> None:
    arguments = {k: v for k, v in recorded.arguments(form).items() if k not in ("bool_masked_pos", "num_visible")}
    rows = torch.nn.functional.pad(recorded.real, (1, 0), value=True)
    found = model.lvmae(**arguments).last_hidden_state
    assert_close(found[rows] if form == "padded" else found[0], recorded.values["encoded"][rows])


def test_visible_tokens(model: LVMAEForPreTraining, recorded: Recorded) -> None:
    latent = model(**recorded.arguments("packed")).encoder_last_hidden_state[0]
    for b, ours in enumerate(latent.split([n + 1 for n in recorded.num_visible])):
        theirs = recorded.values["latent_visible"][b, : len(ours)]
        assert_close(ours[0], theirs[0])
        # The official code shuffles the visible tokens: each of ours is one of theirs, another one each.
        match = torch.cdist(ours[1:], theirs[1:]).argmin(dim=1)
        assert sorted(match.tolist()) == list(range(len(ours) - 1))
        assert_close(ours[1:], theirs[1:][match])


def test_round_trip_is_bit_identical(model: LVMAEForPreTraining, recorded: Recorded, tmp_path: Path) -> None:
    official = torch.load(recorded.checkpoint, weights_only=False)
    model.save_pretrained(tmp_path / "ours")
    reloaded = LVMAEForPreTraining.from_pretrained(tmp_path / "ours")
    reloaded.to_official_checkpoint(tmp_path / "theirs.pth")
    again = torch.load(tmp_path / "theirs.pth", weights_only=False)
    assert again["model"].keys() == official["model"].keys()
    for name, value in official["model"].items():
        if "pos_embed" in name:
            torch.testing.assert_close(again["model"][name], value, rtol=0, atol=1e-6)
        else:
            assert torch.equal(again["model"][name], value), name
    for name in ("num_patches", "input_size", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "cos_loss"):
        assert getattr(again["args"], name) == getattr(official["args"], name)
    once_more = LVMAEForPreTraining.from_official_checkpoint(tmp_path / "theirs.pth")
    arguments = recorded.arguments("packed")
    assert torch.equal(once_more(**arguments).loss, model(**arguments).loss)
    assert once_more.config.num_attention_heads == model.config.num_attention_heads


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def official() -> dict[str, Any]:
    """A small official checkpoint, of our own making."""
    import io

    torch.manual_seed(0)
    config = LVMAEConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        decoder_hidden_size=4,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=1,
        decoder_intermediate_size=16,
        max_segments=6,
        loss="cosine",
    )
    file = io.BytesIO()
    LVMAEForPreTraining(config).to_official_checkpoint(file)  # type: ignore[arg-type]
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=False)
    return loaded


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        LVMAEForPreTraining.from_official_checkpoint(path)
    return str(caught.value)


@pytest.mark.parametrize("where", ["args", "beside"])
def test_other_pickled_objects_are_refused_and_not_run(official: dict[str, Any], tmp_path: Path, where: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    if where == "args":
        official["args"].surprise = Evil(marker)
    else:
        official["extra"] = Evil(marker)
    torch.save(official, path)
    assert "posix.mkdir" in refused(path)
    assert "refused" in refused(path)
    assert not marker.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil(marker)))
    assert "refused" in refused(path)
    assert not marker.exists()


def test_the_arguments_decide_the_loss(official: dict[str, Any], tmp_path: Path) -> None:
    torch.save(official, tmp_path / "a.pth")
    assert LVMAEForPreTraining.from_official_checkpoint(tmp_path / "a.pth").config.loss == "cosine"
    del official["args"].cos_loss
    official["args"].num_heads = 4
    torch.save(official, tmp_path / "b.pth")
    config = LVMAEForPreTraining.from_official_checkpoint(tmp_path / "b.pth").config
    assert (config.loss, config.num_attention_heads) == ("mse", 4)


def test_files_that_are_something_else(official: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError):
        LVMAEForPreTraining.from_official_checkpoint(path)
    torch.save(official, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "not a readable torch file" in refused(path)
    torch.save({"state_dict": {}}, path)
    assert "it should hold model and args" in refused(path)
    torch.save({"model": official["model"], "args": argparse.Namespace()}, path)
    assert refused(path).endswith("it has no num_heads")
    del official["model"]["pos_embed"]
    torch.save(official, path)
    assert refused(path).endswith("it has no pos_embed")


def test_learned_positions_are_refused(official: dict[str, Any], tmp_path: Path) -> None:
    official["model"]["decoder_pos_embed"][0, 3, 0] += 0.01
    torch.save(official, tmp_path / "a.pth")
    assert "other positions in decoder_pos_embed" in refused(tmp_path / "a.pth")
