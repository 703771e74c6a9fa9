from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lvmae.model import attention
from lvmae.model.attention import GroupedAttention, VarlenAttention, group_rows, places_of, starts_of

CPU = torch.device("cpu")
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


def test_places_and_starts() -> None:
    assert starts_of([3, 0, 2]).tolist() == [0, 3, 3, 5]
    assert places_of([3, 0, 2]).tolist() == [0, 1, 2, 0, 1]


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
    found = GroupedAttention.plan(queries, keys, CPU)(q, k, v)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if sum(queries):
        weight = torch.randn_like(expected)
        ours = torch.autograd.grad((found * weight).sum(), (q, k, v))
        theirs = torch.autograd.grad((expected * weight).sum(), (q, k, v))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_row_without_gaps_needs_no_mask() -> None:
    assert [group.mask for group in GroupedAttention.plan([100], [100], CPU).groups] == [None]
    assert [group.mask for group in GroupedAttention.plan([64, 64], [64, 64], CPU).groups] == [None]
    # One long sequence: a mask over its keys would be as large as its square.
    (group,) = GroupedAttention.plan([100, 90], [100, 100], CPU).groups
    assert group.mask is None
    (group,) = GroupedAttention.plan([100, 99], [100, 99], CPU).groups
    assert group.mask is not None
    assert tuple(group.mask.shape) == (2, 1, 1, 100)


def test_half_precision_on_the_cpu_attends_in_float32() -> None:
    lengths = [5, 70]
    q, k, v = qkv(lengths, lengths, torch.bfloat16)
    found = GroupedAttention.plan(lengths, lengths, CPU)(q, k, v)
    exact = one_by_one(q.float(), k.float(), v.float(), lengths, lengths)
    assert found.dtype == torch.bfloat16
    # Rounded once, at the end: half a unit in the last of bfloat16's 8 bits, and what float32 sums differ by.
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-6)


def test_the_flash_plan_passes_cumulative_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs on CUDA alone; a loop with its signature stands in for it, the plan is real."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
        assert cu_q.dtype == cu_k.dtype == torch.int32
        queries, keys = cu_q.diff().tolist(), cu_k.diff().tolist()
        assert max(queries) <= max_q
        assert max(keys) <= max_k
        return one_by_one(q, k, v, queries, keys)

    if attention.varlen_attn is not None:
        real = list(inspect.signature(attention.varlen_attn).parameters)[:7]
        assert real == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    queries, keys = [2, 0, 300], [5, 3, 301]
    q, k, v = qkv(queries, keys)
    plan = VarlenAttention.plan(queries, keys, CPU)
    assert plan.query_starts.tolist() == [0, 2, 2, 302]
    assert plan.key_starts.tolist() == [0, 5, 8, 309]
    assert (plan.longest_query, plan.longest_key) == (512, 512)
    torch.testing.assert_close(plan(q, k, v), GroupedAttention.plan(queries, keys, CPU)(q, k, v), atol=1e-5, rtol=1e-5)


def test_the_oracle_of_this_file_is_attention() -> None:
    q, k, v = qkv([6], [6])
    expected = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v))).transpose(0, 1)
    torch.testing.assert_close(one_by_one(q, k, v, [6], [6]), expected, atol=1e-6, rtol=1e-6)
