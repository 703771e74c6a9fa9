"""The local engine: worker processes on one machine, and their supervisor.

A worker is one process with one thread of arithmetic, which decodes a file and encodes it in batches that cross the borders of
videos. On CPU this beats one encoding process fed by decoders: frames never travel between processes, and both cores are always
busy (two threads in one process make the offline encoder 1.4 times as fast, two processes twice). For encoders on accelerators, or
where devices are named, `lvmae.embedding.two_stages` runs decoders and encoders apart.

What can go wrong and what becomes of it: a worker that dies takes its file along once, and twice makes it a failure; one that is
silent for `timeout` seconds is ended and its file a failure; workers whose minder is gone end by themselves. A film that would
keep one worker busy after all others is shared among them in parts of its timeline, and joined here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Self

from lvmae.embedding.ledger import Ledger
from lvmae.embedding.pipeline import Advanced, Event, Job, embed_files, shared_out
from lvmae.embedding.processes import GONE, Process, Starts, connect, cores
from lvmae.embedding.sources import VideoFile
from lvmae.embedding.two_stages import TwoStages
from lvmae.encoders import load_encoder
from lvmae.errors import WorkError

_NEXT = "next"  # worker -> minder: decoded what I had, a file please; the answer is one, or None for the end of a round


def _work(descriptor: int, minder: int) -> None:
    """Runs one worker. Its messages: `_NEXT`, (file, event), or a sentence that says why it cannot continue."""
    connection = connect(descriptor, minder)
    try:
        job: Job = connection.recv()

        def files() -> Iterator[VideoFile]:
            while True:
                connection.send(_NEXT)
                file = connection.recv()
                if file is None:
                    return
                yield file

        try:
            encoder = load_encoder(job.encoder, **job.options)
            while True:  # a None ends a round: what is decoded is encoded, and the worker waits for another
                for message in embed_files(files(), encoder, job):
                    connection.send(message)
        except GONE:
            raise
        except Exception as error:
            connection.send(f"The encoder {job.encoder!r} failed: {type(error).__name__}: {error}")
    except GONE:
        pass  # the minder is gone, so no one waits for the rest


class _Worker(Process):
    """The minder's side of one worker."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"{__name__}:{_work.__name__}")
        self.send(job)
        self.held: list[VideoFile] = []  # handed out and not ended; the last one is being decoded
        self.asking = False  # for a file; nothing was answered yet

    def answer(self, file: VideoFile | None) -> None:
        """Hands out a file, or ends the round."""
        self.asking = False
        self.held += [file] if file else []
        self.heard = time.monotonic()
        self.send(file)


class Crew:
    """Workers that stay: each loads the encoder once, for however many calls of `run`. A context manager; leaving it ends them."""

    def __init__(self, job: Job, *, workers: int, timeout: float) -> None:
        self._job, self._size, self._timeout = job, workers, timeout
        self._pool: list[_Worker] = []
        self._starts = Starts("A worker process")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.end()
        self._pool = []

    def run(self, files: list[VideoFile], stop: threading.Event) -> Iterator[tuple[VideoFile, Event] | None]:
        """Yields each file's events, and None after a second without one.

        Every file ends in exactly one VideoRecord, Failure or Postponed, unless `stop` is set: then current files are finished and
        no other is started. The finished parts of a shared film are lost then, if not all of its parts were started.
        """
        work = Ledger(shared_out(files, self._size, self._job.rule))
        pool = self._pool
        while work.queue or any(w.held for w in pool):
            if stop.is_set():
                work.queue.clear()
            for worker in [w for w in pool if w.asking and work.queue]:
                worker.answer(work.queue.popleft())
            while len(pool) < self._size and len(work.queue) > sum(not w.held for w in pool):
                pool.append(_Worker(self._job))
            ready = wait([w.connection for w in pool], timeout=min(self._timeout, 1.0))
            if not ready:
                yield None
            for worker in [w for w in pool if w.connection in ready]:
                worker.heard = time.monotonic()
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    pool.remove(worker)
                    how = worker.mourn()
                    if worker.held:
                        yield from work.died(worker.held, how)
                    elif not worker.started:
                        self._starts.failed(how)
                    continue
                if message == _NEXT:
                    if not worker.started:
                        self._starts.succeeded()
                    worker.started = worker.asking = True
                    if work.queue or worker.held:
                        worker.answer(work.queue.popleft() if work.queue else None)
                elif isinstance(message, str):
                    raise WorkError(message)
                else:
                    file, event = message
                    if not isinstance(event, Advanced):
                        worker.held.remove(file)
                    yield from work.heard(file, event)
            for worker in [w for w in pool if w.held and time.monotonic() - w.heard > self._timeout]:
                pool.remove(worker)
                worker.end()
                yield from work.silent(worker.held, self._timeout)


def run_local(
    files: list[VideoFile], job: Job, *, workers: int | None, timeout: float, stop: threading.Event
) -> Iterator[tuple[VideoFile, Event] | None]:
    """Yields each file's events; unless stopped, every file ends in exactly one VideoRecord, Failure or Postponed."""
    kind = TwoStages if job.devices else Crew
    crew: Crew | TwoStages = kind(job, workers=workers or cores(), timeout=timeout)
    with crew:
        yield from crew.run(files, stop)
