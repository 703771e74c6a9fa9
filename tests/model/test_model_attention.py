from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lvmae.model import attention
from lvmae.model.attention import attend, group_rows, padded_attention

HEADS, CHANNELS = 2, 4


def one_by_one(q: Tensor, k: Tensor, v: Tensor, queries: list[int], keys: list[int]) -> Tensor:
    """Plain softmax attention of each sequence on its own."""
    outputs = []
    for q_b, k_b, v_b in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
        scores = torch.einsum("qhc,khc->hqk", q_b, k_b) / CHANNELS**0.5
        outputs.append(torch.einsum("hqk,khc->qhc", scores.softmax(-1), v_b))
    return torch.cat(outputs)


def qkv(queries: list[int], keys: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(keys))
    return [
        torch.randn(n, HEADS, CHANNELS, generator=generator).to(dtype).requires_grad_()
        for n in (sum(queries), sum(keys), sum(keys))
    ]


def starts_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def test_rows_join_short_sequences_and_keep_long_ones_alone() -> None:
    # 64 is the longest that is joined; 65 and 96 round up to 96, 97 to 128.
    assert group_rows([65, 30, 64, 97, 34, 1, 96]) == [[[3]], [[6], [0]], [[2], [4, 1], [5]]]
    assert group_rows([]) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 96, 97, 128, 129])), st.floats(0, 1)),
        min_size=1,
        max_size=7,
    ),
    st.booleans(),
)
def test_sequences_attend_to_themselves_alone(drawn: list[tuple[int, float]], own_queries: bool) -> None:
    keys = [n for n, _ in drawn]
    queries = keys if own_queries else [round(n * share) for n, share in drawn]
    q, k, v = qkv(queries, keys)
    expected = one_by_one(q, k, v, queries, keys)
    weight = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for way in (attend, padded_attention) if sum(queries) else (attend,):
        found = way(q, k, v, starts_of(queries), starts_of(keys), 129)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        ours = torch.autograd.grad((found * weight).sum(), (q, k, v))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_row_without_gaps_needs_no_mask() -> None:
    def masks(queries: list[int], keys: list[int]) -> list[Tensor | None]:
        return [group.mask for group in attention._layout(starts_of(queries), starts_of(keys)).groups]

    assert masks([100], [100]) == [None]
    assert masks([64, 64], [64, 64]) == [None]
    # Long sequences: a mask over their keys alone, for one over queries too would be as large as the square.
    assert masks([100, 90], [100, 100]) == [None]
    (mask,) = masks([100, 99], [100, 99])
    assert mask is not None
    assert tuple(mask.shape) == (2, 1, 1, 100)


def test_half_precision_on_the_cpu_attends_in_float32() -> None:
    lengths = [5, 70]
    q, k, v = qkv(lengths, lengths, torch.bfloat16)
    found = attend(q, k, v, starts_of(lengths), starts_of(lengths), 70)
    exact = one_by_one(q.float(), k.float(), v.float(), lengths, lengths)
    assert found.dtype == torch.bfloat16
    # Rounded once, at the end: half a unit in the last of bfloat16's 8 bits, and what float32 sums differ by.
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-6)
    ours, theirs = (torch.autograd.grad(out.float().square().sum(), (q, k, v)) for out in (found, exact))
    assert all(gradient.dtype == torch.bfloat16 for gradient in ours)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2**-6, atol=2**-6 * b.float().abs().max().item())


@pytest.mark.parametrize("sequence", [1, 3])
def test_what_is_not_finite_in_a_long_sequence_stays_there(sequence: int) -> None:
    lengths = [10, 70, 12, 66]
    q, k, v = qkv(lengths, lengths)
    starts = starts_of(lengths)
    with torch.no_grad():
        v[starts[sequence] : starts[sequence + 1]] = torch.nan
    found = attend(q, k, v, starts, starts, 70)
    others = torch.ones(sum(lengths), dtype=torch.bool)
    others[starts[sequence] : starts[sequence + 1]] = False
    assert found[others].isfinite().all()
    assert not found[~others].isfinite().any()
    (gradient,) = torch.autograd.grad(found[others].sum(), q)
    assert gradient[others].isfinite().all()


def test_keys_that_nothing_looks_at_have_no_gradient() -> None:
    queries, keys = [0, 70, 0], [80, 70, 5]  # the first in the group of the second, the last in a group of its own
    q, k, v = qkv(queries, keys)
    found = attend(q, k, v, starts_of(queries), starts_of(keys), 80)
    gradients = torch.autograd.grad(found.square().sum(), (k, v))
    for gradient in gradients:
        assert (gradient[80:150] != 0).any(dim=1).all()
        assert gradient[:80].abs().max() == gradient[150:].abs().max() == 0


def test_the_operator_is_one_that_graphs_can_hold() -> None:
    queries, keys = [3, 0, 70], [5, 4, 80]
    q, k, v = qkv(queries, keys)
    torch.library.opcheck(attention.grouped_attention, (q, k, v, starts_of(queries), starts_of(keys)))


def test_flash_attention_takes_what_it_is_given() -> None:
    """The kernel runs on CUDA alone (tests marked gpu); its signature is known everywhere."""
    if attention.varlen_attn is not None:
        real = list(inspect.signature(attention.varlen_attn).parameters)[:7]
        assert real == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_the_oracle_of_this_file_is_attention() -> None:
    q, k, v = qkv([6], [6])
    expected = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v))).transpose(0, 1)
    torch.testing.assert_close(one_by_one(q, k, v, [6], [6]), expected, atol=1e-6, rtol=1e-6)
