"""Draws train, val and test if the labels have no split: by a seed, independent of the order of the rows.

Shapes: V videos, C classes. Every draw sorts by id first; so the same labels in another order give the same split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError

SPLITS = ("train", "val", "test")
_TEST_SHARE = _VAL_SHARE = 0.2
_SPLIT_STREAM, _SHARE_STREAM = 1, 4  # tell these uses of a seed from the others, so that no two streams are the same
_DRAWS = 50

Parts = dict[str, NDArray[np.intp]]


def stratified_split(ids: Sequence[str], strata: NDArray[np.int64], seed: int) -> Parts:
    """60/20/20 of every stratum (V), rounded; test gets one wherever there are two, and val wherever there are three."""
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    order = _by_id(ids)
    parts: dict[str, list[NDArray[np.intp]]] = {name: [] for name in SPLITS}
    for stratum in np.unique(strata):
        rows = rng.permutation(order[strata[order] == stratum])
        n_test = max(round(_TEST_SHARE * len(rows)), min(1, len(rows) - 1))
        n_val = max(round(_VAL_SHARE * len(rows)), min(1, len(rows) - 1 - n_test))
        parts["test"].append(rows[:n_test])
        parts["val"].append(rows[n_test : n_test + n_val])
        parts["train"].append(rows[n_test + n_val :])
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def balanced_split(ids: Sequence[str], belongs: NDArray[np.bool_], groups: Sequence[str] | None, seed: int) -> Parts:
    """60/20/20 of the videos, whole groups on one side, every class in train.

    Of 50 draws the one that shares the classes out best is taken; a class that train lacks in it then moves there, by
    the smallest group that has it.

    Args:
        ids: (V).
        belongs: (V, C), which classes a video has; C may be 0.
        groups: (V), or None if every video is its own.

    Raises:
        InputError: for fewer than three groups.
    """
    order = _by_id(ids)
    names = [ids[i] if groups is None else groups[i] for i in order]
    members: dict[str, list[int]] = {}
    for name, row in zip(names, order.tolist(), strict=True):
        members.setdefault(name, []).append(row)
    units = [np.array(rows, dtype=np.intp) for _, rows in sorted(members.items())]
    if len(units) < len(SPLITS):
        raise InputError(
            f"the videos are of {len(units)} group{'s' * (len(units) != 1)}, and train, val and test need one each; "
            "label videos of more groups"
        )
    sizes = np.array([len(rows) for rows in units])
    counts = np.array([belongs[rows].sum(axis=0) for rows in units]).reshape(len(units), belongs.shape[1])
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    draws = 1 if groups is None and not belongs.shape[1] else _DRAWS
    best = min((_assigned(sizes, rng.permutation(len(units))) for _ in range(draws)), key=lambda a: _cost(a, counts))
    for number in range(belongs.shape[1]):
        if counts[:, number].any() and not counts[best == 0, number].any():
            having = np.flatnonzero(counts[:, number])
            best[having[np.argmin(sizes[having])]] = 0
    empty: NDArray[np.intp] = np.empty(0, np.intp)
    return {
        name: np.sort(np.concatenate([empty, *(units[u] for u in np.flatnonzero(best == part))]))
        for part, name in enumerate(SPLITS)
    }


def share_of_train(
    ids: Sequence[str], train: NDArray[np.intp], share: float, belongs: NDArray[np.bool_], *, one_each: bool, seed: int
) -> NDArray[np.intp]:
    """A share of the rows of train, drawn by `seed`; of a larger share more are drawn, and the same ones first.

    Args:
        belongs: (V, C), which classes a video has.
        one_each: whether a video has one class, so that each class gives its share, and one video at least; else the whole
            is drawn from, and a class that was left out gets its first video.
    """
    rng = np.random.default_rng([seed, _SHARE_STREAM])
    order = _by_id(ids)
    shuffled = rng.permutation(order[np.isin(order, train)])
    classes = np.flatnonzero(belongs[train].any(axis=0))
    strata = [shuffled[belongs[shuffled, number]] for number in classes] if one_each else [shuffled]
    chosen = [rows[: max(1, round(share * len(rows)))] for rows in strata]
    if not one_each:
        chosen += [shuffled[belongs[shuffled, n]][:1] for n in classes if not belongs[chosen[0], n].any()]
    return np.unique(np.concatenate(chosen))


def _by_id(ids: Sequence[str]) -> NDArray[np.intp]:
    return np.array(sorted(range(len(ids)), key=lambda row: ids[row]), dtype=np.intp)


def _assigned(sizes: NDArray[np.int64], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """A part (0 train, 1 val, 2 test) for each unit, in turn the part that lacks most of its share."""
    wanted = np.array([1 - _TEST_SHARE - _VAL_SHARE, _VAL_SHARE, _TEST_SHARE]) * sizes.sum()
    has = np.zeros(3)
    part = np.zeros(len(sizes), dtype=np.intp)
    for place, unit in enumerate(order.tolist()):
        lack = wanted - has
        if len(order) - place <= (has == 0).sum():  # the last units go where nothing is yet
            lack = np.where(has == 0, lack, -np.inf)
        part[unit] = int(np.argmax(lack))
        has[part[unit]] += sizes[unit]
    return part


def _cost(part: NDArray[np.intp], counts: NDArray[np.int64]) -> float:
    """How far the classes' shares of val and test are from 20 %, and how many train lacks."""
    total = np.maximum(counts.sum(axis=0), 1)
    away = sum(float(np.abs(counts[part == p].sum(axis=0) / total - 0.2).sum()) for p in (1, 2))
    return away + 10.0 * float((counts[part == 0].sum(axis=0) == 0).sum())
