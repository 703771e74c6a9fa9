"""The probes against the method written out, and against themselves under what must not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvmae.evaluation.features import LEARNT, RAW, Features
from lvmae.evaluation.fitting import fit
from lvmae.evaluation.probes import AttentiveProbe, heads_for
from lvmae.evaluation.settings import ProbeSettings
from lvmae.evaluation.task import Task

CPU = torch.device("cpu")
SHORT = ProbeSettings(linear_min_steps=0, attentive_min_steps=0)


def _features(lengths: list[int], dim: int = 12, *, name: str = LEARNT, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    tokens = [rng.normal(size=(length, dim)).astype(np.float16) for length in lengths]
    mean = torch.tensor(np.stack([t.astype(np.float32).mean(axis=0) for t in tokens]))
    cls = torch.tensor(rng.normal(size=(len(lengths), dim)), dtype=torch.float32) if name == LEARNT else None
    return Features(name, dim, tokens, cls, mean)


def _task(targets: np.ndarray, kind: str = "classification", splits: list[str] | None = None) -> Task:
    count = len(targets)
    names = splits or (["train"] * (count - 2 * (count // 5)) + ["val"] * (count // 5) + ["test"] * (count // 5))
    classes = () if kind == "regression" else tuple(map(str, range(int(np.max(targets)) + 1)))
    if kind == "multilabel":
        classes = tuple(map(str, range(targets.shape[1])))
    return Task("t", kind, tuple(map(str, range(count))), targets, classes, np.array(names))


def _as_written(probe: AttentiveProbe, cls: Tensor, tokens: Tensor) -> Tensor:
    """The whole block over one video: all queries, keys and values, torch's own attention; cls (D), tokens (L, D)."""
    dim = len(cls)
    x = torch.cat([cls[None], tokens])[None]
    normed = probe.norm1(x)
    attended, _ = F.multi_head_attention_forward(
        *[normed.transpose(0, 1)] * 3,
        dim,
        probe.heads,
        torch.cat([probe.query.weight, probe.key.weight, probe.value.weight]),
        torch.cat(
            [probe.query.bias, torch.randn(dim), probe.value.bias]
        ),  # whatever a key's bias is, it changes nothing
        None,
        None,
        False,
        0.0,
        probe.out.weight,
        probe.out.bias,
        need_weights=False,
    )
    x = x + attended.transpose(0, 1)
    x = x + probe.mlp(probe.norm2(x))
    return probe.head(probe.norm(x))[0, 0]


@pytest.mark.parametrize("name", [LEARNT, RAW])
def test_the_attentive_probe_is_the_block_as_written(name: str) -> None:
    features = _features([5, 1, 9], 128, name=name)
    generator = torch.Generator().manual_seed(0)
    probe = AttentiveProbe(128, 3, generator, learn_cls=name == RAW)
    with torch.no_grad():  # so that scales, shifts and biases take part
        for parameter in probe.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    assert probe.heads == 2
    tokens, mask, cls = features.batch([0, 1, 2], CPU)
    found = probe(tokens, mask, cls)
    written = []
    for row, length in enumerate([5, 1, 9]):
        own = probe.cls if cls is None else cls[row]
        assert own is not None
        written.append(_as_written(probe, own, tokens[row, :length]))
    expected = torch.stack(written)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)
    asked = torch.randn(found.shape, generator=generator)
    gradients = (torch.autograd.grad(y, list(probe.parameters()), asked) for y in (found, expected))
    for (parameter, _), own, full in zip(probe.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(own, full, atol=1e-5 * float(full.abs().max()), rtol=1e-5, msg=parameter)


def test_padding_and_company_change_nothing() -> None:
    features = _features([3, 1, 17, 8])
    probe = AttentiveProbe(12, 3, torch.Generator().manual_seed(0), learn_cls=False)
    together = probe(*features.batch([0, 1, 2, 3], CPU))
    for row in range(4):
        torch.testing.assert_close(together[row], probe(*features.batch([row], CPU))[0], atol=1e-6, rtol=1e-5)
    tokens, mask, cls = features.batch([0, 1, 2, 3], CPU)
    spoiled = probe(tokens.masked_fill(~mask[..., None], 1e4), mask, cls)
    torch.testing.assert_close(spoiled, together, atol=0, rtol=0)


def test_every_real_token_counts() -> None:
    features = _features([3, 6])
    probe = AttentiveProbe(12, 3, torch.Generator().manual_seed(0), learn_cls=False)
    tokens, mask, cls = features.batch([0, 1], CPU)
    before = probe(tokens, mask, cls)
    for row, place in ((0, 2), (1, 5)):  # the last real token of each
        changed = tokens.clone()
        changed[row, place] += torch.linspace(-1, 1, 12)
        assert (probe(changed, mask, cls)[row] - before[row]).abs().max() > 1e-4


def test_raw_tokens_are_of_unit_length_and_learnt_ones_are_not() -> None:
    for name, unit in ((RAW, True), (LEARNT, False)):
        features = _features([4, 2], name=name)
        tokens, mask, _ = features.batch([0, 1], CPU)
        assert bool(torch.isclose(tokens[mask].norm(dim=-1), torch.ones(6), atol=1e-4).all()) == unit
        if not unit:
            np.testing.assert_array_equal(tokens[1, :2].numpy(), features.tokens[1].astype(np.float32))


def test_heads_divide_any_width() -> None:
    assert {dim: heads_for(dim) for dim in (1024, 768, 384, 100, 1, 1000, 200)} == {
        1024: 16,
        768: 12,
        384: 6,
        100: 1,
        1: 1,
        1000: 10,
        200: 2,
    }


def test_a_linear_probe_is_adam_by_hand() -> None:
    features = _features([1] * 10, 3)
    targets = np.arange(10) % 2
    task = _task(targets, splits=["train"] * 4 + ["val"] * 3 + ["test"] * 3)
    settings = replace(SHORT, linear_epochs=1, linear_lr=0.1, batch_size=16)
    fitted = fit("linear", features, task, 3, settings)
    # One step of Adam moves every parameter by the rate, against the sign of its gradient (up to epsilon).
    start = fit("linear", features, task, 3, replace(settings, linear_lr=1e-15)).outputs
    x, y = features.mean.numpy(), targets
    assert (fitted.epoch, fitted.steps, fitted.paper_steps) == (1, 1, 1)
    generator = torch.Generator().manual_seed(int(np.random.default_rng([3, 2]).integers(2**62)))
    w = nn.init.xavier_uniform_(torch.empty(2, 3), generator=generator).numpy().astype(np.float64)
    np.testing.assert_allclose(start, x[7:] @ w.T, atol=1e-6)
    logits = x[:4] @ w.T
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (p - np.eye(2)[y[:4]]) / 4
    expected = x[7:] @ (w - 0.1 * np.sign(error.T @ x[:4])).T - 0.1 * np.sign(error.sum(axis=0))
    np.testing.assert_allclose(fitted.outputs, expected, atol=1e-4)


def test_a_regression_is_zero_mean_on_train_and_answers_in_its_own_units() -> None:
    features = _features([1] * 10, 3)
    values = 1000.0 + np.arange(10)
    task = _task(values, "regression")
    untrained = fit("linear", features, task, 0, replace(SHORT, linear_lr=1e-15)).outputs
    assert abs(untrained.mean() - values[:6].mean()) < 5
    shifted = fit("linear", features, _task(values - 1000, "regression"), 0, SHORT).outputs
    np.testing.assert_allclose(fit("linear", features, task, 0, SHORT).outputs - 1000, shifted, atol=1e-4)


def test_the_epoch_is_chosen_on_val() -> None:
    # Val has the opposite labels of train: the longer the training, the worse val, so that the first epoch is the best.
    x = np.repeat(np.eye(2), 30, axis=0)
    features = Features(LEARNT, 2, [], torch.zeros(60, 2), torch.tensor(x, dtype=torch.float32))
    splits = (["train"] * 10 + ["val"] * 10 + ["test"] * 10) * 2
    right = np.repeat([0, 1], 30)
    opposed = np.where(np.array(splits) == "val", 1 - right, right)
    settings = replace(SHORT, linear_lr=0.05)
    assert fit("linear", features, _task(opposed, splits=splits), 0, settings).epoch < 5
    agreed = fit("linear", features, _task(right, splits=splits), 0, settings)
    assert agreed.epoch == 30  # accuracy is perfect long before, and the loss still falls
    assert (agreed.outputs.argmax(axis=1) == np.repeat([0, 1], 10)).all()


def test_few_videos_get_more_steps_in_as_many_epochs() -> None:
    features = _features([2] * 20, 4)
    task = _task(np.arange(20) % 2)
    settings = replace(SHORT, linear_min_steps=100, attentive_min_steps=50)
    linear, attentive = (fit(probe, features, task, 0, settings) for probe in ("linear", "attentive"))
    assert (linear.steps, linear.paper_steps) == (
        120,
        30,
    )  # one step holds all 12 videos: 4 passes in each of 30 epochs
    assert (attentive.steps, attentive.paper_steps) == (60, 20)
    assert fit("linear", features, task, 0, SHORT).steps == 30
    assert ProbeSettings.paper().linear_min_steps == ProbeSettings.paper().attentive_min_steps == 0


@pytest.mark.parametrize("probe", ["linear", "attentive"])
def test_seeds_repeat_and_differ_and_leave_torch_alone(probe: str) -> None:
    features = _features([3, 2, 5, 1] * 5, 8)
    task = _task(np.arange(20) % 3)
    state = torch.get_rng_state()
    first = fit(probe, features, task, 0, SHORT).outputs
    torch.randn(7)
    np.testing.assert_array_equal(first, fit(probe, features, task, 0, SHORT).outputs)
    assert np.abs(first - fit(probe, features, task, 1, SHORT).outputs).max() > 1e-3
    torch.set_rng_state(state)
    fit(probe, features, task, 0, SHORT)
    assert torch.equal(torch.get_rng_state(), state)


def test_sets_of_classes_are_learnt() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((60, 3)) < 0.5
    mean = torch.tensor(2.0 * targets - 1 + 0.1 * rng.normal(size=(60, 3)), dtype=torch.float32)
    features = Features(LEARNT, 3, [], torch.zeros(60, 3), mean)
    task = _task(targets, "multilabel")
    fitted = fit("linear", features, task, 0, replace(SHORT, linear_lr=0.05))
    assert (F.sigmoid(torch.tensor(fitted.outputs)).numpy() > 0.5).tolist() == targets[task.split(0)["test"]].tolist()


def test_standardized_features_of_any_scale_are_the_same_features() -> None:
    """The paper's rate moves a weight by 1e-4 a step, so that what a linear probe reaches depends on the features' length."""
    features = _features([1] * 200, 24)
    generator = torch.Generator().manual_seed(1)
    targets = (features.mean[:, 0] + features.mean[:, 1] > 0).numpy().astype(np.int64)
    task = _task(targets)
    scale, shift = 0.01 + torch.rand(24, generator=generator), torch.randn(24, generator=generator)
    moved = replace(features, mean=features.mean * scale + shift)
    same = [fit("linear-standardized", f, task, 0, SHORT).outputs for f in (features, moved)]
    np.testing.assert_allclose(same[0], same[1], atol=1e-4)
    plain = [fit("linear", f, task, 0, SHORT).outputs for f in (features, moved)]
    assert np.abs(plain[0] - plain[1]).max() > 0.1
    constant = replace(features, mean=torch.cat([features.mean[:, :23], torch.full((200, 1), 7.0)], dim=1))
    assert np.isfinite(fit("linear-standardized", constant, task, 0, SHORT).outputs).all()


def test_standardizing_looks_at_train_alone() -> None:
    features = _features([1] * 50, 6)
    task = _task(np.arange(50) % 2)
    rows = task.split(0)
    before = fit("linear-standardized", features, task, 0, SHORT).outputs
    other = features.mean.clone()
    other[torch.from_numpy(rows["test"][1:])] *= 100
    after = fit("linear-standardized", replace(features, mean=other), task, 0, SHORT).outputs
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1:] - after[1:]).max() > 1
