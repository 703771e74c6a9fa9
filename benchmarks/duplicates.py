"""Near-duplicates: what `find_duplicates` finds among films whose copies are known, and how fast it is. Prints JSON.

    python benchmarks/duplicates.py --out benchmarks/results/duplicates.json

The films are real H.264, filmed here from the demo's 12 photographs, so that every two films show some of the same pictures.
A copy is made by decoding a film and encoding it again: at a fifth of the bit rate, cropped by 10 %, from 25 to 30 frames a
second, letterboxed, graded, after other material, 60 s out of a longer film, as a trailer of short pieces, as a picture in a
picture; two films share an intro. A look-alike has the shots of a film, with the same photographs and the same lengths, on
another camera path: it is no copy. Films are embedded by the offline encoder. `--segments N` measures the time for a made-up
store of N segments instead.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageEnhance

from lvmae.demo.photographs import SUBJECTS, photograph
from lvmae.embedding import embed_videos
from lvmae.library.duplicates import find_duplicates
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

SIZE = (256, 192)
RATE = 10
KINDS = ("bitrate", "crop", "rate", "letterbox", "grade", "offset", "excerpt", "intro", "trailer", "inset")


class Shot(NamedTuple):
    """A photograph for some seconds, the camera gliding from one view (across, down, zoom) to another."""

    subject: str
    seconds: float
    first: tuple[float, float, float]
    last: tuple[float, float, float]
    mirrored: bool


class Span(NamedTuple):
    """What two films share."""

    kind: str
    a: str
    b: str
    a_start: float
    a_end: float
    b_start: float
    b_end: float


def screenplay(rng: np.random.Generator, seconds: float) -> list[tuple[str, float]]:
    """Subjects and their seconds, `seconds` together at least; no subject twice in a row."""
    scenes: list[tuple[str, float]] = []
    while sum(length for _, length in scenes) < seconds:
        subject = str(rng.choice([name for name in SUBJECTS if not scenes or name != scenes[-1][0]]))
        scenes.append((subject, round(float(rng.uniform(2.5, 14)), 1)))
    return scenes


def camera(rng: np.random.Generator, scenes: Sequence[tuple[str, float]]) -> list[Shot]:
    """A camera path for each scene."""

    def view(subject: str) -> tuple[float, float, float]:
        return float(rng.random()), float(rng.random()), float(rng.uniform(SUBJECTS[subject].closest, 1))

    return [Shot(name, length, view(name), view(name), bool(rng.integers(2))) for name, length in scenes]


def frames(shots: Sequence[Shot], rate: int) -> Iterator[Image.Image]:
    """The pictures of a film."""
    for shot in shots:
        picture = photograph(shot.subject)
        if shot.mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for moment in np.linspace(0, 1, max(1, round(shot.seconds * rate))):
            across, down, zoom = ((1 - moment) * a + moment * b for a, b in zip(shot.first, shot.last, strict=True))
            scale = zoom * min(picture.width / SIZE[0], picture.height / SIZE[1])
            width, height = SIZE[0] * scale, SIZE[1] * scale
            left, top = across * (picture.width - width), down * (picture.height - height)
            box = (left, top, min(left + width, picture.width), min(top + height, picture.height))
            yield picture.resize(SIZE, Image.Resampling.BILINEAR, box=box)


def write(path: Path, pictures: Iterator[Image.Image], rate: int = RATE, bit_rate: int = 0) -> None:
    """H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = *SIZE, "yuv420p", 1
        if bit_rate:
            stream.bit_rate = bit_rate
        else:
            stream.options = {"preset": "ultrafast", "crf": "25"}
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read(path: Path, start: float = 0, end: float = float("inf"), rate: int | None = None) -> Iterator[Image.Image]:
    """A film's pictures from `start` to `end`, resampled to another rate if one is given."""
    with av.open(str(path)) as container:
        number = 0
        for frame in container.decode(video=0):
            at, picture = float(frame.time or 0), Image.fromarray(frame.to_ndarray(format="rgb24"))
            if start <= at < end:
                if rate is None:
                    yield picture
                while rate is not None and number / rate <= at - start + 1e-6:
                    yield picture
                    number += 1


def bordered(picture: Image.Image) -> Image.Image:
    """Letterboxed to 2.39:1, with its width kept and its height pressed: what a wide film looks like on a narrow screen."""
    canvas = Image.new("RGB", SIZE)
    height = round(SIZE[0] / 2.39)
    canvas.paste(picture.resize((SIZE[0], height)), (0, (SIZE[1] - height) // 2))
    return canvas


def cropped(picture: Image.Image) -> Image.Image:
    """Without a tenth of its width and height, at its old size."""
    return picture.resize(SIZE, box=(SIZE[0] * 0.05, SIZE[1] * 0.05, SIZE[0] * 0.95, SIZE[1] * 0.95))


def graded(picture: Image.Image) -> Image.Image:
    """Darker and paler."""
    return ImageEnhance.Color(ImageEnhance.Brightness(picture).enhance(0.75)).enhance(0.7)


def inset(behind: Iterator[Image.Image], before: Iterator[Image.Image]) -> Iterator[Image.Image]:
    """A film in the corner of another one, at 60 % of its size."""
    for large, small in zip(behind, before, strict=False):
        whole = large.copy()
        whole.paste(
            small.resize((round(SIZE[0] * 0.6), round(SIZE[1] * 0.6))), (round(SIZE[0] * 0.37), round(SIZE[1] * 0.37))
        )
        yield whole


def make(folder: Path, originals: int, seed: int) -> list[Span]:
    """Writes `originals` films, a copy of nearly each and look-alikes of a third; what is shared."""
    folder.mkdir(parents=True, exist_ok=True)
    truth: list[Span] = []
    for number in range(originals):
        rng = np.random.default_rng([seed, number])
        kind = KINDS[number % len(KINDS)]
        scenes = screenplay(rng, float(rng.uniform(170, 260) if kind == "excerpt" else rng.uniform(45, 100)))
        shots = camera(rng, scenes)
        rate = 25 if kind == "rate" else RATE
        name, copy = f"film-{number:02d}", f"film-{number:02d}-{kind}"
        path, target = folder / f"{name}.mp4", folder / f"{copy}.mp4"
        write(path, frames(shots, rate), rate)
        length = sum(round(shot.seconds * rate) for shot in shots) / rate
        whole = Span(kind, name, copy, 0, length, 0, length)
        if kind == "bitrate":
            write(target, read(path), bit_rate=round(path.stat().st_size * 8 / length / 5))
        elif kind == "crop":
            write(target, map(cropped, read(path)))
        elif kind == "rate":
            write(target, read(path, rate=30), 30)
        elif kind == "letterbox":
            write(target, map(bordered, read(path)))
        elif kind == "grade":
            write(target, map(graded, read(path)))
        elif kind == "offset":
            other = camera(rng, screenplay(rng, 13))
            before = sum(round(shot.seconds * RATE) for shot in other) / RATE
            write(target, (picture for part in (frames(other, RATE), read(path)) for picture in part))
            whole = Span(kind, name, copy, 0, length, before, before + length)
        elif kind == "excerpt":
            start = round(float(rng.uniform(20, length - 80)), 1)
            write(target, read(path, start, start + 60))
            whole = Span(kind, name, copy, start, start + 60, 0, 60)
        elif kind == "intro":
            intro = camera(rng, screenplay(rng, 14))
            shared = sum(round(shot.seconds * RATE) for shot in intro) / RATE
            other = camera(rng, screenplay(rng, 50))
            write(path, (picture for part in (frames(intro, RATE), frames(shots, RATE)) for picture in part))
            write(target, (picture for part in (frames(intro, RATE), frames(other, RATE)) for picture in part))
            whole = Span(kind, name, copy, 0, shared, 0, shared)
        elif kind == "trailer":
            at, pieces = 0.0, []
            for start in np.sort(rng.choice(np.arange(0, length - 10, 10), 4, replace=False)):
                seconds = round(float(rng.uniform(6, 10)), 1)
                pieces.append((float(start), float(start) + seconds))
                truth.append(Span(kind, name, copy, float(start), float(start) + seconds, at, at + seconds))
                at += seconds
            write(target, (picture for piece in pieces for picture in read(path, *piece)))
        else:
            write(target, inset(frames(camera(rng, screenplay(rng, length)), RATE), read(path)))
        if kind != "trailer":
            truth.append(whole)
        if number % 3 == 0:
            write(folder / f"film-{number:02d}-like.mp4", frames(camera(rng, scenes), RATE))
    return truth


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two spans."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / max(a[1] - a[0] + b[1] - b[0] - shared, 1e-9)


def judge(found: Sequence[Any], truth: Sequence[Span]) -> dict[str, Any]:
    """Precision and recall of pairs of videos, those missed and invented, and the mean IoU of the true spans."""
    pairs = {frozenset((one.a, one.b)): one.kind for one in truth}
    named = {frozenset((one.a, one.b)) for one in found}
    ious = []
    for span in truth:
        mine = [
            (overlap((one.a_start, one.a_end), (span.a_start, span.a_end)) if one.a == span.a
             else overlap((one.b_start, one.b_end), (span.a_start, span.a_end)))
            + (overlap((one.b_start, one.b_end), (span.b_start, span.b_end)) if one.b == span.b
               else overlap((one.a_start, one.a_end), (span.b_start, span.b_end)))
            for one in found
            if {one.a, one.b} == {span.a, span.b}
        ]  # fmt: skip
        if mine:
            ious.append(max(mine) / 2)
    return {
        "pairs": len(pairs),
        "found": len(named),
        "precision": round(len(named & set(pairs)) / max(1, len(named)), 3),
        "recall": round(len(named & set(pairs)) / len(pairs), 3),
        "span_iou": round(float(np.mean(ious)), 3) if ious else 0.0,
        "missed": sorted(pairs[pair] for pair in set(pairs) - named),
        "invented": sorted(" ".join(sorted(pair)) for pair in named - set(pairs)),
    }


def made_up(folder: Path, segments: int, dim: int = 384) -> EmbeddingStore:
    """A store in videos of 250 segments, a tenth of which hold a part of another, half a segment later, with noise."""
    rng = np.random.default_rng(0)
    with StoreWriter(folder, Manifest("benchmark", dim, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        rows: list[np.ndarray] = []
        for number in range(segments // 250):
            scene = np.cumsum(rng.random(251) < 0.3)
            fine = rng.standard_normal((scene[-1] + 1, dim))[scene]
            fine += rng.standard_normal((251, dim)) * 0.4
            if number % 10 == 9:
                fine[100:161] = rows[number - 5][30:91]
            rows.append(fine)
            values = fine[:-1] if number % 10 != 9 else (fine[:-1] + fine[1:]) / 2
            starts = np.arange(250) * 5.0
            writer.add(
                VideoRecord(f"v{number:05d}", "", 1250.0, starts, starts + 5, l2_normalize(values).astype(np.float16))
            )
    return EmbeddingStore.open(folder)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="films and store are made in this folder, and kept")
    parser.add_argument("--segments", type=int, help="measure the time of so many made-up segments instead")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        result: dict[str, Any]
        if arguments.segments:
            store = made_up(folder / "store", arguments.segments)
            began = time.perf_counter()
            found = find_duplicates(store)
            expected = {(f"v{n - 5:05d}", f"v{n:05d}") for n in range(9, len(store), 10)}
            result = {
                "segments": int(store.lengths.sum()),
                "seconds": round(time.perf_counter() - began, 1),
                "pairs": len(expected),
                "found": len({(one.a, one.b) for one in found}),
                "right": len({(one.a, one.b) for one in found} & expected),
            }
        else:
            if not (folder / "truth.json").exists():
                truth = make(folder / "films", arguments.films, arguments.seed)
                embed_videos(folder / "films", folder / "store", workers=2)
                (folder / "truth.json").write_text(json.dumps(truth))
            truth = [Span(*row) for row in json.loads((folder / "truth.json").read_text())]
            result = judge(find_duplicates(folder / "store"), truth)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
