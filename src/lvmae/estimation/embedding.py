"""Videos -> what embedding them costs: hours of video, segments, bytes of the store, time.

The time follows from two rates, measured on a few segments of the videos themselves: decoding in one process, and encoding with
as many threads as a worker has. Price: opening up to 200 videos, loading the encoder, and about five seconds of work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvmae.embedding import find_videos
from lvmae.embedding.sources import VideoFile
from lvmae.encoders import SegmentEncoder, load_encoder
from lvmae.errors import InputError, LVMAEError
from lvmae.store import EmbeddingStore, stored_sources
from lvmae.video import VideoError, decode_segments
from lvmae.video.decoding import probe
from lvmae.video.segmentation import Segmentation, segment_rule

_MOST_OPENED = 200
_MEASURE_SECONDS = 5.0
_SEGMENTS_AT_ONCE = 4
_FLOAT16_BYTES = 2


@dataclass(frozen=True)
class EmbeddingEstimate:
    """The estimated cost of `embed_videos` with the same arguments.

    Attributes:
        videos: to be embedded; `stored` are in the store already.
        unreadable: of the videos that were opened, those that cannot be read.
        opened: videos whose length was read; the others are taken to be of the same mean length.
        hours: of video. segments: to be encoded. bytes: of the store that they make.
        seconds: of time, by `decode_rate` and `encode_rate` (segments a second of one process) and `workers`.
    """

    videos: int
    stored: int
    unreadable: int
    opened: int
    hours: float
    segments: int
    bytes: int
    seconds: float
    decode_rate: float
    encode_rate: float
    workers: int
    device: str

    def to_text(self) -> str:
        """Returns the estimate as lines of text."""
        scope = "" if self.opened >= self.videos else f" (from the lengths of {self.opened} of them)"
        lines = [
            f"{self.videos} videos to embed, {self.stored} already stored",
            f"{self.hours:.2f} hours of video, {self.segments} segments{scope}",
            f"{megabytes(self.bytes)} of embeddings",
            f"about {duration(self.seconds)} with {self.workers} {'process' if self.workers == 1 else 'processes'} on "
            f"{self.device}: one decodes {self.decode_rate:.1f} and encodes {self.encode_rate:.1f} segments a second",
        ]
        if self.unreadable:
            lines.append(f"{self.unreadable} of {self.opened} opened videos cannot be read; they will be failures")
        return "\n".join(lines)


def estimate_embedding(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    encoder: str = "conse",
    encoder_options: dict[str, Any] | None = None,
    segment_kind: str = "fixed",
    segment_seconds: float | None = None,
    stride: float | None = None,
    workers: int | None = None,
) -> EmbeddingEstimate:
    """Estimates what `embed_videos` would cost with the same arguments; nothing is written.

    Raises:
        InputError: the videos, the encoder or the segments are none.
    """
    files = find_videos(videos, stored_sources([out] if out is not None else []))
    rule = segment_rule(segment_kind, segment_seconds, stride)
    stored = _stored(out)
    todo = [file for file in files if file.id not in stored]
    model, starting = _started(encoder, encoder_options or {})
    sample = [todo[i] for i in np.unique(np.linspace(0, len(todo) - 1, min(len(todo), _MOST_OPENED)).astype(int))]
    lengths = {file: seconds for file in sample if (seconds := _length(file)) is not None}
    scale = len(todo) / len(sample) if sample else 0.0
    segments = sum(_count(rule, seconds) for seconds in lengths.values())
    decode_rate, encode_rate = _rates(lengths, model, rule) if lengths else (float("inf"), float("inf"))
    accelerated = bool(getattr(model, "on_accelerator", False))
    workers = workers or os.cpu_count() or 1
    per_segment = (
        max(1 / encode_rate, 1 / (decode_rate * workers))
        if accelerated
        else (1 / decode_rate + 1 / encode_rate) / workers
    )
    return EmbeddingEstimate(
        videos=len(todo),
        stored=len(files) - len(todo),
        unreadable=len(sample) - len(lengths),
        opened=len(sample),
        hours=sum(lengths.values()) * scale / 3600,
        segments=round(segments * scale),
        bytes=round(segments * scale * (model.dim * _FLOAT16_BYTES + 16)),
        seconds=(starting + segments * scale * per_segment) if todo else 0.0,
        decode_rate=decode_rate,
        encode_rate=encode_rate,
        workers=workers,
        device="the accelerator" if accelerated else "the CPU",
    )


def _started(name: str, options: dict[str, Any]) -> tuple[SegmentEncoder, float]:
    """The encoder, and the seconds that pass before a job encodes: once in the job's process, then in its workers."""
    began = time.monotonic()
    encoder = load_encoder(name, **options)
    encoder.self_test()
    here = time.monotonic() - began
    script = "import json, sys; from lvmae.encoders import load_encoder; load_encoder(sys.argv[1], **json.loads(sys.argv[2]))"
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", script, name, json.dumps(options, default=str)], check=False, capture_output=True
    )
    return encoder, here + time.monotonic() - began


def _stored(out: str | os.PathLike[str] | None) -> set[str]:
    """The ids that a store holds; none if there is no store yet."""
    if out is None:
        return set()
    try:
        return set(EmbeddingStore.open(out).ids)
    except InputError:
        return set()


def _length(file: VideoFile) -> float | None:
    """Seconds of a video or clip; None if it cannot be read."""
    try:
        whole = probe(file.path).duration
    except LVMAEError:
        return None
    return max(0.0, (whole if file.end is None else min(whole, file.end)) - (file.start or 0.0))


def _count(rule: Segmentation, seconds: float) -> int:
    lay_out = getattr(rule, "segments", None)
    if lay_out is not None:
        return len(lay_out(seconds)[0])
    return max(1, round(seconds / 5))  # shots: their number is known only once the film is decoded


def _rates(lengths: dict[VideoFile, float], encoder: SegmentEncoder, rule: Segmentation) -> tuple[float, float]:
    """Segments a second that one process decodes, and encodes, over stretches of several videos."""
    import torch

    seconds = float(rule.description.get("seconds", 5.0))
    threads = torch.get_num_threads()
    decoded = encoded = 0
    decoding = encoding = 0.0
    try:
        torch.set_num_threads(1)  # as in a worker
        for file in _round_robin(sorted(lengths, key=lambda file: -lengths[file])[:8]):
            at = (file.start or 0.0) + lengths[file] * (0.25 + 0.5 * (decoded % 7) / 7)
            starts = at + seconds * np.arange(_SEGMENTS_AT_ONCE)
            starts = starts[starts + seconds <= (file.start or 0.0) + lengths[file]]
            if not len(starts):
                starts = np.array([file.start or 0.0])
            ends = np.minimum(starts + seconds, (file.start or 0.0) + lengths[file])
            began = time.monotonic()
            frames = _frames(file, starts, ends, encoder)
            middle = time.monotonic()
            if frames:
                encoder.encode_video(np.stack(frames))
                if decoded:  # the first batch warms up
                    encoding, encoded = encoding + time.monotonic() - middle, encoded + len(frames)
                decoding, decoded = decoding + middle - began, decoded + len(frames)
            if decoding + encoding > _MEASURE_SECONDS and encoded:
                break
    finally:
        torch.set_num_threads(threads)
    if not encoded:
        return float("inf"), float("inf")
    return decoded / max(decoding, 1e-9), encoded / max(encoding, 1e-9)


def _round_robin(files: Sequence[VideoFile]) -> Iterable[VideoFile]:
    """Each file a few times, so that short ones are measured more than once."""
    for _ in range(4):
        yield from files


def _frames(file: VideoFile, starts: np.ndarray, ends: np.ndarray, encoder: SegmentEncoder) -> list[np.ndarray]:
    try:
        return list(
            decode_segments(
                file.path,
                starts,
                ends,
                num_frames=encoder.num_frames,
                image_size=encoder.image_size,
                interpolation=encoder.interpolation,
                framing=encoder.framing,
            )
        )
    except VideoError:
        return []


def megabytes(count: float) -> str:
    """Returns a number of bytes in a unit that a person reads."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit in ("bytes", "KB", "MB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Returns a time in the unit that a person would use."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"
