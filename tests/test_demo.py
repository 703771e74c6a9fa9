"""The demonstration: its corpus is what it says it is, and the commands walk the whole path over a small one."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from lvmae.demo import make_corpus, run_demo
from lvmae.demo.corpus import (
    FILM_ID,
    FRAME_RATE,
    STORIES,
    Corpus,
    VideoPlan,
    _camera,
    _screenplay,
    film,
    film_corpus,
    plan_corpus,
)
from lvmae.demo.photographs import EVENTS, FILLERS, SUBJECTS, Subject, photograph, photograph_file
from lvmae.errors import InputError
from lvmae.evaluation import ProbeTable
from lvmae.pretraining import read_metrics


def _plans(seed: int = 0) -> list[VideoPlan]:
    """Three videos of 15 seconds, each of three shots."""
    plans = []
    for number, names in enumerate(
        [("cat", "rocket", "flower"), ("coffee", "palace", "coins"), ("rocket", "cat", "cat")]
    ):
        rng = np.random.default_rng([seed, number])
        plans.append(VideoPlan(f"v{number}", "a", tuple(_camera(rng, [(name, 1) for name in names]))))
    return plans


def _frames(path: Path) -> np.ndarray:
    """(frames, height, width, 3) uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return film_corpus(tmp_path_factory.mktemp("corpus"), _plans(), workers=1)


def test_the_videos_are_h264_of_the_planned_length(corpus: Corpus) -> None:
    assert sorted(path.name for path in corpus.videos.iterdir()) == ["v0.mp4", "v1.mp4", "v2.mp4"]
    for path in corpus.videos.iterdir():
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", FRAME_RATE)
            times = [frame.time for frame in container.decode(stream)]
        assert times == pytest.approx([n / FRAME_RATE for n in range(15 * FRAME_RATE)], abs=1e-4)


def test_captions_tell_what_is_on_screen(corpus: Corpus) -> None:
    """In the colours of the middle of each captioned shot, the captioned photograph is recognised among the others."""

    def colours(pixels: np.ndarray) -> np.ndarray:
        chroma = pixels / (pixels.sum(-1, keepdims=True) + 30.0)
        found, _ = np.histogramdd(chroma.reshape(-1, 3)[:, :2], bins=12, range=[(0.1, 0.8)] * 2)
        return np.asarray(np.sqrt(found / found.sum()).ravel())

    shown = sorted({shot.subject for plan in corpus.plans for shot in plan.shots})
    known = np.stack([colours(np.asarray(photograph(name), dtype=float)) for name in shown])
    rows = list(csv.DictReader(corpus.captions.open(encoding="utf-8")))
    assert len(rows) == 9
    videos = {path.stem: _frames(path) for path in corpus.videos.iterdir()}
    for row in rows:
        frame = videos[row["video"]][round((float(row["start"]) + float(row["end"])) / 2 * FRAME_RATE)]
        name = shown[int(np.argmax(known @ colours(frame.astype(float))))]
        assert row["text"] == SUBJECTS[name].caption, row


def test_the_same_seed_gives_the_same_bytes_whoever_films(corpus: Corpus, tmp_path: Path) -> None:
    again = film_corpus(tmp_path / "again", _plans(), workers=2)
    for path in corpus.root.rglob("*.*"):
        if path.is_file():
            assert (again.root / path.relative_to(corpus.root)).read_bytes() == path.read_bytes(), path.name
    film(_plans(seed=1)[0], tmp_path / "other.mp4")
    assert (tmp_path / "other.mp4").read_bytes() != (corpus.videos / "v0.mp4").read_bytes()


def test_no_two_videos_share_a_frame(corpus: Corpus) -> None:
    """Two of them show the cat and the rocket."""
    seen = [{frame.tobytes() for frame in _frames(corpus.videos / f"v{n}.mp4")} for n in range(3)]
    assert all(not seen[a] & seen[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_resumed_is_uninterrupted(corpus: Corpus, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(corpus.root, begun)
    (begun / "videos" / "v1.mp4").rename(begun / "videos" / ".tmp-v1.mp4")
    (begun / "videos" / ".tmp-v1.mp4").write_bytes(b"half a film")
    kept = (begun / "videos" / "v0.mp4").stat().st_mtime_ns
    film_corpus(begun, _plans(), workers=1)
    assert sorted(path.name for path in (begun / "videos").iterdir()) == ["v0.mp4", "v1.mp4", "v2.mp4"]
    assert (begun / "videos" / "v1.mp4").read_bytes() == (corpus.videos / "v1.mp4").read_bytes()
    assert (begun / "videos" / "v0.mp4").stat().st_mtime_ns == kept


def test_a_corpus_of_other_settings_is_not_mixed_in(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="made with other settings"):
        film_corpus(corpus.root, _plans(seed=1))
    with pytest.raises(InputError, match="at least one video"):
        make_corpus(corpus.root, videos=0)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(InputError, match=r"package no_such_package.*pip install 'lvmae\[demo\]'"):
        photograph_file(Subject("nothing", "no_such_package", "nothing.png"))


def test_the_storyline() -> None:
    """Every story shows each event once, in its class's order, in 1 to 3 minutes; the film is as long as asked."""
    *stories, film_plan = plan_corpus(videos=200, seed=3)
    for plan in stories:
        assert plan.label is not None
        shown = [shot.subject for shot in plan.shots]
        assert tuple(name for name in shown if name in EVENTS) == STORIES[plan.label]
        assert 60 <= plan.seconds <= 180
    assert [plan.label for plan in stories[:5]] == [*STORIES, next(iter(STORIES))]
    assert (film_plan.id, film_plan.label, film_plan.seconds) == (FILM_ID, None, 1500)
    assert stories[:8] == list(plan_corpus(videos=8, seed=3, film_minutes=0))
    assert stories[0] != next(plan_corpus(videos=1, seed=4))


def test_the_orders_give_nothing_away_by_place_or_neighbour() -> None:
    for place in zip(*STORIES.values(), strict=True):
        assert len(set(place)) == len(STORIES)
    neighbours = [pair for order in STORIES.values() for pair in pairwise(order)]
    assert len(set(neighbours)) == len(neighbours)


def test_durations_and_fillers_do_not_depend_on_the_class() -> None:
    """The same draws give, in any class, the same scenes at the same times, but for which event is which."""
    for seed in range(50):
        scenes = [_screenplay(np.random.default_rng(seed), label) for label in STORIES]
        plots = [[(name if name in FILLERS else "event", length) for name, length in each] for each in scenes]
        assert all(plot == plots[0] for plot in plots)


def test_the_whole_path_by_its_own_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small corpus, hardly trained: what is asserted is that the path is walked, and walked again without redoing it."""
    small = {"videos": 12, "film_minutes": 0.5, "seeds": 1, "settings": ["epochs=2", "warmup_epochs=1"]}
    assert run_demo(tmp_path / "demo", **small) == 0  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    root = tmp_path / "demo"
    commands = [line.removeprefix("$ lvmae ").split()[0] for line in printed.splitlines() if line.startswith("$ ")]
    learn = ["pretrain", "represent", "probe"]
    assert commands == ["embed", "inspect", *learn, *learn, "interpret"]
    assert f"$ lvmae embed {root}/videos --out {root}/store" in printed

    table = ProbeTable.from_json((root / "table.json").read_text())
    assert [(row.features, row.probe) for row in table.rows] == [
        ("raw embeddings", "linear"),
        ("raw embeddings", "knn"),
        ("LV-MAE + raw", "linear"),
        ("LV-MAE, untrained", "linear"),
        ("LV-MAE, untrained", "knn"),
        ("LV-MAE", "linear"),
        ("LV-MAE", "knn"),
    ]
    assert table.to_text() in printed
    reached = read_metrics(root / "run")[-1]
    assert f"a cosine of {reached['val_cosine']:.4f}; interpolating" in printed
    assert table.chance["1 / classes"] == pytest.approx(25.0)
    page = (root / "report.html").read_text(encoding="utf-8")
    assert str((root / "report.html").resolve()) in printed
    assert "LV-MAE, untrained" in page

    weights = (root / "run" / "model.safetensors").stat().st_mtime_ns
    shards = sorted((root / "store" / "data").iterdir())
    assert run_demo(root, **small) == 0  # type: ignore[arg-type]
    assert (root / "run" / "model.safetensors").stat().st_mtime_ns == weights
    assert sorted((root / "store" / "data").iterdir()) == shards
    assert json.loads((root / "table.json").read_text()) == table.to_dict()
