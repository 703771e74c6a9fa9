"""The work itself: files -> records and failures, one process, no knowledge of who runs it.

Enters: files, one after the other, and a `Job` that says what to do with each. Leaves: events, the last of which for every file is
its `VideoRecord` or its `Failure`. Times are those of the source file, also of a clip. Price: one batch of frames, two where the
encoder is on an accelerator, and the vectors of unfinished videos. `lvmae.embedding.local_engine` runs this in processes of one
machine, `lvmae.embedding.ray_engine` in actors of a Ray cluster; so both make the same store.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from lvmae.embedding.sources import VideoFile
from lvmae.encoders import SegmentEncoder
from lvmae.files.identity import UNKNOWN, FileIdentity, identity_of
from lvmae.files.urls import is_remote
from lvmae.store import Failure, VideoRecord
from lvmae.video.decoding import VideoError, decode_segments, probe
from lvmae.video.segmentation import Segmentation


@dataclass(frozen=True)
class Job:
    """What every worker is told once, and the same for every file. Pickles small."""

    encoder: str
    options: dict[str, Any]
    rule: Segmentation
    batch_size: int
    keep_partial: bool = False
    """Keep the segments before the place where a file breaks off, instead of nothing of it."""


@dataclass(frozen=True)
class Advanced:
    """Segments newly encoded, and how far the file in hand is decoded (0 to 1)."""

    segments: int
    fraction: float


_LONGEST_SECONDS = 31 * 86400.0  # a header that says more is damaged
_CLIP_SECONDS = 1.0  # a clip may end this much behind its file

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
    identity: FileIdentity
    shortened: str = ""

    def shorten(self, length: int, reason: str) -> None:
        """Keeps the first `length` segments, which are all decoded; there will be no others."""
        self.owed -= len(self.starts) - length
        self.duration += float(self.ends[length - 1] - self.ends[-1])
        self.starts, self.ends, self.embeddings = self.starts[:length], self.ends[:length], self.embeddings[:length]
        self.shortened = reason

    def record(self) -> VideoRecord:
        return VideoRecord(
            self.file.id,
            self.file.source,
            self.duration,
            self.starts,
            self.ends,
            self.embeddings,
            shortened=self.shortened,
            identity=self.identity,
        )


def embed_files(files: Iterable[VideoFile], encoder: SegmentEncoder, job: Job) -> Iterator[tuple[VideoFile, Event]]:
    """Decodes and encodes files one after the other; batches cross their borders. Yields (file, event) as things happen.

    Every file ends in exactly one VideoRecord or Failure. `encoder` is what `load_encoder(job.encoder, **job.options)` gives.
    Errors of the encoder are not a file's fault and are raised. The record of a part of a file holds that part's segments and the
    whole file's duration; a part is never shortened.
    """
    with _Encoding(encoder) as encoding:
        batch: list[_Segment] = []
        file = None
        for file in files:
            try:
                video = yield from _begin(file, encoder, job.rule)
                decoded = decode_segments(
                    file.path,
                    video.starts,
                    video.ends,
                    num_frames=encoder.num_frames,
                    image_size=encoder.image_size,
                    interpolation=encoder.interpolation,
                    framing=encoder.framing,
                )
            except Exception as error:
                yield file, failure_of(file, error)
                continue
            for place in range(len(video.starts)):
                try:
                    frames = next(decoded)
                except Exception as error:
                    if job.keep_partial and place and file.parts == 1 and isinstance(error, VideoError):
                        video.shorten(place, str(error))
                        if video.owed == 0:
                            yield file, video.record()
                    else:
                        batch = [segment for segment in batch if segment[0] is not video]
                        yield file, failure_of(file, error)
                    break
                batch.append((video, place, frames))
                if len(batch) == job.batch_size:
                    yield from encoding.add(batch, file, (place + 1) / len(video.starts))
                    batch = []
            if len(video.starts) == 0:  # a part of a file that has fewer segments than parts
                yield file, video.record()
        if batch and file is not None:
            yield from encoding.add(batch, file, 1.0)
        yield from encoding.rest()


_Segment = tuple[_Video, int, np.ndarray]  # whose, its place, its frames


class _Encoding:
    """Batches of segments -> the events of their videos. On an accelerator, one batch is encoded while the next is decoded."""

    def __init__(self, encoder: SegmentEncoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1) if getattr(encoder, "on_accelerator", False) else None
        self._waiting: tuple[list[_Segment], VideoFile, float, Future[np.ndarray]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def add(self, batch: list[_Segment], now: VideoFile, fraction: float) -> Iterator[tuple[VideoFile, Event]]:
        """Takes a batch; `now` is the file in hand and `fraction` how far it is. The events may be those of the batch before."""
        frames = np.stack([frames for _, _, frames in batch])
        if self._thread is None:
            yield from _encoded(batch, now, fraction, self._encoder.encode_video(frames))
            return
        yield from self.rest()
        self._waiting = batch, now, fraction, self._thread.submit(self._encoder.encode_video, frames)

    def rest(self) -> Iterator[tuple[VideoFile, Event]]:
        """The events of the batch that is being encoded."""
        if self._waiting is not None:
            batch, now, fraction, future = self._waiting
            self._waiting = None
            yield from _encoded(batch, now, fraction, future.result())


def _encoded(
    batch: list[_Segment], now: VideoFile, fraction: float, vectors: np.ndarray
) -> Iterator[tuple[VideoFile, Event]]:
    yield now, Advanced(len(batch), fraction)  # first: nobody listens any more behind the last record
    for (video, place, _), vector in zip(batch, vectors, strict=True):
        video.embeddings[place] = vector
        video.owed -= 1
        if video.owed == 0:
            yield video.file, video.record()


def _begin(
    file: VideoFile, encoder: SegmentEncoder, rule: Segmentation
) -> Generator[tuple[VideoFile, Event], None, _Video]:
    """Probes a file and lays out the segments that are meant; where that takes long, says so meanwhile. Raises VideoError."""
    identity = UNKNOWN if is_remote(file.path) else identity_of(file.path)  # first: a later change is seen as one
    length = probe(file.path).duration
    if is_remote(file.path):  # not before: what cannot be reached is waited for once
        identity = identity_of(file.path)
    begin, end = file.start or 0.0, length if file.end is None else min(file.end, length)
    if begin >= length or (file.end is not None and file.end > length + _CLIP_SECONDS):
        raise VideoError(
            f"the clip from {begin:g} s to {file.end or end:g} s is not in the file, which lasts {length:.1f} s"
        )
    if end - begin > _LONGEST_SECONDS:
        raise VideoError(f"it says it lasts {length / 3600:,.0f} hours, so its header is damaged")
    laid_out = rule.lay_out(file.path, begin, end)
    while True:
        try:
            share = next(laid_out)
        except StopIteration as result:
            starts, ends = result.value
            break
        yield file, Advanced(0, share / 2)  # looking at a video is about half of the work
    # Shares of a long film: every worker lays out the same timeline and takes its own stretch of it.
    mine = slice(len(starts) * file.part // file.parts, len(starts) * (file.part + 1) // file.parts)
    starts, ends = starts[mine], ends[mine]
    vectors = np.empty((len(starts), encoder.dim), np.float32)
    return _Video(file, end - begin, starts, ends, vectors, len(starts), identity)


def failure_of(file: VideoFile, error: Exception) -> Failure:
    """Whatever decoding one file raises is that file's failure, with its reason; what was not foreseen names its type."""
    reason = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
    return Failure(file.id, file.source, reason, identity=UNKNOWN if is_remote(file.path) else identity_of(file.path))


# --- a long film, shared ------------------------------------------------------------------------------------------------------

_SHARED_BYTES = 16 << 20  # a film smaller than this is not worth opening twice


def shared_out(files: list[VideoFile], workers: int, rule: Segmentation) -> list[VideoFile]:
    """The work in the order to take it up: long films first, and in parts those that would keep one worker busy after the others.

    A film is cut where it is more than half a worker's share of all bytes. Clips are not: nobody knows how many bytes are theirs.
    Nor is any film where every worker would have to look at all of it to lay out its timeline.
    """
    sizes = {file.id: file.size() for file in files}
    share = max(sum(sizes.values()) / (2 * workers), _SHARED_BYTES)
    work: list[VideoFile] = []
    for file in sorted(files, key=lambda file: sizes[file.id], reverse=True):
        whole = workers == 1 or rule.looks or file.start is not None or file.end is not None
        parts = 1 if whole else max(1, math.ceil(sizes[file.id] / share))
        work += [replace(file, part=part, parts=parts) for part in range(parts)]
    return work


def joined(records: list[VideoRecord]) -> VideoRecord:
    """One film's record from those of its parts, in their order."""
    starts, ends, embeddings = (
        np.concatenate([getattr(record, name) for record in records]) for name in ("starts", "ends", "embeddings")
    )
    return replace(records[0], starts=starts, ends=ends, embeddings=embeddings)
