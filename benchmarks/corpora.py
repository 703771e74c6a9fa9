"""Corpora of anybody's for `learning.py` and `defaults.py`: a generator is a function of a seed that gives a `Corpus`.

    python benchmarks/learning.py --corpus corpora:styled --out styled.json

A generator of your own, `module:function`, gives any object with the four attributes of a `Corpus`, or a mapping with these keys.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError
from lvmae.store import Manifest, StoreWriter, VideoRecord, l2_normalize

SPLITS = ("train", "val", "test", "unlabelled")


@dataclass(frozen=True)
class Corpus:
    """Sequences with labels.

    Attributes:
        ids: of V videos.
        embeddings: of each, (L, D).
        labels: task -> id -> label. A video may lack one.
        splits: id -> "train", "val", "test" or "unlabelled". Pre-training sees "train" and "unlabelled", without labels.
    """

    ids: Sequence[str]
    embeddings: Sequence[NDArray[Any]]
    labels: Mapping[str, Mapping[str, str]]
    splits: Mapping[str, str]


def load_corpus(name: str, seed: int = 0) -> Corpus:
    """What the generator `module:function` gives, checked. Raises InputError if it is no corpus."""
    module, _, attribute = name.partition(":")
    sys.path.append(str(Path.cwd()))  # where a generator of one's own lies
    try:
        made = getattr(import_module(module), attribute)(seed)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no generator {name}, module:function of a seed: {error}") from None
    try:
        parts = {key: made[key] if isinstance(made, Mapping) else getattr(made, key) for key in Corpus.__annotations__}
    except (KeyError, AttributeError) as error:
        raise InputError(f"{name} gives no corpus: it lacks {error}") from None
    corpus = Corpus(**parts)
    wrong = [id_ for id_ in corpus.ids if corpus.splits.get(id_) not in SPLITS]
    if wrong or len(set(corpus.ids)) != len(corpus.ids) or len(corpus.ids) != len(corpus.embeddings):
        raise InputError(
            f"{name} has to give one embedding array and one split ({', '.join(SPLITS)}) for each of its ids"
            + (f"; '{wrong[0]}' has {corpus.splits.get(wrong[0])!r}" if wrong else "")
        )
    return corpus


def write_corpus(corpus: Corpus, root: Path, name: str) -> None:
    """Writes `pool`, the store to pre-train on, `videos`, that of all, and TASK.csv for each task; what is there is kept."""
    root.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        f"made/{name}", corpus.embeddings[0].shape[1], {"kind": "fixed", "seconds": 5.0}, {"name": "imported"}
    )
    for part, splits in (("pool", ("train", "unlabelled")), ("videos", SPLITS)):
        with StoreWriter(root / part, manifest) as writer:
            for id_, rows in zip(corpus.ids, corpus.embeddings, strict=True):
                if corpus.splits[id_] in splits and id_ not in writer.done:
                    starts = 5.0 * np.arange(len(rows))
                    writer.add(VideoRecord(id_, "", 5.0 * len(rows), starts, starts + 5.0, rows))
    for task, labels in corpus.labels.items():
        with (root / f"{task}.csv").open("w", newline="", encoding="utf-8") as file:
            known = ((id_, labels[id_], corpus.splits[id_]) for id_ in corpus.ids if id_ in labels)
            csv.writer(file).writerows([("id", "label", "split"), *(row for row in known if row[2] != "unlabelled")])


_SCENES, _THEMES = 12, 6
_LONGEST = {"slow": (4, 6), "medium": (2, 4), "fast": (1, 2)}  # segments a scene lasts


def styled(seed: int = 0, *, videos: int = 900, dim: int = 64, style: float = 0.81) -> Corpus:
    """Videos whose segments are alike: `style` of all variance lies between videos, in what each has of its own.

    A video goes through scenes, which follow each other mostly in one order (the next of 12, at a chance of 0.7). Its labels are
    drawn independently of each other and of its style:
        scenes   which 4 of the 12 scenes it stays in most: a bag of segments tells
        tempo    how long a scene lasts: pooling is nearly blind to it
        order    which of two marked scenes, that come once each in every video, comes first
        reprise  whether its last three scenes are its first three
    """
    rng = np.random.default_rng([seed, videos, dim])
    scenes = l2_normalize(rng.standard_normal((_SCENES + 2, dim)))
    common = 0.3 * l2_normalize(rng.standard_normal(dim))
    ids, rows, splits = [], [], {}
    labels: dict[str, dict[str, str]] = {task: {} for task in ("scenes", "tempo", "order", "reprise")}
    shares = {"train": 0.5, "val": 0.2, "test": 0.3}
    where = rng.permutation(np.repeat(list(shares), [round(videos * share) for share in shares.values()]))
    for number in range(len(where)):
        name = f"styled-{number:04d}"
        theme, tempo = int(rng.integers(_THEMES)), str(rng.choice(list(_LONGEST)))
        first, returns = bool(rng.integers(2)), bool(rng.integers(2))
        told = _story(rng, theme, tempo, first, returns)
        own = rng.standard_normal(dim) / np.sqrt(dim)
        noise = rng.standard_normal((len(told), dim)) / np.sqrt(dim)
        inside = scenes[told] + 0.5 * noise
        rows.append((own, inside))
        ids.append(name)
        splits[name] = str(where[number])
        for task, label in (
            ("scenes", f"theme-{theme}"),
            ("tempo", tempo),
            ("order", "a-first" if first else "b-first"),
            ("reprise", "returns" if returns else "goes-elsewhere"),
        ):
            labels[task][name] = label
    # Both parts are scaled to the shares of variance that they are to have.
    between = np.var(np.stack([own for own, _ in rows]), axis=0).sum()
    within = np.mean([np.var(inside, axis=0).sum() for _, inside in rows])
    size = np.sqrt(style / between), np.sqrt((1 - style) / within)
    embeddings = [
        l2_normalize(common + size[0] * own + size[1] * (inside - scenes[:_SCENES].mean(axis=0)))
        for own, inside in rows
    ]
    return Corpus(ids, embeddings, labels, splits)


def _story(rng: np.random.Generator, theme: int, tempo: str, first: bool, returns: bool) -> NDArray[np.int64]:
    """The scene of every segment, 28 to 36 of them."""
    total = int(rng.integers(28, 37))
    favoured = [(2 * theme + k) % _SCENES for k in range(4)]
    shots: list[int] = []
    lengths: list[int] = []
    scene = int(rng.choice(favoured))
    low, high = _LONGEST[tempo]
    while sum(lengths) < total:
        shots.append(scene)
        lengths.append(int(rng.integers(low, high + 1)))
        follows = (scene + 1) % _SCENES
        scene = (
            follows if rng.random() < 0.7 and (follows in favoured or rng.random() < 0.3) else int(rng.choice(favoured))
        )
    if returns:
        shots[-3:] = shots[:3]
    else:
        shots[-3:] = [(shot + 1 + int(rng.integers(_SCENES - 1))) % _SCENES for shot in shots[:3]]
    told = [shot for shot, length in zip(shots, lengths, strict=True) for _ in range(length)][:total]
    places = np.sort(rng.choice(np.arange(6, total - 6), size=2, replace=False))
    marked = (_SCENES, _SCENES + 1) if first else (_SCENES + 1, _SCENES)
    for place, scene in zip(places, marked, strict=True):
        told[place] = scene
    return np.array(told)


def share_between(corpus: Corpus) -> float:
    """The share of all variance that lies between videos' means."""
    means = np.stack([rows.mean(axis=0) for rows in corpus.embeddings])
    every = np.concatenate(list(corpus.embeddings))
    lengths = np.array([len(rows) for rows in corpus.embeddings])
    between = (lengths[:, None] * (means - every.mean(axis=0)) ** 2).sum() / len(every)
    return float(between / np.var(every, axis=0).sum())
