"""A corpus of long videos whose storyline is known: real H.264 files, filmed from photographs.

Every story shows the same events, each once; what differs from class to class is only their ORDER. How long an event
lasts, what is shown before, between and after the events, and how the camera moves are drawn without looking at the
class. So a video's class is in no single segment and in no average over segments: it is the long-range structure.

A cut falls on a multiple of `SEGMENT_SECONDS`, so that no segment shows two events and gives their order away.

In:  a number of videos and a seed. Out: `videos/*.mp4`, `labels.csv`, `captions.csv`, `stories.json`.
Price: about 0.9 ms of one core a frame, a process a core.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageEnhance

from lvmae.demo.photographs import EVENTS, FILLERS, SUBJECTS, photograph, photograph_file
from lvmae.errors import InputError
from lvmae.files.writing import remove_leftovers, replacing, write_text
from lvmae.progress import progress

SEGMENT_SECONDS = 5.0
FRAME_RATE = 8
WIDTH, HEIGHT = 256, 192

# Four rows of a Williams square of the six events: over the classes, no event comes twice at the same place and no event
# is followed twice by the same one.
STORIES: dict[str, tuple[str, ...]] = {
    f"story-{name}": tuple(list(EVENTS)[(place + shift) % len(EVENTS)] for place in (0, 5, 1, 4, 2, 3))
    for shift, name in enumerate("abcd")
}

FILM_ID = "film"
_MIN_SEGMENTS, _MAX_SEGMENTS = 12, 36
# Bumped when the same plan would give other pixels, so that a half-made corpus is not continued with other ones.
_EDITION = 1

View = tuple[float, float, float]


@dataclass(frozen=True)
class Shot:
    """One subject on screen for `segments` segments, the camera gliding from one view to another.

    A view is (across, down, zoom): `zoom` is the crop's size as a part of the largest crop that fits the photograph,
    `across` and `down` say where it stands between the left and right, upper and lower edges, 0 to 1.
    """

    subject: str
    segments: int
    first: View
    last: View
    mirrored: bool
    brightness: float
    saturation: float


@dataclass(frozen=True)
class VideoPlan:
    """What there is to know about a video before it is filmed. `label` is None if it tells more than one story."""

    id: str
    label: str | None
    shots: tuple[Shot, ...]

    @property
    def segments(self) -> int:
        """Its length in segments."""
        return sum(shot.segments for shot in self.shots)

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return self.segments * SEGMENT_SECONDS


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk, and the plans of its videos."""

    root: Path
    plans: tuple[VideoPlan, ...]

    @property
    def videos(self) -> Path:
        """Returns the folder of mp4 files."""
        return self.root / "videos"

    @property
    def labels(self) -> Path:
        """CSV with columns id, label."""
        return self.root / "labels.csv"

    @property
    def captions(self) -> Path:
        """CSV with columns video, start, end (seconds), text."""
        return self.root / "captions.csv"


def make_corpus(
    out: str | os.PathLike[str],
    *,
    videos: int = 48,
    seed: int = 0,
    film_minutes: float = 25.0,
    workers: int | None = None,
) -> Corpus:
    """Renders `videos` stories of 1-3 minutes into `out` and, if `film_minutes` > 0, one long film of many stories.

    The same seed gives the same bytes. Files finished by an earlier call are kept. `workers` is the number of
    processes, by default one a core.

    InputError if `out` holds a corpus made with other settings, or a package with photographs is missing.
    """
    if seed < 0:
        raise InputError(f"the seed is {seed}: it has to be 0 or more")
    if videos < 1:
        raise InputError(f"a corpus needs at least one video, not {videos}")
    plans = tuple(plan_corpus(videos=videos, seed=seed, film_minutes=film_minutes))
    return film_corpus(Path(out), plans, workers=workers)


def plan_corpus(*, videos: int, seed: int, film_minutes: float = 25.0) -> Iterator[VideoPlan]:
    """The plans of `make_corpus`: the classes in turn, each video a function of (seed, its number) alone."""
    labels = list(STORIES)
    for number in range(videos):
        rng = np.random.default_rng([seed, number])
        label = labels[number % len(labels)]
        yield VideoPlan(f"video-{number:03d}", label, tuple(_camera(rng, _screenplay(rng, label))))
    if film_minutes > 0:
        rng = np.random.default_rng([seed, videos, 1])
        scenes: list[tuple[str, int]] = []
        wanted = round(film_minutes * 60 / SEGMENT_SECONDS)
        while sum(length for _, length in scenes) < wanted:
            scenes += _screenplay(rng, labels[rng.integers(len(labels))])
        over = sum(length for _, length in scenes) - wanted
        while over >= scenes[-1][1]:
            over -= scenes.pop()[1]
        scenes[-1] = (scenes[-1][0], scenes[-1][1] - over)
        yield VideoPlan(FILM_ID, None, tuple(_camera(rng, scenes)))


def _screenplay(rng: np.random.Generator, label: str) -> list[tuple[str, int]]:
    """(subject, segments) of one story, 1-3 minutes long; only the order of the events depends on the label."""
    while True:
        scenes = _fillers(rng, most=4)
        for event in STORIES[label]:
            scenes.append((event, int(rng.integers(1, 4))))
            scenes += _fillers(rng, most=1)
        scenes += _fillers(rng, most=3)
        if _MIN_SEGMENTS <= sum(length for _, length in scenes) <= _MAX_SEGMENTS:
            return scenes


def _fillers(rng: np.random.Generator, *, most: int) -> list[tuple[str, int]]:
    """0 to `most` different filler shots of one or two segments."""
    names = rng.permutation(list(FILLERS))[: rng.integers(0, most + 1)]
    return [(str(name), int(rng.integers(1, 3))) for name in names]


def _camera(rng: np.random.Generator, scenes: Sequence[tuple[str, int]]) -> Iterator[Shot]:
    """Puts a camera on each scene; light and colour are one draw a video."""
    brightness, saturation = rng.uniform(0.75, 1.2), rng.uniform(0.7, 1.2)
    for subject, segments in scenes:
        closest = SUBJECTS[subject].closest
        yield Shot(
            subject=subject,
            segments=segments,
            first=_view(rng, closest),
            last=_view(rng, closest),
            mirrored=bool(rng.integers(2)),
            brightness=float(brightness),
            saturation=float(saturation),
        )


def _view(rng: np.random.Generator, closest: float) -> View:
    return float(rng.random()), float(rng.random()), float(rng.uniform(closest, 1.0))


def film_corpus(out: Path, plans: Sequence[VideoPlan], *, workers: int | None = None) -> Corpus:
    """Films the plans, one process a core, keeping what is finished. See `make_corpus`."""
    for subject in SUBJECTS.values():
        photograph_file(subject)
    corpus = Corpus(out, tuple(plans))
    corpus.videos.mkdir(parents=True, exist_ok=True)
    remove_leftovers(corpus.videos)
    _claim(out / "stories.json", _storybook(plans))
    _write_csv(corpus.labels, ["id", "label"], ((plan.id, plan.label) for plan in plans if plan.label is not None))
    _write_csv(corpus.captions, ["video", "start", "end", "text"], (row for plan in plans for row in _captions(plan)))

    jobs = [(plan, corpus.videos / f"{plan.id}.mp4") for plan in plans]
    jobs = [(plan, path) for plan, path in jobs if not path.exists()]
    jobs.sort(key=lambda job: -job[0].segments)  # the film first: it must not be the last one running
    seconds = sum(plan.seconds for plan in plans)
    with progress(desc="filming", unit="s of video", total=seconds) as bar:
        bar.update(seconds - sum(plan.seconds for plan, _ in jobs))
        for finished in _film_all(jobs, workers or len(os.sched_getaffinity(0))):
            bar.update(finished.seconds)
    return corpus


def _film_all(jobs: list[tuple[VideoPlan, Path]], workers: int) -> Iterator[VideoPlan]:
    """Films each job and yields its plan when it is done."""
    if workers <= 1 or len(jobs) <= 1:
        for plan, path in jobs:
            yield film(plan, path)
        return
    # "spawn": a forked child of a process that has used torch can hang.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(film, plan, path) for plan, path in jobs]):
            yield future.result()


def film(plan: VideoPlan, path: Path) -> VideoPlan:
    """Writes the plan's H.264 file at `path`, which appears only when it is complete."""
    with replacing(path, durable=False) as beside, av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "ultrafast", "crf": "29"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1  # a process a core; and the bytes do not depend on the machine
        for number, planes in enumerate(_frames(plan)):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return plan


def _frames(plan: VideoPlan) -> Iterator[np.ndarray]:
    """The frames of a plan as yuv420p planes, uint8 (HEIGHT * 3 / 2, WIDTH).

    A shot's photograph is coloured and split into planes once; a frame is then three crops, scaled at sub-pixel places.
    """
    for shot in plan.shots:
        picture = photograph(shot.subject)
        if shot.mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = ImageEnhance.Color(ImageEnhance.Brightness(picture).enhance(shot.brightness)).enhance(shot.saturation)
        luma, *chroma = picture.convert("YCbCr").split()
        small = (picture.width // 2, picture.height // 2)
        planes = [(luma, (WIDTH, HEIGHT)), *((plane.resize(small), (WIDTH // 2, HEIGHT // 2)) for plane in chroma)]
        count = round(shot.segments * SEGMENT_SECONDS * FRAME_RATE)
        for view in _glide(shot.first, shot.last, count):
            scaled = (
                plane.resize(size, Image.Resampling.BILINEAR, box=_box(view, plane.size)) for plane, size in planes
            )
            yield np.concatenate([np.asarray(plane).reshape(-1, WIDTH) for plane in scaled])


def _glide(first: View, last: View, count: int) -> Iterator[View]:
    """`count` views from the first to the last, slow at both ends."""
    for moment in np.linspace(0.0, 1.0, count):
        weight = moment * moment * (3.0 - 2.0 * moment)
        across, down, zoom = ((1.0 - weight) * a + weight * b for a, b in zip(first, last, strict=True))
        yield (across, down, zoom)


def _box(view: View, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A view as (left, top, right, bottom) in pixels of a picture of this size."""
    across, down, zoom = view
    scale = zoom * min(size[0] / WIDTH, size[1] / HEIGHT)
    width, height = WIDTH * scale, HEIGHT * scale
    left, top = across * (size[0] - width), down * (size[1] - height)
    return (left, top, min(left + width, size[0]), min(top + height, size[1]))


def _captions(plan: VideoPlan) -> Iterator[tuple[str, float, float, str]]:
    start = 0.0
    for shot in plan.shots:
        end = start + shot.segments * SEGMENT_SECONDS
        yield plan.id, start, end, SUBJECTS[shot.subject].caption
        start = end


def _storybook(plans: Sequence[VideoPlan]) -> dict[str, Any]:
    """The truth behind the corpus, as JSON: what was filmed, shot by shot."""
    return {
        "edition": _EDITION,
        "segment_seconds": SEGMENT_SECONDS,
        "frame_rate": FRAME_RATE,
        "size": [WIDTH, HEIGHT],
        "captions": {name: subject.caption for name, subject in SUBJECTS.items()},
        "events": list(EVENTS),
        "stories": STORIES,
        "videos": [asdict(plan) for plan in plans],
    }


def _claim(path: Path, storybook: dict[str, Any]) -> None:
    """Writes the storybook, or finds the same one: files of two corpora never mix in one folder."""
    text = json.dumps(storybook, indent=1)
    if not path.exists():
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path.parent} holds a corpus made with other settings: choose another folder or delete it")


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
