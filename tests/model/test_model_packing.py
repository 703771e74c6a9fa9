from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmae.model import LVMAEConfig
from lvmae.model.packing import Batch, Windows

CONFIG = LVMAEConfig(hidden_size=2, num_attention_heads=1, max_segments=4)


def test_real_tokens_are_taken_wherever_they_lie() -> None:
    x = torch.arange(8.0).view(2, 4, 1).expand(2, 4, 2)
    real = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])
    masked = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1]]).bool()
    batch = Batch.of(x, real, masked, config=CONFIG)
    assert batch.tokens[:, 0].tolist() == [1, 2, 4, 6, 7]
    assert batch.lengths == [2, 3]
    assert batch.masked is not None
    assert batch.masked.tolist() == [False, True, False, False, True]
    plan = batch.plan(CONFIG)
    assert plan.visible.tolist() == [0, 1, 3, 4, 5]  # [CLS], the visible token; [CLS], two visible tokens
    assert plan.wanted.tolist() == [2, 6]
    out = batch.with_cls(torch.arange(7.0)[:, None])
    assert out[..., 0].tolist() == [[0, 0, 1, 2, 0], [3, 4, 0, 5, 6]]
    back = batch.without_cls(torch.tensor([[8.0], [9.0]]), plan.tokens[plan.wanted])
    assert back[..., 0].tolist() == [[0, 0, 8, 0], [0, 0, 0, 9]]


def test_windows_overlap_by_half_and_end_with_the_sequence() -> None:
    windows = Windows.of([9, 3], 4)
    assert windows.sizes == [4, 4, 4, 4, 3]
    assert windows.source.tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10, 11]
    assert windows.target.tolist()[:10] == [0, 1, 2, 3, 4, 0, 3, 4, 5, 6]
    assert windows.target.tolist()[-4:] == [10, 11, 12, 13]
    fade = [1, 2, 2, 1]
    assert windows.weight[:5].tolist() == pytest.approx([1 / 4, 1, 1, fade[2] / (2 + 1), fade[3] / (1 + 2)])
    assert windows.weight[-4:].tolist() == [1, 1, 1, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 9), st.integers(1, 40))
def test_window_weights_sum_to_one_and_slices_are_bounded(lengths: list[int], size: int, slice_tokens: int) -> None:
    windows = Windows.of(lengths, size)
    total = np.zeros(sum(lengths) + len(lengths))
    np.add.at(total, windows.target, windows.weight)
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    parts = list(windows.slices(slice_tokens))
    assert [n for part in parts for n in part.sizes] == windows.sizes
    assert np.array_equal(np.concatenate([part.source for part in parts]), windows.source)
    assert np.array_equal(np.concatenate([part.target for part in parts]), windows.target)
    assert np.array_equal(np.concatenate([part.weight for part in parts]), windows.weight)
    assert all(sum(part.sizes) <= slice_tokens or len(part.sizes) == 1 for part in parts)


def refused(*args: object, **kwargs: object) -> str:
    with pytest.raises(ValueError) as caught:
        Batch.of(*args, config=CONFIG, **kwargs)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_does_not_fit_together_is_refused() -> None:
    x = torch.zeros(1, 5, 2)
    masked = torch.tensor([[True, False, True, False, False]])
    assert refused(torch.zeros(1, 5, 3)) == (
        "inputs_embeds has the shape (1, 5, 3); it should be (batch, segments, 2), "
        "for the model takes embeddings of 2 dimensions"
    )
    assert "attention_mask has the shape (1, 4)" in refused(x, torch.ones(1, 4))
    assert "bool_masked_pos has the shape (1, 6)" in refused(x, None, torch.ones(1, 6))
    assert refused(x, lengths=[2, 2]) == (
        "lengths sum to 4 and inputs_embeds has the shape (1, 5, 2); a packed batch is one row (1, 4, 2)"
    )
    assert "lengths sum to 5" in refused(x, lengths=[6, -1])
    assert "give lengths for a packed batch alone" in refused(x, torch.ones(1, 5), lengths=[5])
    assert refused(x, None, masked, lengths=[2, 3], num_visible=[2, 1]) == (
        "num_visible is [2, 1] and bool_masked_pos leaves [1, 2] segments visible"
    )
    assert "masks nothing" in refused(x, None, torch.zeros(1, 5, dtype=torch.bool))
