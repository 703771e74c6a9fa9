"""A store as files that other tools open: a Parquet table of segments, and WebVTT chapters.

The table has a row a segment, with its vector, novelty, place on a plane, nearest neighbours, caption, picture and link:
embedding-atlas, DuckDB, pandas and Lance read it as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError, LVMAEError
from lvmae.files.tables import write_parquet_rows
from lvmae.files.urls import is_remote
from lvmae.files.writing import write_text
from lvmae.library.captions import load_captions
from lvmae.library.chapters import timeline
from lvmae.library.nearest import Nearest
from lvmae.library.projection import segment_places
from lvmae.library.search import Segments
from lvmae.progress import progress
from lvmae.store import EmbeddingStore, l2_normalize, located

_COLUMNS: dict[str, Any] = {
    "key": str,
    "id": str,
    "segment": int,
    "start": float,
    "end": float,
    "text": str,
    "link": str,
    "x": float,
    "y": float,
    "novelty": float,
    "neighbours": list[str],
    "thumbnail": str,
    "vector": list[float],
}
_NEIGHBOURS = 10
_PICTURE_HEIGHT = 90
_TOGETHER = 256  # segments whose neighbours are looked for at once


def export_segments(
    store: str | Path | EmbeddingStore,
    out: str | Path,
    *,
    captions: str | Path | None = None,
    projection: str = "pca",
    pictures: bool = True,
    neighbours: int = _NEIGHBOURS,
) -> int:
    """Writes a row a segment as Parquet, and returns how many.

    Args:
        store: embeddings or representations.
        out: the file; it ends in .parquet.
        captions: a table of captions, whose texts become the column `text`.
        projection: "pca", or "umap" where umap-learn is installed.
        pictures: put a JPEG of each segment into the table, where the videos can be read.
        neighbours: nearest segments of other videos that each row names; 0 for none.

    Raises:
        InputError: another suffix, or an unknown projection.
        WorkError: the file cannot be written.
    """
    if Path(out).suffix.lower() != ".parquet":
        raise InputError(f"{out} must end in .parquet")
    store = EmbeddingStore.open(store)
    rows = list(_rows(store, captions, projection, pictures, neighbours))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_parquet_rows(out, rows, _COLUMNS)
    return len(rows)


def _rows(
    store: EmbeddingStore, captions: str | Path | None, projection: str, pictures: bool, neighbours: int
) -> Iterator[dict[str, Any]]:
    places = segment_places(store, projection)
    segments = Segments(store)
    near = _neighbours(store, segments, neighbours)
    said: dict[str, list[tuple[float, float, str]]] = {}
    for caption in load_captions(captions) if captions is not None else ():
        said.setdefault(caption.video, []).append((caption.start, caption.end, caption.text))
    for place in progress(range(len(store)), desc="export", unit="videos"):
        record = store[place]
        unit = l2_normalize(record.embeddings)
        novelty = [None, *(1.0 - np.einsum("nd,nd->n", unit[1:], unit[:-1])).round(4).tolist()]
        source = located(store, record.source)
        shown = _thumbnails(source, (record.starts + record.ends) / 2) if pictures else {}
        address = source if is_remote(source) or not source else Path(source).absolute().as_uri()
        first = int(segments.firsts[place])
        for segment, (start, end) in enumerate(zip(record.starts.tolist(), record.ends.tolist(), strict=True)):
            mine = [text for begin, stop, text in said.get(record.id, ()) if begin < end and stop > start]
            yield {
                "key": f"{record.id}#{segment}",
                "id": record.id,
                "segment": segment,
                "start": start,
                "end": end,
                "text": " ".join(mine) or record.id,
                "link": f"{address}#t={start:g},{end:g}" if address else None,
                "x": float(places[first + segment, 0]),
                "y": float(places[first + segment, 1]),
                "novelty": novelty[segment],
                "neighbours": near[first + segment] if near else [],
                "thumbnail": shown.get(segment),
                "vector": record.embeddings[segment].astype(np.float32).tolist(),
            }


def _neighbours(store: EmbeddingStore, segments: Segments, count: int) -> list[list[str]]:
    """The keys of the nearest segments of other videos, for each segment."""
    if count < 1:
        return []
    nearest = Nearest(segments)
    found: list[list[str]] = []
    first = 0
    for block in segments.blocks(_TOGETHER):
        places, _ = nearest.search(block.astype(np.float32), 4 * count)
        for row, near in enumerate(places):
            own, _ = segments.locate(np.array([first + row]))
            keys = [
                f"{store.ids[video]}#{segment}"
                for video, segment in zip(*segments.locate(near), strict=True)
                if video != own[0]
            ]
            found.append(keys[:count])
        first += len(block)
    return found


def _thumbnails(source: str, times: np.ndarray) -> dict[int, str]:
    """Data URLs by segment; empty if the video cannot be read here."""
    from lvmae.video.decoding import thumbnails

    if not source or is_remote(source) or not Path(source).is_file():
        return {}
    try:
        jpegs = thumbnails(source, times.tolist(), _PICTURE_HEIGHT)
    except LVMAEError:
        return {}
    return {
        number: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for number, jpeg in enumerate(jpegs) if jpeg
    }


def export_chapters(store: str | Path | EmbeddingStore, out: str | Path) -> list[Path]:
    """Writes the chapters of every video as WebVTT below the folder `out`, by id, and returns the files.

    Raises InputError if an id would lead out of the folder, WorkError if a file cannot be written.
    """
    store = EmbeddingStore.open(store)
    folder = Path(out).absolute()
    written: list[Path] = []
    for video in progress(store.ids, desc="chapters", unit="videos"):
        path = Path(f"{folder / video}.vtt")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"the id {video!r} leads out of {out}; nothing was written for it")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, timeline(store, video).to_vtt())
        written.append(path)
    return written
