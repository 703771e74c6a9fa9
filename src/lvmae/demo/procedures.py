"""Procedures that differ only in the order of their steps, so that no pooling can distinguish the classes.

Three families, as annotated procedures show them. "order": six steps, once each, in an order of three blocks of two.
"repetition": three of them, twice each, in bouts, in rounds, there and back, or braided. "agreement": the other three, twice
each, and the last step is the first one again, or another. How long each lasts, what lies between them and every
embedding are drawn before the class is looked at, and the class then only arranges them: a video's embeddings as a set
carry nothing about its class, exactly, so that whatever is blind to order stands at chance.

In:  a source of embeddings, made up (`MadeUp`) or of photographs (`Photographs`), numbers of videos, a seed.
Out: `pool`, a store of the training videos and of others that have no label, which is what may be pre-trained on;
     `videos`, a store of the labelled ones; a label file with a split for each family.
Price: 5,400 videos in 10 seconds; `Photographs` encodes 1,152 crops first, 20 seconds of one core.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError
from lvmae.store import Manifest, StoreWriter, VideoRecord, l2_normalize

SEGMENT_SECONDS = 5.0
STEPS = 6  # subjects 0 to 5 are steps of procedures, the others what lies between them
SPLITS = ("train", "val", "test", "unlabelled")

# The six occurrences of every video of a family, as steps.
OCCURRENCES = {"order": (0, 1, 2, 3, 4, 5), "repetition": (0, 0, 1, 1, 2, 2), "agreement": (3, 3, 4, 4, 5, 5)}
# How each class arranges them; a, b, c, ... are the family's steps.
_BLOCKS = {"abcdef": "123", "abefcd": "132", "cdabef": "213", "cdefab": "231", "efabcd": "312", "efcdab": "321"}
CLASSES: dict[str, dict[str, str]] = {
    "order": {f"blocks-{name}": order for order, name in _BLOCKS.items()},
    "repetition": {"bouts": "aabbcc", "rounds": "abcabc", "there-and-back": "abccba", "braid": "abacbc"},
    "agreement": {"agrees": "", "disagrees": ""},  # the four steps in the middle come in any order
}
_SWAPPED = 0.25  # of the videos of "order" and "repetition": two neighbouring steps change places


class Source(Protocol):
    """Where embeddings come from: 6 steps, and what lies between them."""

    name: str
    dim: int
    subjects: int

    def look(self, rng: np.random.Generator) -> Any:
        """What is the same throughout a video, such as its light."""

    def segments(self, rng: np.random.Generator, subject: int, count: int, look: Any, split: str) -> NDArray[Any]:
        """`count` segments of one subject on screen: (count, dim) float32."""


class MadeUp:
    """Unit vectors shaped like a video encoder's: they share a direction, differ from video to video and from segment to
    segment, and their spectrum falls off.

    With the defaults two segments of one step have a cosine of about 0.5 within a video, 0.35 across videos, and
    segments of different steps 0.1 across videos.
    """

    name = "made-up"

    def __init__(self, dim: int = 128, subjects: int = 12, *, look: float = 0.5, noise: float = 1.0) -> None:
        rng = np.random.default_rng([dim, subjects])
        self.dim, self.subjects = dim, subjects
        self._spectrum = np.arange(1, dim + 1) ** -0.25
        self._spectrum /= np.linalg.norm(self._spectrum)
        common = self._draw(rng, 1)
        self._steps = l2_normalize(0.4 * common + l2_normalize(self._draw(rng, subjects)))
        self._look, self._noise = look, noise

    def _draw(self, rng: np.random.Generator, count: int) -> NDArray[Any]:
        """(count, dim), each of length about 1."""
        return rng.standard_normal((count, self.dim)) * self._spectrum

    def look(self, rng: np.random.Generator) -> NDArray[Any]:
        return self._look * self._draw(rng, 1)

    def segments(self, rng: np.random.Generator, subject: int, count: int, look: Any, split: str) -> NDArray[Any]:
        return l2_normalize(self._steps[subject] + look + self._noise * self._draw(rng, count))


class Photographs:
    """Crops of the demonstration's twelve photographs as the encoder `conse` sees them, `dim` leading components of them.

    Train, val and test have crops of their own. A crop's size, light and colour are drawn, and a segment adds `noise`
    to it, of that length: an image encoder is far surer of a photograph than a video encoder of a moment in a film.
    """

    name = "photographs"

    def __init__(self, dim: int = 128, *, crops: int = 96, noise: float = 0.8, seed: int = 0) -> None:
        from lvmae.demo.photographs import SUBJECTS

        self.dim, self.subjects = dim, len(SUBJECTS)
        self._noise, self._crops, self._seed = noise, crops, seed

    @cached_property
    def _bank(self) -> dict[str, NDArray[Any]]:
        """Of each split, (subjects, crops, dim)."""
        from lvmae.demo.photographs import SUBJECTS

        bank = self._encoded(list(SUBJECTS), self._crops, self._seed)  # (subjects, crops, 384)
        known = bank[:, : self._crops // 2].reshape(-1, bank.shape[-1])
        if self.dim > min(known.shape):
            raise InputError(f"{len(known)} crops do not have {self.dim} components; ask for fewer, or for more crops")
        # Components of the training crops, about the origin: a rotation and a cut, which leave cosines almost alone.
        axes = np.linalg.svd(known, full_matrices=False)[2][: self.dim]
        bank = l2_normalize(bank @ axes.T)
        ends = [0, self._crops // 2, self._crops // 2 + self._crops // 8, self._crops]
        held = {split: bank[:, ends[i] : ends[i + 1]] for i, split in enumerate(SPLITS[:3])}
        return held | {"unlabelled": held["train"]}

    @staticmethod
    def _encoded(subjects: Sequence[str], crops: int, seed: int) -> NDArray[Any]:
        from PIL import Image, ImageEnhance

        from lvmae.demo.photographs import photograph
        from lvmae.encoders import load_encoder

        encoder = load_encoder("conse", num_frames=1)
        rng = np.random.default_rng([seed, crops])
        frames = []
        for name in subjects:
            picture = photograph(name)
            for _ in range(crops):
                side = rng.uniform(0.3, 1.0) * min(picture.size)
                left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
                crop = picture.resize((encoder.image_size,) * 2, box=(left, top, left + side, top + side))
                if rng.integers(2):
                    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                crop = ImageEnhance.Brightness(crop).enhance(rng.uniform(0.6, 1.3))
                frames.append(np.asarray(ImageEnhance.Color(crop).enhance(rng.uniform(0.5, 1.3))))
        return encoder.encode_video(np.stack(frames)[:, None]).reshape(len(subjects), crops, encoder.dim)

    def look(self, rng: np.random.Generator) -> None:
        return None

    def segments(self, rng: np.random.Generator, subject: int, count: int, look: Any, split: str) -> NDArray[Any]:
        crops = self._bank[split][subject]
        shown = crops[rng.integers(len(crops), size=count)]
        return l2_normalize(shown + self._noise * rng.standard_normal(shown.shape) / np.sqrt(self.dim))


@dataclass(frozen=True)
class Procedures:
    """Where a made corpus lies."""

    root: Path

    @property
    def pool(self) -> Path:
        """The store of the training videos alone."""
        return self.root / "pool"

    @property
    def videos(self) -> Path:
        """The store of all videos."""
        return self.root / "videos"

    def labels(self, family: str) -> Path:
        """CSV with the columns id, label, split."""
        return self.root / f"{family}.csv"


def make_procedures(
    out: str | Path,
    source: Source,
    *,
    train: int = 600,
    val: int = 200,
    test: int = 600,
    unlabelled: int = 400,
    seed: int = 0,
) -> Procedures:
    """Writes so many videos of each family, the classes in turn; what an interrupted call wrote is kept.

    InputError if `out` holds stores of other settings.
    """
    corpus = Procedures(Path(out))
    counts = dict(zip(SPLITS, (train, val, test, unlabelled), strict=True))
    said = "-".join(map(str, counts.values()))
    manifest = Manifest(
        space_id=f"procedures-1/{source.name}/{source.dim}/{said}/seed-{seed}",
        dim=source.dim,
        segments={"kind": "fixed", "seconds": SEGMENT_SECONDS},
        encoder={"name": f"procedures/{source.name}", "options": {}, "licence": "Apache-2.0"},
    )
    corpus.root.mkdir(parents=True, exist_ok=True)
    with StoreWriter(corpus.videos, manifest) as videos, StoreWriter(corpus.pool, manifest) as pool:
        held = {"train": (videos, pool), "val": (videos,), "test": (videos,), "unlabelled": (pool,)}
        for family, classes in CLASSES.items():
            listed = []
            for split, number in ((split, number) for split, count in counts.items() for number in range(count)):
                id_, label = f"{family}-{split}-{number:05d}", list(classes)[number % len(classes)]
                listed.append((id_, label, split))
                writers = [writer for writer in held[split] if id_ not in writer.done]
                if not writers:
                    continue
                rows = video(source, family, label, number=number, split=split, seed=seed)
                starts = np.arange(len(rows)) * SEGMENT_SECONDS
                ends = starts + SEGMENT_SECONDS
                for writer in writers:
                    writer.add(VideoRecord(id_, "", float(ends[-1]), starts, ends, rows))
            with corpus.labels(family).open("w", newline="", encoding="utf-8") as file:
                labelled = (row for row in listed if row[-1] != "unlabelled")
                csv.writer(file).writerows([("id", "label", "split"), *labelled])
    return corpus


def video(source: Source, family: str, label: str, *, number: int, split: str, seed: int = 0) -> NDArray[Any]:
    """(L, dim): one video, a function of its arguments alone. Two labels of one number have the same rows, rearranged."""
    drawn = [seed, list(CLASSES).index(family), SPLITS.index(split), number]
    steps, between = _parts(source, np.random.default_rng([*drawn, 0]), family, split)
    order = _arranged(np.random.default_rng([*drawn, 1]), family, label)
    return np.concatenate(
        [between[0], *(part for place, gap in zip(order, between[1:], strict=True) for part in (steps[place], gap))]
    )


def _parts(
    source: Source, rng: np.random.Generator, family: str, split: str
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The six occurrences in the order of `OCCURRENCES`, and the seven gaps around them; drawn without the label."""
    look = source.look(rng)
    steps = [source.segments(rng, step, int(rng.integers(2, 7)), look, split) for step in OCCURRENCES[family]]
    between = []
    for place in range(len(steps) + 1):
        fewest, most = (0, 4) if place in (0, len(steps)) else (1, 2)
        subject = int(rng.integers(STEPS, source.subjects))
        between.append(source.segments(rng, subject, int(rng.integers(fewest, most + 1)), look, split))
    return steps, between


def _arranged(rng: np.random.Generator, family: str, label: str) -> list[int]:
    """Which of the occurrences comes when: a permutation of 0 to 5."""
    if family == "agreement":
        first, other = rng.permutation(3)[:2].tolist()
        last = first if label == "agrees" else other
        middle = [0, 0, 1, 1, 2, 2]
        for letter in (first, last):
            middle.remove(letter)
        letters = [first, *rng.permutation(middle).tolist(), last]
    else:
        letters = ["abcdef".index(letter) for letter in CLASSES[family][label]]
        if rng.random() < _SWAPPED:
            at = int(rng.integers(len(letters) - 1))
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    if family == "order":
        return letters
    # Of the two occurrences of a step, that which was drawn first comes first.
    return [2 * letter + letters[:place].count(letter) for place, letter in enumerate(letters)]
