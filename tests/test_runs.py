"""A run is looked at in one way by every command, and a device is chosen in one way."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvmae.errors import InputError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.runs import (
    check_space,
    count_parameters,
    find_run,
    load_run_autoencoder,
    load_run_encoder,
    run_fingerprint,
)

SIZES = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LVMAEForPreTraining(LVMAEConfig(**SIZES, space_id="s")).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_it_is_found_counted_and_told_apart(run: Path) -> None:
    assert find_run(run) == run
    model = load_run_autoencoder(run)
    assert not model.training
    assert count_parameters(run) == sum(parameter.numel() for parameter in model.parameters())
    first = run_fingerprint(run)
    (run / "README.md").write_text("a card is no part of it")
    assert run_fingerprint(run) == first
    (run / "config.json").write_text((run / "config.json").read_text().replace('"s"', '"t"'))
    assert run_fingerprint(run) != first


@pytest.mark.parametrize("part", ["decoder.pred.weight", "lvmae.norm.bias"])
def test_weights_that_are_missing_are_refused(run: Path, part: str) -> None:
    weights = load_file(run / "model.safetensors")
    del weights[part]
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"holds no whole LV-MAE model: its weights lack {part}"):
        load_run_autoencoder(run)
    if part.startswith("lvmae."):
        with pytest.raises(InputError, match="holds no LV-MAE encoder: its weights lack"):
            load_run_encoder(run)
    else:
        load_run_encoder(run)


def test_what_is_no_run_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a run"):
        find_run(tmp_path / "nowhere")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished / "checkpoints" / "step-00000004")
    with pytest.raises(InputError, match=r"not finished; .* checkpoint .*step-00000004"):
        find_run(unfinished)
    assert load_run_encoder(unfinished / "checkpoints" / "step-00000004").config.space_id == "s"
    (run / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="a model of type 'bert', not an LV-MAE run"):
        find_run(run)
    (run / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        find_run(run)


def test_a_store_of_another_kind_space_or_width_is_refused() -> None:
    config = LVMAEConfig(**SIZES, space_id="s")
    good = SimpleNamespace(path="store", kind="embeddings", space_id="s", dim=8)
    check_space("run", config, good)  # type: ignore[arg-type]
    for changed, said in (
        ({"kind": "representations"}, "holds representations"),
        ({"space_id": "t"}, "was trained on the space s"),
        ({"dim": 4}, "takes embeddings 8 wide"),
    ):
        with pytest.raises(InputError, match=said):
            check_space("run", config, SimpleNamespace(**{**vars(good), **changed}))  # type: ignore[arg-type]
    check_space("run", LVMAEConfig(**SIZES), SimpleNamespace(**{**vars(good), "space_id": "t"}))  # type: ignore[arg-type]
