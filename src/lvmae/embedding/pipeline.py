"""The work itself, in two stages that know nothing of who runs them: files -> decoded segments -> records and failures.

Enters: files, one after the other, and a `Job` that says what to do with each. `decode_files` is the first stage: what becomes
of each file, segment by segment. An `Assembly` is the end of the second: it takes what the first says and the vectors, in any
order, and gives the file's `VideoRecord`. `embed_files` is both in one process; `lvmae.embedding.two_stages` runs decoders and
encoders in processes of their own, `lvmae.embedding.ray_engine` on the nodes of a cluster; so all make the same store. Every
file ends in one event: its `VideoRecord`, its `Failure`, or that it is `Postponed`. Times are those of the source file, also of
a clip. Price: one batch of frames, and the vectors of unfinished videos.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from lvmae.embedding.sources import VideoFile
from lvmae.encoders import SegmentEncoder
from lvmae.files.identity import UNKNOWN, FileIdentity, identity_of, stat_of
from lvmae.files.urls import is_remote
from lvmae.store import Failure, VideoRecord
from lvmae.video.decoding import VideoError, decode_segments, probe
from lvmae.video.remote import Outage, set_patience
from lvmae.video.segmentation import Segmentation


@dataclass(frozen=True)
class FrameFormat:
    """The frames that an encoder wants of a segment: T frames of S x S pixels, and how they are resized."""

    num_frames: int
    image_size: int
    interpolation: str
    framing: str

    @classmethod
    def of(cls, encoder: SegmentEncoder) -> Self:
        """What an encoder asks for."""
        return cls(encoder.num_frames, encoder.image_size, encoder.interpolation, encoder.framing)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one segment's frames, uint8: (T, S, S, 3)."""
        return (self.num_frames, self.image_size, self.image_size, 3)


@dataclass(frozen=True)
class Job:
    """The settings that every worker gets once, the same for every file. Pickles small."""

    encoder: str
    options: dict[str, Any]
    rule: Segmentation
    batch_size: int
    keep_partial: bool = False
    """Keep the segments before the place where a file breaks off, instead of nothing of it."""
    patience: float = 120.0
    """Seconds for which a URL that does not answer is tried."""
    devices: tuple[str, ...] = ()
    """Where encoders run apart from decoders, one each; "" is where an encoder puts itself. None: a process does both."""
    frames: FrameFormat | None = None
    """What the encoder asks for, for decoders that have none; known where there are devices."""


# --- what becomes of a file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Advanced:
    """Segments newly encoded, and the progress of the current file (0 to 1). `note` names the limiting stage, if known."""

    segments: int
    fraction: float
    note: str = ""


@dataclass(frozen=True)
class Postponed:
    """A file that is neither done nor bad: it cannot be reached now (`outage`), or it is still being written."""

    id: str
    path: str
    reason: str
    outage: bool


Event = Advanced | VideoRecord | Failure | Postponed


# --- the first stage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Laid:
    """A file is open, and these are the segments that are meant, in seconds of the file."""

    duration: float
    starts: np.ndarray
    ends: np.ndarray
    identity: FileIdentity


@dataclass(frozen=True)
class Decoded:
    """One segment's frames, uint8 (T, S, S, 3)."""

    place: int
    frames: np.ndarray


@dataclass(frozen=True)
class Ended:
    """All segments were decoded; with a `reason` only the first `length`, because there the file breaks off."""

    length: int
    reason: str = ""


Decoding = Laid | Decoded | Ended | Advanced | Failure | Postponed

_LONGEST_SECONDS = 31 * 86400.0  # a header that says more is damaged
_CLIP_SECONDS = 1.0  # a clip may end this much after its file


def decode_files(files: Iterable[VideoFile], frames: FrameFormat, job: Job) -> Iterator[tuple[VideoFile, Decoding]]:
    """Yields what becomes of each file: `Laid`, its segments in order and `Ended`; or, at any point, a Failure or Postponed.

    A part of a file has that part's segments and the whole file's duration, and never ends with a reason. A file whose size or time
    changes while it is read is postponed, whatever else was found in it: it is still being written.
    """
    set_patience(job.patience)
    for file in files:
        before = stat_of(file.path)
        ended: Ended | Failure | Postponed
        try:
            laid = yield from _begin(file, job.rule)
            before = laid.identity
            yield file, laid
            ended = yield from _segments(file, laid, frames, keep_partial=job.keep_partial)
        except Outage as error:
            ended = Postponed(file.id, file.source, str(error), outage=True)
        except Exception as error:
            ended = failure_of(file, error)
        if not isinstance(ended, Postponed) and _has_changed(file, before):
            reason = "it changed while it was read, so it is still being written"
            ended = Postponed(file.id, file.source, reason, outage=False)
        yield file, ended


def _begin(file: VideoFile, rule: Segmentation) -> Generator[tuple[VideoFile, Decoding], None, Laid]:
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
    return Laid(end - begin, starts[mine], ends[mine], identity)


def _segments(
    file: VideoFile, laid: Laid, frames: FrameFormat, *, keep_partial: bool
) -> Generator[tuple[VideoFile, Decoding], None, Ended]:
    place = 0
    if len(laid.starts) == 0:  # a part of a file that has fewer segments than parts
        return Ended(0)
    try:
        for segment in decode_segments(
            file.path,
            laid.starts,
            laid.ends,
            num_frames=frames.num_frames,
            image_size=frames.image_size,
            interpolation=frames.interpolation,
            framing=frames.framing,
        ):
            yield file, Decoded(place, segment)
            place += 1
    except Outage:
        raise
    except VideoError as error:
        if keep_partial and place and file.parts == 1:
            return Ended(place, str(error))
        raise
    return Ended(place)


def _has_changed(file: VideoFile, before: FileIdentity) -> bool:
    """Whether a file has changed; a URL is requested again. If that cannot be found out, it counts as unchanged."""
    if before == UNKNOWN:
        return False
    now = identity_of(file.path) if is_remote(file.path) else stat_of(file.path)
    if is_remote(file.path) and before.digest is not None and now.digest is not None:
        return before.digest != now.digest
    return now != UNKNOWN and (now.bytes, now.changed) != (before.bytes, before.changed)


def failure_of(file: VideoFile, error: Exception) -> Failure:
    """Whatever decoding one file raises is that file's failure, with its reason; what was not foreseen names its type."""
    reason = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
    return Failure(file.id, file.source, reason, identity=UNKNOWN if is_remote(file.path) else identity_of(file.path))


# --- the end of the second stage --------------------------------------------------------------------------------------------


class Assembly:
    """One file between its decoding and its record. Messages about it may come in any order, and more than once."""

    def __init__(self, file: VideoFile) -> None:
        self.file = file
        self._laid: Laid | None = None
        self._ended: Ended | None = None
        self._vectors: dict[int, np.ndarray] = {}

    def decoding(self, said: Laid | Ended) -> VideoRecord | None:
        """Takes what the first stage said; gives the record, if that was the last thing it lacked."""
        if isinstance(said, Laid):
            self._laid = said
        else:
            self._ended = said
        return self._record()

    def encoded(self, place: int, vector: np.ndarray) -> VideoRecord | None:
        """Takes a segment's vector (dim); gives the record, if that was the last thing it lacked."""
        self._vectors[place] = vector
        return self._record()

    @property
    def fraction(self) -> float:
        """The share of its segments that is encoded."""
        return len(self._vectors) / max(len(self._laid.starts), 1) if self._laid else 0.0

    def _record(self) -> VideoRecord | None:
        laid, ended = self._laid, self._ended
        if laid is None or ended is None or len(self._vectors) < ended.length:
            return None
        if any(place not in self._vectors for place in range(ended.length)):  # some may be from beyond the end
            return None
        starts, ends, duration = laid.starts[: ended.length], laid.ends[: ended.length], laid.duration
        if ended.reason:
            duration += float(ends[-1] - laid.ends[-1])
        vectors = [self._vectors[place] for place in range(ended.length)]
        return VideoRecord(
            self.file.id,
            self.file.source,
            duration,
            starts,
            ends,
            np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
            shortened=ended.reason,
            identity=laid.identity,
        )


# --- both in one process ----------------------------------------------------------------------------------------------------


def embed_files(files: Iterable[VideoFile], encoder: SegmentEncoder, job: Job) -> Iterator[tuple[VideoFile, Event]]:
    """Decodes and encodes files in turn; batches cross their borders. Yields (file, event) as things happen.

    Every file ends in exactly one VideoRecord, Failure or Postponed. `encoder` is what `load_encoder(job.encoder, **job.options)`
    gives. Errors of the encoder are not a file's fault and are raised.
    """
    batch: list[tuple[Assembly, int, np.ndarray]] = []
    assembly: Assembly | None = None

    def encode() -> Iterator[tuple[VideoFile, Event]]:
        vectors = encoder.encode_video(np.stack([frames for _, _, frames in batch]))
        segments, last = batch.copy(), batch[-1][0]
        batch.clear()
        records = [assembly.encoded(place, row) for (assembly, place, _), row in zip(segments, vectors, strict=True)]
        yield last.file, Advanced(len(segments), last.fraction)  # first: nobody listens any more after the last record
        for (owner, _, _), record in zip(segments, records, strict=True):
            if record is not None:
                yield owner.file, record

    for file, said in decode_files(files, FrameFormat.of(encoder), job):
        if isinstance(said, Laid):
            assembly = Assembly(file)
            assembly.decoding(said)
        elif isinstance(said, Decoded):
            assert assembly is not None
            batch.append((assembly, said.place, said.frames))
            if len(batch) == job.batch_size:
                yield from encode()
        elif isinstance(said, Ended):
            assert assembly is not None
            if record := assembly.decoding(said):
                yield file, record
        else:
            if not isinstance(said, Advanced):
                batch[:] = [segment for segment in batch if segment[0].file != file]
            yield file, said
    if batch:
        yield from encode()


# --- a long film, shared ------------------------------------------------------------------------------------------------------

_SHARED_BYTES = 16 << 20  # a film smaller than this is not worth opening twice


def shared_out(files: list[VideoFile], workers: int, rule: Segmentation) -> list[VideoFile]:
    """The work in its order: long films first; those that would keep one worker busy after the others are split into parts.

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
    held = [record for record in records if len(record.starts)]  # a short film may have fewer segments than parts
    starts, ends, embeddings = (
        np.concatenate([getattr(record, name) for record in held]) for name in ("starts", "ends", "embeddings")
    )
    return replace(records[0], starts=starts, ends=ends, embeddings=embeddings)
