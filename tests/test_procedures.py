"""Procedures: classes are arrangements of one set of embeddings, so that nothing blind to order can tell them apart."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lvmae.demo.procedures import CLASSES, OCCURRENCES, SPLITS, MadeUp, make_procedures, video
from lvmae.errors import InputError
from lvmae.evaluation import probe
from lvmae.store import EmbeddingStore

SOURCE = MadeUp(dim=32)


class Named:
    """A source whose embedding of subject k is the number k: what is shown can be read off."""

    name, dim, subjects = "named", 1, 12

    def look(self, rng: np.random.Generator) -> None:
        return None

    def segments(self, rng: np.random.Generator, subject: int, count: int, look: None, split: str) -> np.ndarray:
        return np.full((count, 1), float(subject))


def shown(family: str, label: str, number: int) -> list[int]:
    """The steps of a video in turn, gaps left out; every gap has a segment, so that steps never run together."""
    rows = video(Named(), family, label, number=number, split="train")[:, 0].astype(int).tolist()
    return [k for k, before in zip(rows, [-1, *rows[:-1]], strict=True) if k < 6 and k != before]


@pytest.mark.parametrize("family", list(CLASSES))
def test_classes_are_arrangements_of_one_set(family: str) -> None:
    for number in range(20):
        videos = [video(SOURCE, family, label, number=number, split="test") for label in CLASSES[family]]
        first = np.sort(videos[0], axis=0)
        for other in videos[1:]:
            np.testing.assert_array_equal(np.sort(other, axis=0), first)
            assert Counter(row.tobytes() for row in other) == Counter(row.tobytes() for row in videos[0])
        assert len({rows.tobytes() for rows in videos}) > 1


def test_every_class_shows_its_procedure() -> None:
    for number in range(40):
        for family, classes in CLASSES.items():
            for label, pattern in classes.items():
                steps = shown(family, label, number)
                assert Counter(steps) == Counter(OCCURRENCES[family])
                if family == "agreement":
                    assert (steps[0] == steps[-1]) == (label == "agrees")
                    continue
                meant = [sorted(set(OCCURRENCES[family]))["abcdef".index(letter)] for letter in pattern]
                differing = [place for place in range(6) if steps[place] != meant[place]]
                assert not differing or differing == [differing[0], differing[0] + 1]  # two neighbours swapped, at most


def test_the_stores_and_the_labels_are_what_was_asked(tmp_path: Path) -> None:
    counts = {"train": 12, "val": 6, "test": 6, "unlabelled": 4}
    corpus = make_procedures(tmp_path / "corpus", SOURCE, **counts)
    videos, pool = EmbeddingStore.open(corpus.videos), EmbeddingStore.open(corpus.pool)
    assert (len(videos), len(pool)) == (3 * 24, 3 * 16)
    assert {id_.split("-")[1] for id_ in pool.ids} == {"train", "unlabelled"}  # no test video is ever trained on
    for family, classes in CLASSES.items():
        rows = list(csv.DictReader(corpus.labels(family).open()))
        assert Counter(row["split"] for row in rows) == {split: counts[split] for split in SPLITS[:3]}
        balance = Counter(row["label"] for row in rows if row["split"] == "train")
        assert balance == dict.fromkeys(classes, 12 // len(classes))
    again = make_procedures(tmp_path / "corpus", SOURCE, **counts)
    assert EmbeddingStore.open(again.videos).fingerprint == videos.fingerprint
    with pytest.raises(InputError):
        make_procedures(tmp_path / "corpus", SOURCE, **{**counts, "train": 18})


def test_a_probe_of_the_pooled_embeddings_stands_at_chance(tmp_path: Path) -> None:
    """The largest gap to chance that 400 test videos leave: 3 standard deviations of guessing."""
    corpus = make_procedures(tmp_path / "corpus", SOURCE, train=120, val=40, test=400, unlabelled=0)
    for family, classes in CLASSES.items():
        [row] = probe(corpus.videos, corpus.labels(family), probes=("linear",), seeds=1).rows
        chance = 1 / len(classes)
        assert abs(row.mean / 100 - chance) < 3 * np.sqrt(chance * (1 - chance) / 400)
