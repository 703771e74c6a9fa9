"""The benchmark of learning takes anybody's corpus, and the one that comes with it is what it says."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lvmae.errors import InputError
from lvmae.store import EmbeddingStore


@pytest.fixture(scope="module")
def corpora() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        import corpora
    finally:
        sys.path.pop(0)
    return corpora


def small(seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    ids = [f"v{number}" for number in range(8)]
    splits = dict(zip(ids, ["train", "train", "train", "val", "test", "test", "unlabelled", "unlabelled"], strict=True))
    labels = {"side": {id_: "lr"[number % 2] for number, id_ in enumerate(ids[:6])}, "odd": {"v0": "a", "v4": "b"}}
    return {
        "ids": ids,
        "embeddings": [rng.normal(size=(3 + n, 4)) for n in range(8)],
        "labels": labels,
        "splits": splits,
    }


def lacking(seed: int) -> dict[str, object]:
    return {key: value for key, value in small(seed).items() if key != "splits"}


def astray(seed: int) -> dict[str, object]:
    made = small(seed)
    return {**made, "splits": {**made["splits"], "v3": "later"}}  # type: ignore[dict-item]


def test_a_generator_of_ones_own_is_written(corpora: ModuleType, tmp_path: Path) -> None:
    corpus = corpora.load_corpus(f"{__name__}:small", 3)
    corpora.write_corpus(corpus, tmp_path, "mine")
    assert set(EmbeddingStore.open(tmp_path / "videos").ids) == set(corpus.ids)
    assert set(EmbeddingStore.open(tmp_path / "pool").ids) == {"v0", "v1", "v2", "v6", "v7"}
    rows = list(csv.DictReader((tmp_path / "odd.csv").open()))
    assert rows == [{"id": "v0", "label": "a", "split": "train"}, {"id": "v4", "label": "b", "split": "test"}]
    for name, said in (("lacking", "lacks 'splits'"), ("astray", "'v3' has 'later'"), ("nothing", "no generator")):
        with pytest.raises(InputError, match=said):
            corpora.load_corpus(f"{__name__}:{name}")


def test_the_styled_corpus_is_what_it_says(corpora: ModuleType) -> None:
    corpus = corpora.styled(0, videos=200)
    assert corpora.share_between(corpus) == pytest.approx(0.81, abs=0.02)
    again = corpora.styled(0, videos=200)
    assert all(np.array_equal(a, b) for a, b in zip(corpus.embeddings, again.embeddings, strict=True))
    assert sorted(set(corpus.splits.values())) == ["test", "train", "val"]
    assert {task: len(set(labels.values())) for task, labels in corpus.labels.items()} == {
        "scenes": 6, "tempo": 3, "order": 2, "reprise": 2,
    }  # fmt: skip
    alike = [rows @ (mean / np.linalg.norm(mean)) for rows in corpus.embeddings for mean in [rows.mean(axis=0)]]
    assert np.mean(np.concatenate(alike)) == pytest.approx(0.91, abs=0.02)
