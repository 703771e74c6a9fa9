"""The moments that several stores of the same videos find, as one ranking.

Enters: for each store, its moments, best first. Leaves: hits with their ranks in each store. Cosines of different encoders
cannot be compared, so only ranks count: reciprocal rank fusion (Cormack et al. 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lvmae.errors import InputError
from lvmae.library.search import Moment

DEPTH = 100
"""Moments to ask of each store: what ranks lower adds little."""

_CONSTANT = 60  # added to ranks, as in the paper


@dataclass(frozen=True)
class FusedMoment:
    """A moment that one or more stores find, with its times in the store that ranks it best."""

    video: str
    start: float  # seconds
    end: float
    score: float
    """Sum of 1 / (60 + rank) over the stores that find it."""
    ranks: tuple[int | None, ...]
    """Its rank in each store, from 1; None in one that does not find it."""


def fuse(searches: Sequence[Sequence[Moment]], top: int = 10, *, one_a_video: bool = False) -> list[FusedMoment]:
    """Returns the `top` hits of several searches, best first.

    Hits are the moments by rank, of equal ranks those of the earlier store first, without those that overlap a hit before them.
    A hit has in each store the best rank among the moments of its video that overlap it.

    Args:
        searches: the moments that each store finds, best first.
        top: how many.
        one_a_video: moments of a video match whatever their times.

    Raises:
        InputError: no hit is asked for.
    """
    if top < 1:
        raise InputError(f"at least one moment must be asked for, not {top}")
    by_video: dict[str, list[list[tuple[int, Moment]]]] = {}
    ranked = []
    for place, moments in enumerate(searches):
        for rank, moment in enumerate(moments, start=1):
            by_video.setdefault(moment.video, [[] for _ in searches])[place].append((rank, moment))
            ranked.append((rank, place, moment))
    hits: list[FusedMoment] = []
    taken: dict[str, list[Moment]] = {}
    for _, _, moment in sorted(ranked, key=lambda one: one[:2]):
        mine = taken.setdefault(moment.video, [])
        if any(one_a_video or _overlap(moment, hit) for hit in mine):
            continue
        mine.append(moment)
        ranks = tuple(
            next((rank for rank, other in found if one_a_video or _overlap(moment, other)), None)
            for found in by_video[moment.video]
        )
        score = sum(1 / (_CONSTANT + rank) for rank in ranks if rank is not None)
        hits.append(FusedMoment(moment.video, moment.start, moment.end, score, ranks))
    return sorted(hits, key=lambda hit: -hit.score)[:top]


def _overlap(one: Moment, other: Moment) -> bool:
    return one.start < other.end and other.start < one.end
