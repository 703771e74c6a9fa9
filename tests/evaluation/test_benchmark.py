"""LVU in one go, on the real annotation files and a store that has some of the videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lvmae.errors import InputError
from lvmae.evaluation import FamilyResult, ProbeSettings, family_of, load_task, probe_family
from lvmae.evaluation.tasks import AVERAGE
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord

D = 12
LVU = family_of("lvu").parts
QUICK = ProbeSettings(linear_epochs=5, linear_lr=5e-2, linear_min_steps=0, bootstrap=50)


def _store(path: Path, ids: list[str], told: dict[str, int]) -> EmbeddingStore:
    rng = np.random.default_rng(0)
    manifest = Manifest("toy", D, {"kind": "fixed", "seconds": 5.0}, {"name": "toy"})
    with StoreWriter(path, manifest) as writer:
        for id_ in ids:
            embeddings = 0.1 * rng.normal(size=(2, D))
            embeddings[:, told.get(id_, -1)] += 1
            writer.add(VideoRecord(f"{id_}.mp4", id_, 10.0, np.array([0.0, 5.0]), np.array([5.0, 10.0]), embeddings))
    return EmbeddingStore.open(path)


@pytest.fixture(scope="module")
def result(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> FamilyResult:
    """Half of the videos of eight tasks, none of the ninth; the embeddings tell the scene and nothing else."""
    annotations = shared / "annotations"
    tasks = {name: load_task(f"lvu/{name}", annotations) for name in LVU}
    relationship = set(tasks["relationship"].ids)
    ids = sorted(
        {id_ for name, task in tasks.items() if name != "relationship" for id_ in task.ids[::2]} - relationship
    )
    scene = tasks["scene"]
    store = _store(
        tmp_path_factory.mktemp("lvu") / "store", ids, dict(zip(scene.ids, scene.targets.tolist(), strict=True))
    )
    return probe_family("lvu", store, annotations, probes=["linear"], seeds=2, settings=QUICK)


def test_the_row_has_every_task_that_could_be_run(result: FamilyResult) -> None:
    assert [table.task for table in result.tables] == [f"lvu/{name}" for name in LVU if name != "relationship"]
    assert list(result.skipped) == ["lvu/relationship"]
    header, (row, *_) = result.cells()
    figures = dict(zip(header, row, strict=True))
    assert (figures["features"], figures["probe"]) == ("raw embeddings", "linear")
    assert float(figures["scene"]) > 95
    assert float(figures["director"]) < 60
    assert (figures["relationship"], figures["average"]) == ("", "")  # an average of six would pass for one of seven
    assert float(figures["like_ratio (MSE)"]) > 0


def test_what_is_missing_is_counted_and_listed(result: FamilyResult) -> None:
    notes = " ".join(result.notes())
    tables = {table.task: table for table in result.tables}
    assert f"scene {tables['lvu/scene'].counts['test']}" in notes
    assert len(result.absent()) == sum(len(table.missing) for table in result.tables) + 244
    assert f"{len(result.absent())} annotated videos" in notes
    assert "lvu/relationship was not run: the store has 0 of the 244 videos" in notes
    scene = result.to_dict()["tables"][4]
    assert (scene["task"], sum(scene["counts"].values()) + len(scene["missing"])) == ("lvu/scene", 763)


def test_published_rows_are_marked_and_average_to_what_was_published(result: FamilyResult) -> None:
    text = result.to_text(compare=True)
    assert text.count("(published)") == 7
    assert "(published)" not in result.to_text()
    assert result.to_markdown(compare=True).count(" (published) | ") == 7
    family = family_of("lvu")
    for model, values in family.published.items():
        assert np.mean([values[name] for name in family.averaged]) == pytest.approx(values[AVERAGE], abs=0.25), model


def test_a_store_of_other_videos_is_refused(shared: Path, tmp_path: Path) -> None:
    store = _store(tmp_path / "store", ["holiday"], {})
    with pytest.raises(InputError, match="none of the tasks of lvu can be run: the store has 0 of the 950 videos"):
        probe_family("lvu", store, shared / "annotations", seeds=1)
