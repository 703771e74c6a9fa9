from __future__ import annotations

import pytest
import torch

from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.model.objectives import OBJECTIVES


def test_the_defaults_are_the_papers_model() -> None:
    config = LVMAEConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1024, 32, 16)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (512, 8)
    assert (config.decoder_num_attention_heads, config.max_segments) == (16, 256)
    assert (config.intermediate_size, config.decoder_intermediate_size) == (4 * 1024, 4 * 512)
    assert LVMAEConfig(hidden_size=96, num_attention_heads=4).intermediate_size == 4 * 96
    assert (config.layer_norm_eps, config.initializer_range) == (1e-6, 0.02)
    with torch.device("meta"):
        model = LVMAEForPreTraining(config)
    parameters = sum(p.numel() for p in model.parameters())
    block, decoder_block = 12 * 1024**2 + 13 * 1024, 12 * 512**2 + 13 * 512
    tokens, norms, maps = 1024 + 512, 2 * 1024 + 2 * 512, 2 * 1024 * 512 + 512 + 1024
    assert parameters == 32 * block + 8 * decoder_block + tokens + norms + maps
    assert 425e6 < parameters < 435e6


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"hidden_size": 100, "num_attention_heads": 16},
            "hidden_size 100 is not divisible by num_attention_heads 16; "
            "choose a number of heads that divides it, such as 10",
        ),
        (
            {"decoder_hidden_size": 30, "decoder_num_attention_heads": 4},
            "decoder_hidden_size 30 is not divisible by decoder_num_attention_heads 4; "
            "choose a number of heads that divides it, such as 3",
        ),
        (
            {"hidden_size": 33, "num_attention_heads": 3},
            "hidden_size 33 is odd; the sin-cos positions need an even width",
        ),
        ({"max_segments": 0}, "max_segments is 0; choose a whole number of at least 1"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0; choose a whole number of at least 1"),
        ({"decoder_num_hidden_layers": True}, "decoder_num_hidden_layers is True; choose a whole number of at least 1"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; choose a number above 0"),
        ({"loss": "l1"}, f"loss is 'l1'; choose one of {', '.join(OBJECTIVES)}, or module:Class for one of your own"),
        (
            {"long_sequences": "truncate"},
            "long_sequences is 'truncate'; choose one of windows, extrapolate, interpolate",
        ),
        ({"hidden_sise": 64}, "unknown setting 'hidden_sise'; did you mean 'hidden_size'?"),
    ],
)
def test_impossible_settings_are_one_clear_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        LVMAEConfig(**settings)
    assert str(caught.value) == sentence


def test_settings_survive_json(tmp_path: object) -> None:
    config = LVMAEConfig(
        hidden_size=64, space_id="conse-1", segments={"kind": "fixed", "seconds": 5.0}, encoder={"name": "conse"}
    )
    config.save_pretrained(tmp_path)
    again = LVMAEConfig.from_pretrained(tmp_path)
    assert (again.hidden_size, again.space_id, again.segments, again.encoder) == (
        64,
        "conse-1",
        {"kind": "fixed", "seconds": 5.0},
        {"name": "conse"},
    )
