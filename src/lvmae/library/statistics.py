"""What a store holds, in figures: hours, durations, sizes, failures, still and black segments, central and unusual videos.

Enters: a store. Leaves: `Statistics`, as text, JSON or a picture. Price: every vector is read once; with `pictures`, a frame
of each segment is decoded small, to tell black ones.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvmae.errors import InputError, LVMAEError
from lvmae.files.pictures import png_of
from lvmae.files.urls import is_remote
from lvmae.files.writing import write_bytes
from lvmae.progress import progress
from lvmae.store import EmbeddingStore, l2_normalize, located

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STILL = 0.9995  # cosine with the segment before from which nothing has changed
_BLACK = 16  # grey value up to which a frame is black
_NAMED = 5  # videos
_FORMATS = (".json", ".txt", ".png")


@dataclass(frozen=True)
class Statistics:
    """A store in figures. Shares are of segments, None if nobody looked."""

    videos: int
    segments: int
    hours: float
    duration: dict[str, float]
    """Seconds of a video: least, median, mean, most."""
    store_bytes: int
    """Of the store's files on this machine; 0 for one in a bucket."""
    source_bytes: int
    """Of the videos, as far as their sizes are known."""
    failures: dict[str, int]
    """Kind of reason -> how many inputs."""
    still_share: float
    """Share of segments that are like the one before them."""
    black_share: float | None
    central: list[tuple[str, float]]
    """The videos most like the library's mean, with their cosine."""
    unusual: list[tuple[str, float]]
    """Those least like it."""
    seconds: list[float] = field(repr=False, default_factory=list)
    """Of each video, by id."""
    typicality: list[float] = field(repr=False, default_factory=list)
    """Cosine of each video with the library's mean, by id."""

    def to_json(self) -> str:
        """Everything."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """A line a figure."""
        lengths = ", ".join(f"{name} {seconds:,.1f}" for name, seconds in self.duration.items())
        black = "not looked at" if self.black_share is None else f"{self.black_share:.1%}"
        lines = [
            f"videos            {self.videos:,}, {self.hours:,.2f} hours, {self.segments:,} segments",
            f"seconds a video   {lengths}",
            f"bytes             store {self.store_bytes:,}, videos {self.source_bytes:,}",
            f"failures          {sum(self.failures.values())}",
            *(f"                  {count} x {reason}" for reason, count in self.failures.items()),
            f"still segments    {self.still_share:.1%}",
            f"black segments    {black}",
            *_listed("most central", self.central),
            *_listed("most unusual", self.unusual),
        ]
        return "\n".join(lines) + "\n"

    def to_png(self) -> bytes:
        """Durations, and how typical the videos are: two histograms."""
        return png_of(lambda: _figure(self), dpi=100)

    def save(self, path: str | Path) -> Path:
        """Writes the file that the suffix says: .json, .txt or .png. Raises InputError for another one."""
        suffix = check_format(path)
        content = (
            self.to_png() if suffix == ".png" else (self.to_json() if suffix == ".json" else self.to_text()).encode()
        )
        write_bytes(path, content)
        return Path(path)


def check_format(path: str | Path) -> str:
    """The suffix of a file that statistics can be written to. Raises InputError for another one."""
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"{path} must end in {', '.join(_FORMATS)}: the suffix sets the format")
    return suffix


def statistics(store: str | Path | EmbeddingStore, *, pictures: bool = False) -> Statistics:
    """A store in figures.

    Args:
        store: embeddings or representations.
        pictures: decode a frame of each segment, where the videos can be read, to tell black ones.
    """
    store = EmbeddingStore.open(store)
    still = steps = 0
    for place in range(len(store)):
        unit = l2_normalize(store.embeddings(place))
        cosines = np.einsum("nd,nd->n", unit[1:], unit[:-1])
        still, steps = still + int((cosines > _STILL).sum()), steps + len(cosines)
    features = l2_normalize(store.mean_features)
    typical = np.clip(features @ l2_normalize(features.mean(axis=0)), -1, 1)
    order = np.lexsort((np.arange(len(store)), -typical))
    named = [(store.ids[place], round(float(typical[place]), 4)) for place in order]
    sizes = [store[place].identity.bytes for place in range(len(store))]
    seconds = store.durations
    return Statistics(
        videos=len(store),
        segments=int(store.lengths.sum()),
        hours=round(float(seconds.sum()) / 3600, 4),
        duration={
            "least": round(float(seconds.min()), 3),
            "median": round(float(np.median(seconds)), 3),
            "mean": round(float(seconds.mean()), 3),
            "most": round(float(seconds.max()), 3),
        },
        store_bytes=0
        if is_remote(store.path)
        else sum(f.stat().st_size for f in Path(store.path).rglob("*") if f.is_file()),
        source_bytes=sum(size for size in sizes if size),
        failures=dict(Counter(_kind(failure.reason) for failure in store.failures).most_common()),
        still_share=round(still / steps, 4) if steps else 0.0,
        black_share=_black_share(store) if pictures else None,
        central=named[:_NAMED],
        unusual=named[::-1][:_NAMED],
        seconds=seconds.round(3).tolist(),
        typicality=typical.round(4).tolist(),
    )


def _kind(reason: str) -> str:
    """A reason without what differs from file to file."""
    return reason.split(":", maxsplit=1)[0].split("(", maxsplit=1)[0].strip().rstrip(".") or "no reason"


def _black_share(store: EmbeddingStore) -> float | None:
    from lvmae.video.decoding import decode_segments

    black = seen = 0
    for place in progress(range(len(store)), desc="black", unit="videos"):
        record = store[place]
        path = located(store, record.source)
        if not path or is_remote(path):
            continue
        try:
            for frames in decode_segments(path, record.starts, record.ends, num_frames=1, image_size=32):
                black, seen = black + int(np.quantile(frames, 0.98) <= _BLACK), seen + 1
        except LVMAEError:
            continue
    return round(black / seen, 4) if seen else None


def _listed(what: str, videos: list[tuple[str, float]]) -> list[str]:
    return [f"{what if not number else '':<17} {cosine:.3f}  {video}" for number, (video, cosine) in enumerate(videos)]


def _figure(found: Statistics) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for axes, values, name in (
        (panels[0], np.array(found.seconds) / 60, "minutes a video"),
        (panels[1], np.array(found.typicality), "cosine of a video with the library's mean"),
    ):
        axes.hist(values, bins=min(40, max(5, round(len(values) ** 0.5))), color="#23566f")
        axes.set(xlabel=name, ylabel="videos")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{found.videos:,} videos, {found.hours:,.1f} hours, {found.segments:,} segments", fontsize=11)
    return figure
