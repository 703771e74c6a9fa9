"""The end-to-end baselines: transformers' own Mamba, indifference to padding, order learnt, and where they may be run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from lvmae.errors import InputError
from lvmae.evaluation import ProbeSettings, Task, probe
from lvmae.evaluation.baselines import MambaBaseline, ScanMixer, end_to_end
from lvmae.store import EMBEDDINGS, REPRESENTATIONS, Manifest, StoreWriter, VideoRecord

D = 16
NAMES = ("transformer", "mamba")


def _batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(lengths), max(lengths), D, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.nn.functional.normalize(tokens, dim=-1) * mask[..., None], mask


def test_the_scan_is_the_mixer_of_transformers() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=1, hidden_size=24, num_hidden_layers=1)
    theirs, ours = MambaMixer(config, 0), ScanMixer(config, 0)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 17, 24, requires_grad=True)
    found, expected = ours(x), theirs(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    gradients = (
        torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])
        for y, mixer in ((found, ours), (expected, theirs))
    )
    for own, their in zip(*gradients, strict=True):
        torch.testing.assert_close(own, their, atol=1e-5 * float(their.abs().max()), rtol=1e-4)


def test_the_mamba_is_built_of_these_mixers() -> None:
    model = MambaBaseline(D, 3, 32, 2)
    assert [type(block.mixer) for block in model.blocks.layers] == [ScanMixer, ScanMixer]


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_company_change_nothing(name: str) -> None:
    lengths = [3, 1, 17, 8]
    tokens, mask = _batch(lengths)
    model = end_to_end(name, D, 3, width=32, layers=2, seed=0)
    together = model(tokens, mask, None)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, :length], mask[row : row + 1, :length], None)
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-4)
    spoiled = model(tokens.masked_fill(~mask[..., None], 10.0), mask, None)
    torch.testing.assert_close(spoiled, together, atol=1e-6, rtol=1e-5)
    with torch.no_grad():  # every real segment counts, the last one too
        changed = tokens.clone()
        changed[2, 16] = changed[2, 16].flip(0)
        assert (model(changed, mask, None)[2] - together[2]).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_drawn_by_the_seed_and_torch_is_left_alone(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (end_to_end(name, D, 3, width=32, layers=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    batch = _batch([4, 6])
    assert torch.equal(first(*batch, None), again(*batch, None))
    assert not torch.allclose(first(*batch, None), other(*batch, None))
    if name == "transformer":
        one, two = (layer.linear1.weight for layer in first.blocks.layers)
        assert not torch.equal(one, two)


def _store(path: Path, *, learnt: bool = False) -> tuple[Path, Task]:
    """80 videos of two events, of which one comes first: no average over segments tells which."""
    rng = np.random.default_rng(0)
    run = {"path": "run", "fingerprint": "of no run", "store": "raw"} if learnt else None
    kind = REPRESENTATIONS if learnt else EMBEDDINGS
    manifest = Manifest("toy", D, {"kind": "fixed", "seconds": 5.0}, {"name": "toy"}, kind=kind, run=run)
    events = rng.normal(size=(2, D))
    with StoreWriter(path, manifest) as writer:
        for number in range(80):
            half = int(rng.integers(2, 5))
            order = np.repeat([0, 1] if number % 2 else [1, 0], half)
            tokens = events[order] + 0.1 * rng.normal(size=(2 * half, D))
            starts = 5.0 * np.arange(2 * half)
            pooled = tokens.mean(axis=0) if learnt else None
            id_ = f"v{number}"
            writer.add(VideoRecord(id_, id_, 10.0 * half, starts, starts + 5, tokens, pooled, pooled))
    ids = tuple(f"v{number}" for number in range(80))
    return path, Task("order", "classification", ids, np.arange(80) % 2, ("a", "b"))


def test_baselines_learn_an_order_that_no_probe_of_raw_embeddings_sees(tmp_path: Path) -> None:
    store, task = _store(tmp_path / "raw")
    settings = ProbeSettings(
        baseline_width=32, baseline_epochs=5, baseline_min_steps=150, attentive_min_steps=0, bootstrap=50
    )
    table = probe(store, task, probes=["attentive", *NAMES], seeds=2, settings=settings)
    assert [table.row("raw embeddings", name).mean for name in NAMES] == [100.0, 100.0]
    assert table.row("raw embeddings", "attentive").mean < 80
    text = table.to_text()
    assert "transformer 150 (at least 150; its epochs alone: 15)" in text
    assert "the paper gives none" in text


def test_baselines_want_raw_embeddings(tmp_path: Path) -> None:
    raw, task = _store(tmp_path / "raw")
    reps, _ = _store(tmp_path / "reps", learnt=True)
    with pytest.raises(InputError, match=r"mamba learn end to end from raw embeddings, and .*reps holds representat"):
        probe(reps, task, probes=["linear", "mamba"], seeds=1)
    settings = ProbeSettings(linear_min_steps=0, baseline_width=16, baseline_epochs=1, baseline_min_steps=0)
    table = probe(reps, task, raw=raw, probes=["linear", "mamba"], seeds=1, settings=settings)
    assert [(row.features, row.probe) for row in table.rows] == [
        ("raw embeddings", "linear"),
        ("raw embeddings", "mamba"),
        ("LV-MAE", "linear"),
    ]
