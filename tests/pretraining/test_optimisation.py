"""The learning rate, to the digit, and which parameters decay."""

from __future__ import annotations

import pytest
import torch

from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.pretraining.optimisation import adamw, learning_rate, parameter_groups


def test_learning_rate_literally():
    rates = [learning_rate(step, peak=1.0, warmup_steps=4, total_steps=8) for step in range(9)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.85355339, 0.5, 0.14644661, 0.0], abs=1e-8)


def test_learning_rate_without_warmup_and_with_nothing_else():
    assert [learning_rate(s, peak=2.0, warmup_steps=0, total_steps=2) for s in (0, 1)] == pytest.approx([2.0, 1.0])
    assert [learning_rate(s, peak=2.0, warmup_steps=8, total_steps=2) for s in (0, 1)] == [0.25, 0.5]


def test_parameter_groups_literally():
    config = LVMAEConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    model = LVMAEForPreTraining(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    decayed_names, kept_names = ({names[id(p)] for p in group["params"]} for group in (decayed, kept))
    assert decayed_names | kept_names == set(names.values())
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed_names)
    assert {name for name in kept_names if not name.endswith("bias") and "norm" not in name} == {
        name for name in names.values() if name.endswith(("cls_token", "mask_token"))
    }
    assert sum("token" in name for name in kept_names) == 2


def test_adamw_is_the_recipes():
    optimizer = adamw(torch.nn.Linear(3, 2), betas=(0.9, 0.95), weight_decay=0.05)
    assert [(g["betas"], g["weight_decay"], g["lr"], len(g["params"])) for g in optimizer.param_groups] == [
        ((0.9, 0.95), 0.05, 0.0, 1),
        ((0.9, 0.95), 0.0, 0.0, 1),
    ]
