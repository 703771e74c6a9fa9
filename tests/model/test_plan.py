"""Plans by hand; dummies that change nothing; and compiled blocks, once for all batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lvmae.model import LVMAEForPreTraining
from lvmae.model.plan import Capacity, make_plan
from lvmae.model.positions import row_positions, sincos_positions


def test_a_plan_by_hand() -> None:
    plan = make_plan([2, 0, 3], np.array([False, True, True, False, False]))
    assert plan.places.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert plan.tokens.tolist() == [5, 0, 1, 5, 5, 2, 3, 4]
    assert plan.visible.tolist() == [0, 1, 3, 4, 6, 7]
    assert plan.wanted.tolist() == [2, 5]
    assert plan.weights.tolist() == [0.5, 0.5]
    assert plan.sequence.tolist() == [0, 0, 2, 2, 2]
    assert plan.seen.tolist() == [True, False, False, True, True]
    assert plan.row_starts.tolist() == [0, 3, 4, 8]
    assert plan.visible_starts.tolist() == [0, 2, 3, 6]
    assert plan.wanted_starts.tolist() == [0, 1, 1, 2]
    assert plan.longest == 4
    everywhere = make_plan([2, 0, 3], np.array([False, True, True, False, False]), everywhere=True)
    assert everywhere.wanted.tolist() == [1, 2, 5, 6, 7]
    assert everywhere.weights.tolist() == [0, 0.5, 0.5, 0, 0]


def test_a_plan_filled_up_by_hand() -> None:
    masked = np.array([False, True, True])
    capacity = Capacity(sequences=4, visible=4, masked=5, longest=4)
    plan = make_plan([2, 1], masked, capacity=capacity, weight=0.25)
    assert plan.row_starts.tolist() == [0, 3, 5, 10, 13]
    assert plan.visible.tolist() == [0, 1, 3, 5, 6, 7, 10, 11]
    assert plan.wanted.tolist() == [2, 4, 8, 9, 12]
    assert plan.weights.tolist() == [0.25, 0.25, 0, 0, 0]
    assert plan.seen.tolist() == [True] + [False] * 8
    # Two dummies would share 3 visible and 3 masked tokens; (2, 2) are too many for one.
    with pytest.raises(ValueError, match="leaves too much"):
        make_plan([2, 1], masked, capacity=dataclasses.replace(capacity, longest=3))
    with pytest.raises(ValueError, match="does not fit"):
        make_plan([1] * 5, np.ones(5, dtype=bool), capacity=capacity)


def test_positions_by_rule() -> None:
    plain = make_plan([7, 2])
    rows = row_positions(plain.places, plain.longest, 6)
    assert torch.equal(rows[[0, 8]], torch.zeros(2, 6))
    assert torch.equal(rows[1:8], sincos_positions(torch.arange(7), 6))
    assert torch.equal(rows[9:], sincos_positions(torch.arange(2), 6))
    squeezed = make_plan([7, 2], squeeze_to=4)
    rows = row_positions(squeezed.places, squeezed.longest, 6)
    assert torch.equal(rows[[0, 8]], torch.zeros(2, 6))
    torch.testing.assert_close(rows[1:8], sincos_positions(torch.arange(7) / 2, 6))
    torch.testing.assert_close(rows[9:], sincos_positions(torch.arange(2), 6))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=5), min_size=1, max_size=5), st.integers(1, 8))
def test_a_capacity_holds_its_batches_and_all_have_its_sizes(batches: list[list[int]], step: int) -> None:
    masks = [[np.arange(n) % 3 == 0 for n in lengths] for lengths in batches]
    sizes = [(len(m), int(sum((~x).sum() for x in m)), int(sum(x.sum() for x in m))) for m in masks]
    capacity = Capacity.of(sizes, longest=9, step=step)
    shapes = set()
    for lengths, each, (count, _, hidden) in zip(batches, masks, sizes, strict=True):
        plan = make_plan(lengths, np.concatenate(each), capacity=capacity)
        shapes.add(tuple(x.shape for x in plan[:-1]))
        assert plan.longest == 10
        assert plan.row_starts.diff().max() <= 10
        assert (plan.visible_starts.diff() >= 1).all(), "every query needs a key"
        assert plan.weights.sum().item() == pytest.approx(1)
        assert (plan.weights > 0).sum() == hidden
        assert plan.seen.sum() == sum(lengths) - hidden
        exact = make_plan(lengths, np.concatenate(each))
        for ours, theirs in zip(
            (plan.visible_starts, plan.row_starts), (exact.visible_starts, exact.row_starts), strict=True
        ):
            assert torch.equal(ours[: count + 1], theirs)
        assert torch.equal(plan.wanted[:hidden], exact.wanted)
    assert shapes == {
        ((capacity.tokens + capacity.sequences,),) * 2
        + ((capacity.visible + capacity.sequences,),)
        + ((capacity.masked,),) * 2
        + ((capacity.tokens,),) * 2
        + ((capacity.sequences + 1,),) * 3
    }


def gradients(model: LVMAEForPreTraining, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return torch.cat([gradient.flatten() for gradient in found])


def filled(batch: Any, capacity: Capacity) -> dict[str, Any]:
    """The example as a loader gives it: filled up, with something in the dummies."""
    rest = torch.full((capacity.tokens - sum(batch.lengths), batch.sequences[0].shape[1]), 0.3)
    plan = make_plan(batch.lengths, torch.cat(batch.masks).numpy(), capacity=capacity)
    return {"inputs_embeds": torch.cat([*batch.sequences, rest]), "plan": plan}


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_dummies_change_nothing(make_model: Callable[..., Any], example: Any, loss: str) -> None:
    model = make_model(loss=loss)
    for lengths in ([5, 70, 100], [2], [150, 3]):
        batch = example(lengths, 24)
        expected = model(**batch.packed)
        hidden = sum(lengths) - sum(batch.num_visible)
        capacity = Capacity.of([(len(lengths), sum(batch.num_visible), hidden), (5, 300, 301)], longest=160)
        found = model(**filled(batch, capacity))
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
        exact = gradients(model, expected.loss)
        torch.testing.assert_close(gradients(model, found.loss), exact, rtol=0, atol=1e-5 * exact.abs().max().item())


def test_compiled_whole_blocks_once_for_200_batches(make_model: Callable[..., Any], example: Any) -> None:
    """fullgraph: no graph break; what is compiled after the first step, of any size, would be counted."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, exact = make_model(), make_model()
    for block in model.blocks():
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True, dynamic=True)
    rng = np.random.default_rng(0)
    for n in range(200):
        videos = 3 if n % 10 == 9 else 6  # every tenth batch is the short last one of an epoch
        batch = example(rng.integers(2, 20, size=videos).tolist(), 24, seed=n)
        # Three epochs, each of its own capacity.
        capacity = Capacity.of([(6, 70 + n // 70 * 8, 80 + n // 70 * 8)], longest=160)
        loss = model(**filled(batch, capacity)).loss
        if n % 50 == 0:
            reference = gradients(exact, exact(**batch.packed).loss)
            torch.testing.assert_close(
                gradients(model, loss), reference, rtol=0, atol=1e-5 * reference.abs().max().item()
            )
            if n == 0:
                compiled = len(graphs)
    assert len(graphs) == compiled == 3, "one for the encoder, one for the decoder, one for its last layer"
    torch._dynamo.reset()
