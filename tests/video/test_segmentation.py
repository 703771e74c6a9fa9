"""Timelines, with literal values at the edges and properties everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmae.errors import InputError
from lvmae.video.segmentation import SegmentRule


@pytest.mark.parametrize(
    ("duration", "starts", "ends"),
    [
        (0.04, [0], [0.04]),
        (4.99, [0], [4.99]),
        (5.0, [0], [5]),
        (7.49, [0], [7.49]),  # under half the length is left: it joins the one before
        (7.5, [0, 5], [5, 7.5]),
        (9.99, [0, 5], [5, 9.99]),
        (10.0, [0, 5], [5, 10]),
        (12.4, [0, 5], [5, 12.4]),
        (12.6, [0, 5, 10], [5, 10, 12.6]),
    ],
)
def test_fixed_segments(duration: float, starts: list[float], ends: list[float]) -> None:
    got = SegmentRule(5.0).segments(duration)
    assert (got[0].tolist(), got[1].tolist()) == (starts, ends)


def test_overlapping_segments() -> None:
    rule = SegmentRule(5.0, stride=2.5)
    assert [a.tolist() for a in rule.segments(10.0)] == [[0, 2.5, 5], [5, 7.5, 10]]
    assert [a.tolist() for a in rule.segments(12.0)] == [[0, 2.5, 5, 7], [5, 7.5, 10, 12]]
    assert [a.tolist() for a in rule.segments(11.0)] == [[0, 2.5, 5], [5, 7.5, 11]]
    assert [a.tolist() for a in rule.segments(3.0)] == [[0], [3]]
    assert rule.description == {"kind": "overlapping", "seconds": 5.0, "stride": 2.5}
    assert SegmentRule(5, stride=5).description == SegmentRule(5).description == {"kind": "fixed", "seconds": 5.0}


@given(st.floats(0.01, 40_000), st.floats(0.5, 60))
def test_fixed_segments_cover_the_video_once(duration: float, seconds: float) -> None:
    starts, ends = SegmentRule(seconds).segments(duration)
    assert starts[0] == 0
    assert ends[-1] == duration
    assert (starts[1:] == ends[:-1]).all()
    if len(starts) > 1:
        assert (ends - starts).min() >= seconds / 2 * (1 - 1e-5)
        assert (ends - starts).max() <= seconds * 1.5 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("seconds", "stride"), [(0.0, None), (-1.0, None), (float("inf"), None), (5.0, 0.0), (5.0, 6.0)]
)
def test_impossible_rules(seconds: float, stride: float | None) -> None:
    with pytest.raises(InputError):
        SegmentRule(seconds, stride)
