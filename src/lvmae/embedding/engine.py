"""Videos -> store, on one machine: a process a core, each decoding and encoding; nothing lost, nothing twice.

`embed_files` is the work itself: a generator from files to finished videos that any engine can run. Around it here are the
workers and the one who minds them. A worker is one process with one thread of arithmetic, which decodes a file and encodes it in
batches that cross the borders of videos. On CPU this beats one encoding process fed by decoders: frames never travel between
processes, and both cores are always busy (two threads in one process make this encoder 1.4 times as fast, two processes twice).

What can go wrong and what becomes of it: a bad file is a row of the failures table; a worker that dies takes its file along once,
and twice makes it a failure; one that is silent for `timeout` seconds is ended and its file a failure; Ctrl-C and kill -9 lose what
was in flight, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.embedding.encoders import SegmentEncoder, load_encoder
from lvmae.embedding.segmentation import SegmentRule
from lvmae.embedding.video import VideoError, VideoFile, decode_segments, find_videos, probe
from lvmae.errors import InputError, WorkError
from lvmae.progress import progress
from lvmae.store import Failure, Manifest, StoreWriter, VideoRecord

_ATTEMPTS = 2  # a file in hand when its worker died is tried this often
_COMMIT_SECONDS = 30.0
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class EmbedSummary:
    """What a job did. `failed` counts every video given that is not in the store now; `failures` says why."""

    embedded: int
    skipped: int  # were in the store before
    failed: int
    segments: int
    seconds_of_video: float
    wall_seconds: float
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Advanced:
    """Segments newly encoded, and how far the file in hand is decoded (0 to 1)."""

    segments: int
    fraction: float


Event = Advanced | VideoRecord | Failure


def embed_videos(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    encoder: str = "conse",
    encoder_options: dict[str, Any] | None = None,
    segment_seconds: float = 5.0,
    stride: float | None = None,
    workers: int | None = None,
    batch_size: int = 16,
    retry_failures: bool = False,
    timeout: float = 300.0,
) -> EmbedSummary:
    """Embeds a folder of videos, a file, or several of either into the store `out`, which is made or gone on with.

    A video's id is its path below the folder given, without suffix. Videos in the store are left as they are; files that failed
    before are tried again only with `retry_failures`. `workers` is the number of processes, by default one a core; the result does
    not depend on it. A file whose worker says nothing for `timeout` seconds is given up.

    Raises InputError for a request that cannot be carried out, WorkError if the encoder fails, and KeyboardInterrupt, with how to
    go on as its message, after committing what was finished.
    """
    began = time.monotonic()
    if batch_size < 1 or (workers is not None and workers < 1) or timeout <= 0:
        raise InputError("batch_size, workers and timeout must be positive.")
    files = find_videos(videos)
    rule = SegmentRule(segment_seconds, stride)
    model = load_encoder(encoder, **(encoder_options or {}))
    manifest = Manifest(
        space_id=model.space_id,
        dim=model.dim,
        segments=rule.description,
        encoder={"name": encoder, "options": model.options, "licence": model.licence},
    )
    job = _Job(encoder, model.options, rule, batch_size)
    embedded = segments = 0
    seconds = 0.0
    with _interruptible() as stop, StoreWriter(out, manifest, flush_seconds=_COMMIT_SECONDS) as writer:
        skipped = sum(file.id in writer.done for file in files)
        todo = [f for f in files if f.id not in writer.done and (retry_failures or f.id not in writer.failed)]
        if todo:
            model.self_test()
        del model  # the workers have their own; this process only minds them
        meter = _Meter(todo)
        try:
            for file, event in _run(todo, job, min(workers or _cores(), max(len(todo), 1)), timeout, stop):
                meter.saw(file, event, seconds_of_video=seconds)
                if isinstance(event, VideoRecord):
                    writer.add(event)
                    embedded, segments, seconds = embedded + 1, segments + len(event.starts), seconds + event.duration
                elif isinstance(event, Failure):
                    writer.fail(event.id, event.path, event.reason)
                elif meter.commit_due():
                    writer.commit()
        finally:
            meter.close()
        reasons = dict(writer.failed)
    if meter.ended < len(todo):
        raise KeyboardInterrupt(
            f"Stopped. {skipped + embedded} of {len(files)} videos are in {os.fspath(out)}; the same command goes on."
        )
    failures = tuple(
        Failure(f.id, str(f.path), reasons[f.id]) for f in files if f.id in reasons and f.id not in writer.done
    )
    return EmbedSummary(embedded, skipped, len(failures), segments, seconds, time.monotonic() - began, failures)


# --- the work ---------------------------------------------------------------------------------------------------------------


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
        return VideoRecord(self.file.id, str(self.file.path), self.duration, self.starts, self.ends, self.embeddings)


def embed_files(
    files: Iterable[VideoFile], encoder: SegmentEncoder, rule: SegmentRule, batch_size: int
) -> Iterator[tuple[VideoFile, Event]]:
    """Decodes and encodes files one after the other; batches cross their borders. Yields (file, event) as things happen.

    Every file ends in exactly one VideoRecord or Failure. Memory: one batch of frames, and the vectors of unfinished videos.
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
            starts, ends = rule.segments(info.duration)
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
            yield file, _failure(file, error)
            continue
        for place in range(len(starts)):
            try:
                frames = next(decoded)
            except Exception as error:
                batch[:] = [entry for entry in batch if entry[0] is not video]
                yield file, _failure(file, error)
                break
            batch.append((video, place, frames))
            if len(batch) == batch_size:
                yield from encode(file, (place + 1) / len(starts))
    if batch and file is not None:
        yield from encode(file, 1.0)


def _failure(file: VideoFile, error: Exception) -> Failure:
    """Whatever decoding one file raises is that file's failure, with its reason; what was not foreseen names its type."""
    reason = str(error) if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
    return Failure(file.id, str(file.path), reason)


# --- a worker ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What every worker is told once."""

    encoder: str
    options: dict[str, Any]
    rule: SegmentRule
    batch_size: int


_NEXT = "next"  # worker -> minder: decoded what I had, give me a file; the answer is a file, or None for the end


def _work(descriptor: int) -> None:
    """A worker's life. Its messages: `_NEXT`, (file, event), or a sentence that says why it cannot go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the minder decides
    connection = Connection(descriptor)
    try:
        job: _Job = connection.recv()

        def files() -> Iterator[VideoFile]:
            while True:
                connection.send(_NEXT)
                file = connection.recv()
                if file is None:
                    return
                yield file

        try:
            encoder = load_encoder(job.encoder, **job.options)
            for message in embed_files(files(), encoder, job.rule, job.batch_size):
                connection.send(message)
        except (EOFError, OSError):
            raise
        except Exception as error:
            connection.send(f"The encoder {job.encoder!r} failed: {type(error).__name__}: {error}")
    except (EOFError, OSError):
        pass  # the minder is gone, so no one waits for the rest


class _Worker:
    """The minder's side of one worker."""

    def __init__(self, job: _Job) -> None:
        ours, theirs = socket.socketpair()
        # A fresh interpreter instead of multiprocessing's: it does not run the user's script again, so scripts need no main guard.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment |= dict.fromkeys(_THREAD_SETTINGS, "1")  # so that results do not depend on the number of workers
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from lvmae.embedding.engine import _work; _work({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send(job)
        self.held: list[VideoFile] = []  # handed out and not ended; the last one is being decoded
        self.heard = time.monotonic()
        self.finishing = False

    def end(self) -> int:
        self.process.kill()
        self.connection.close()
        return self.process.wait()


def _run(
    files: list[VideoFile], job: _Job, workers: int, timeout: float, stop: threading.Event
) -> Iterator[tuple[VideoFile, Event]]:
    """Minds the workers: yields each file's events; unless stopped, every file ends in exactly one VideoRecord or Failure."""
    queue = deque(sorted(files, key=_size, reverse=True))  # long ones first, so that no core is idle at the end
    deaths: Counter[str] = Counter()
    pool: list[_Worker] = []
    try:
        while (queue or pool) and not stop.is_set():
            while len(pool) < workers and len(queue) > sum(not w.held and not w.finishing for w in pool):
                pool.append(_Worker(job))
            ready = wait([w.connection for w in pool], timeout=min(timeout, 1.0))
            for worker in [w for w in pool if w.connection in ready]:
                worker.heard = time.monotonic()
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    pool.remove(worker)
                    yield from _mourn(worker, queue, deaths)
                    continue
                if message == _NEXT:
                    file = queue.popleft() if queue else None
                    worker.finishing = file is None
                    worker.held += [file] if file else []
                    worker.connection.send(file)
                elif isinstance(message, str):
                    raise WorkError(message)
                else:
                    file, event = message
                    if not isinstance(event, Advanced):
                        worker.held.remove(file)
                    yield file, event
            for worker in [w for w in pool if w.held and time.monotonic() - w.heard > timeout]:
                pool.remove(worker)
                worker.end()
                stuck = worker.held.pop()
                queue.extendleft(worker.held)
                yield (
                    stuck,
                    Failure(stuck.id, str(stuck.path), f"decoding made no progress for {timeout:.0f} s and was ended"),
                )
    finally:
        for worker in pool:
            worker.end()


def _mourn(worker: _Worker, queue: deque[VideoFile], deaths: Counter[str]) -> Iterator[tuple[VideoFile, Event]]:
    """A worker has gone: at its end, which is well, or before. The file in its hands is suspect, others it held are tried again."""
    if worker.finishing and not worker.held:
        worker.end()
        return
    try:
        code = worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        code = worker.end()
    worker.connection.close()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if not worker.held:
        raise WorkError(f"A worker process ended before it could start ({how}); is there enough memory for it?")
    suspect = worker.held.pop()
    deaths[suspect.id] += 1
    queue.extendleft(worker.held)
    if deaths[suspect.id] < _ATTEMPTS:
        queue.appendleft(suspect)
    else:
        yield (
            suspect,
            Failure(
                suspect.id, str(suspect.path), f"its process was ended {_ATTEMPTS} times while decoding it ({how})"
            ),
        )


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Sets the event at the first Ctrl-C, so that it never falls into a commit; the second one interrupts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(file: VideoFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError:
        return 0


@dataclass
class _Meter:
    """The progress line: segments/s, speed over real time, and time left by the share of bytes done."""

    files: list[VideoFile]
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = {file.id: max(_size(file), 1) for file in self.files}
        self.shares: dict[str, float] = {}
        self.ended = self.failed = self.segments = 0
        self.began = self.committed = time.monotonic()
        self.bar = progress(desc="embed", unit="segments", total=None)

    def saw(self, file: VideoFile, event: Event, *, seconds_of_video: float) -> None:
        if isinstance(event, Advanced):
            self.segments += event.segments
            self.shares[file.id] = max(self.shares.get(file.id, 0.0), event.fraction)
            done = sum(self.sizes[key] * share for key, share in self.shares.items())
            self.bar.total = round(self.segments * sum(self.sizes.values()) / done)
            self.bar.update(event.segments)
            return
        self.shares[file.id] = 1.0
        self.ended += 1
        if isinstance(event, Failure):
            self.failed += 1
        else:
            seconds_of_video += event.duration
        speed = seconds_of_video / max(time.monotonic() - self.began, 1e-9)
        self.bar.set_postfix_str(
            f"{self.ended}/{len(self.files)} videos, {speed:.0f}x real time"
            + (f", {self.failed} failed" if self.failed else "")
        )

    def commit_due(self) -> bool:
        due = time.monotonic() - self.committed > _COMMIT_SECONDS
        if due:
            self.committed = time.monotonic()
        return due

    def close(self) -> None:
        if self.ended == len(self.files):
            self.bar.total = self.segments
        self.bar.close()
