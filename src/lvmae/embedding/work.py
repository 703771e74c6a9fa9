"""The work itself: files -> records and failures, one process, no knowledge of who runs it.

Enters: files, one after the other, and a `Job` that says what to do with each. Leaves: events, the last of which for every file is
its `VideoRecord` or its `Failure`. Price: one batch of frames, and the vectors of unfinished videos. `lvmae.embedding.local` runs
this in processes of one machine, `lvmae.embedding.cluster` in actors of a Ray cluster; so both make the same store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvmae.embedding.encoders import SegmentEncoder
from lvmae.embedding.segmentation import SegmentRule
from lvmae.embedding.sources import VideoFile
from lvmae.embedding.video import VideoError, decode_segments, probe
from lvmae.store import Failure, VideoRecord


@dataclass(frozen=True)
class Job:
    """What every worker is told once, and the same for every file. Pickles small."""

    encoder: str
    options: dict[str, Any]
    rule: SegmentRule
    batch_size: int


@dataclass(frozen=True)
class Advanced:
    """Segments newly encoded, and how far the file in hand is decoded (0 to 1)."""

    segments: int
    fraction: float


Event = Advanced | VideoRecord | Failure


@dataclass
class _Video:
    """A file between decoding and its record: `owed` segments are not encoded yet, or not decoded."""

    file: VideoFile
    duration: float
    starts: np.ndarray
    ends: np.ndarray
    embeddings: np.ndarray
    owed: int

    def record(self) -> VideoRecord:
        return VideoRecord(self.file.id, self.file.source, self.duration, self.starts, self.ends, self.embeddings)


def embed_files(files: Iterable[VideoFile], encoder: SegmentEncoder, job: Job) -> Iterator[tuple[VideoFile, Event]]:
    """Decodes and encodes files one after the other; batches cross their borders. Yields (file, event) as things happen.

    Every file ends in exactly one VideoRecord or Failure. `encoder` is what `load_encoder(job.encoder, **job.options)` gives.
    Errors of the encoder are not a file's fault and are raised.
    """
    batch: list[tuple[_Video, int, np.ndarray]] = []

    def encode(now: VideoFile, fraction: float) -> Iterator[tuple[VideoFile, Event]]:
        vectors = encoder.encode_video(np.stack([frames for _, _, frames in batch]))
        for (video, place, _), vector in zip(batch, vectors, strict=True):
            video.embeddings[place] = vector
            video.owed -= 1
            if video.owed == 0:
                yield video.file, video.record()
        yield now, Advanced(len(batch), fraction)
        batch.clear()

    file = None
    for file in files:
        try:
            info = probe(file.path)
            starts, ends = job.rule.segments(info.duration)
            video = _Video(
                file, info.duration, starts, ends, np.empty((len(starts), encoder.dim), np.float32), len(starts)
            )
            decoded = decode_segments(
                file.path,
                starts,
                ends,
                num_frames=encoder.num_frames,
                image_size=encoder.image_size,
                interpolation=encoder.interpolation,
                framing=encoder.framing,
            )
        except Exception as error:
            yield file, failure_of(file, error)
            continue
        for place in range(len(starts)):
            try:
                frames = next(decoded)
            except Exception as error:
                batch[:] = [entry for entry in batch if entry[0] is not video]
                yield file, failure_of(file, error)
                break
            batch.append((video, place, frames))
            if len(batch) == job.batch_size:
                yield from encode(file, (place + 1) / len(starts))
    if batch and file is not None:
        yield from encode(file, 1.0)


def failure_of(file: VideoFile, error: Exception) -> Failure:
    """Whatever decoding one file raises is that file's failure, with its reason; what was not foreseen names its type."""
    reason = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
    return Failure(file.id, file.source, reason)
