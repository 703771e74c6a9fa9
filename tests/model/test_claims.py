"""A stranger's config.json: what it claims is held against the weights, and it chooses no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel

import lvmae.model
from lvmae.errors import InputError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining, LVMAEModel
from lvmae.runs import load_run_autoencoder, load_run_encoder

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("claims") / "run"
    LVMAEForPreTraining(LVMAEConfig(**SIZES)).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 100_000},
        {"num_hidden_layers": 1},
        {"decoder_num_hidden_layers": 10**9},
        {"hidden_size": 1 << 24},
        {"intermediate_size": 1 << 30},
        {"decoder_hidden_size": 1 << 24},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel:function"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"use_kernels": True},
    ],
    ids=str,
)
def test_claims_are_refused_before_they_are_built(run: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(run, bad)
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | change))
    key = next(iter(change))
    for kind in (LVMAEForPreTraining, LVMAEModel, AutoModel):
        with pytest.raises(ValueError, match=key):
            kind.from_pretrained(bad)
    for load in (load_run_encoder, load_run_autoencoder):
        with pytest.raises(InputError, match=key):
            load(bad)


def test_what_is_true_is_believed(run: Path, tmp_path: Path) -> None:
    assert (
        AutoModel.from_pretrained(run, attn_implementation="eager").config.num_hidden_layers == 2
    )  # the caller's choice
    assert lvmae.model.LVMAEForPreTraining.from_pretrained(run).config.decoder_num_hidden_layers == 1
    LVMAEModel(LVMAEConfig(**SIZES)).save_pretrained(tmp_path / "encoder")
    assert LVMAEModel.from_pretrained(tmp_path / "encoder").config.hidden_size == 16
