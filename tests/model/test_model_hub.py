from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from lvmae.model import LVMAEConfig, LVMAEForPreTraining, LVMAEModel


def test_save_and_load(make_model: Callable[..., LVMAEForPreTraining], example: Any, tmp_path: Path) -> None:
    model = make_model(space_id="conse-1", segments={"kind": "fixed", "seconds": 5.0}).eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = LVMAEForPreTraining.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert again.config.space_id == "conse-1"
    batch = example([5, 70], 24)
    assert torch.equal(again(**batch.packed).loss, model(**batch.packed).loss)


def test_auto_classes(
    make_model: Callable[..., LVMAEForPreTraining], example: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LVMAEConfig
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is LVMAEForPreTraining
    with caplog.at_level(logging.WARNING, logger="transformers"):
        encoder, report = AutoModel.from_pretrained(tmp_path, trust_remote_code=False, output_loading_info=True)
    assert type(encoder) is LVMAEModel
    assert not any(report.values())  # nothing missing, and the decoder is not reported as unexpected
    assert not caplog.records
    x = example([30], 24).packed["inputs_embeds"]
    assert torch.equal(encoder(x).last_hidden_state, model.lvmae(x).last_hidden_state)
    encoder.save_pretrained(tmp_path / "encoder")
    alone = AutoModel.from_pretrained(tmp_path / "encoder")
    assert torch.equal(alone(x).last_hidden_state, encoder(x).last_hidden_state)


def test_an_encoder_alone_gets_a_fresh_decoder(make_model: Callable[..., LVMAEForPreTraining], tmp_path: Path) -> None:
    make_model().lvmae.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model, report = LVMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("decoder.") for name in report["missing_keys"])
    assert 0.005 < model.decoder.mask_token.std() < 0.05
    assert (model.decoder.embed.bias == 0).all()


def test_a_checkpoint_comes_back_in_the_type_it_was_saved_in(
    make_model: Callable[..., LVMAEForPreTraining], tmp_path: Path
) -> None:
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert LVMAEForPreTraining.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert LVMAEForPreTraining.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_the_stock_attentions_are_refused(make_model: Callable[..., LVMAEForPreTraining], tmp_path: Path) -> None:
    """They ignore where packed sequences end, so one video would see another."""
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        LVMAEForPreTraining.from_pretrained(tmp_path, attn_implementation="sdpa")
