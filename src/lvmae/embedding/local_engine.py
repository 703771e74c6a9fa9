"""The local engine: worker processes on one machine, and the one who minds them.

A worker is one process with one thread of arithmetic, which decodes a file and encodes it in batches that cross the borders of
videos. On CPU this beats one encoding process fed by decoders: frames never travel between processes, and both cores are always
busy (two threads in one process make the offline encoder 1.4 times as fast, two processes twice).

What can go wrong and what becomes of it: a worker that dies takes its file along once, and twice makes it a failure; one that is
silent for `timeout` seconds is ended and its file a failure; workers whose minder is gone end by themselves. A film that would
keep one worker busy after all others is shared among them in parts of its timeline, and joined here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from lvmae.embedding.pipeline import Advanced, Event, Job, embed_files, joined, shared_out
from lvmae.embedding.sources import VideoFile
from lvmae.encoders import load_encoder
from lvmae.errors import WorkError
from lvmae.files.identity import stat_of
from lvmae.store import Failure, VideoRecord

_ATTEMPTS = 2  # a file in hand when its worker died is tried this often
_ORPHAN_SECONDS = 0.5
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


_GONE = (EOFError, BrokenPipeError, ConnectionResetError)  # the other end of a connection
_NEXT = "next"  # worker -> minder: decoded what I had, a file please; the answer is one, or None for the end of a round


def _work(descriptor: int, minder: int) -> None:
    """A worker's life. Its messages: `_NEXT`, (file, event), or a sentence that says why it cannot go on."""
    threading.Thread(target=_end_with, args=(minder,), daemon=True).start()
    connection = Connection(descriptor)
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
        except _GONE:
            raise
        except Exception as error:
            connection.send(f"The encoder {job.encoder!r} failed: {type(error).__name__}: {error}")
    except _GONE:
        pass  # the minder is gone, so no one waits for the rest


def _end_with(minder: int) -> None:
    """Ends this process when its minder has gone, whatever it is at: it may hang in a file and never hear that no one listens."""
    while os.getppid() == minder:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


class _Worker:
    """The minder's side of one worker."""

    def __init__(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        # A fresh interpreter instead of multiprocessing's: it does not run the user's script again, so scripts need no main guard.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment |= dict.fromkeys(_THREAD_SETTINGS, "1")  # so that results do not depend on the number of workers
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from lvmae.embedding.local_engine import _work; _work({theirs.fileno()}, {os.getpid()})",
            ],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is for the minder, who decides
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send(job)
        self.held: list[VideoFile] = []  # handed out and not ended; the last one is being decoded
        self.heard = time.monotonic()
        self.started = False  # has asked for a file, so its encoder is loaded
        self.asking = False  # for a file; nothing was answered yet

    def answer(self, file: VideoFile | None) -> None:
        """Hands out a file, or ends the round."""
        self.asking = False
        self.held += [file] if file else []
        self.heard = time.monotonic()
        with contextlib.suppress(OSError):  # it has died; that is noticed when it is heard next
            self.connection.send(file)

    def end(self) -> int:
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Crew:
    """Workers that stay: each loads the encoder once, for however many calls of `run`. A context manager; leaving it ends them."""

    def __init__(self, job: Job, *, workers: int, timeout: float) -> None:
        self._job, self._size, self._timeout = job, workers, timeout
        self._pool: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.end()
        self._pool = []

    def run(self, files: list[VideoFile], stop: threading.Event) -> Iterator[tuple[VideoFile, Event] | None]:
        """Yields each file's events, and None after a second without one.

        Every file ends in exactly one VideoRecord or Failure, unless `stop` is set: then what is in hand is finished and nothing
        else is taken up. The parts of a film that is shared are in vain then, if some are not in hand.
        """
        work = _Ledger(shared_out(files, self._size, self._job.rule))
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
                    yield from work.mourn(worker)
                    continue
                if message == _NEXT:
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
                yield from work.stuck(worker, self._timeout)


class _Ledger:
    """What is still to be handed out, what became of workers that went, and the parts of films that several workers share."""

    def __init__(self, files: list[VideoFile]) -> None:
        self.queue = deque(files)
        self._deaths: Counter[VideoFile] = Counter()
        self._parts: dict[
            str, dict[int, VideoRecord]
        ] = {}  # of films that are shared, by id; those given up are not here
        self._fractions: dict[str, dict[int, float]] = {}
        for file in files:
            if file.parts > 1:
                self._parts[file.id], self._fractions[file.id] = {}, {}

    def heard(self, file: VideoFile, event: Event) -> Iterator[tuple[VideoFile, Event]]:
        """What a worker said of a file or a part, as events of whole files."""
        if file.parts == 1:
            yield file, event
            return
        film, parts = replace(file, part=0, parts=1), self._parts.get(file.id)
        if parts is None:
            return  # given up as a shared film while this part was in hand
        if isinstance(event, Advanced):
            fractions = self._fractions[file.id]
            fractions[file.part] = event.fraction
            yield film, Advanced(event.segments, sum(fractions.values()) / file.parts)
        elif isinstance(event, VideoRecord):
            parts[file.part] = event
            if len(parts) == file.parts:
                yield film, joined([parts[part] for part in range(file.parts)])
                del self._parts[file.id]
        else:  # one worker does it all over, so that what becomes of a damaged film does not depend on how it was shared
            self._give_up(file.id)
            self.queue.appendleft(film)

    def mourn(self, worker: _Worker) -> Iterator[tuple[VideoFile, Event]]:
        """A worker has gone. The file in its hands is suspect, others it held are tried again."""
        try:
            code = worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = worker.end()
        worker.connection.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if not worker.held:
            if worker.started:
                return
            raise WorkError(f"A worker process ended before it could start ({how}); is there enough memory for it?")
        suspect = self._take_back(worker)
        self._deaths[suspect] += 1
        if self._deaths[suspect] < _ATTEMPTS:
            self.queue.appendleft(suspect)
        else:
            yield from self._fail(suspect, f"its process was ended {_ATTEMPTS} times while decoding it ({how})")

    def stuck(self, worker: _Worker, timeout: float) -> Iterator[tuple[VideoFile, Event]]:
        """A worker was ended because nothing was heard of it."""
        yield from self._fail(self._take_back(worker), f"decoding made no progress for {timeout:g} s and was ended")

    def _take_back(self, worker: _Worker) -> VideoFile:
        """The file that was being decoded; what the worker held beside it is to be done again."""
        suspect = worker.held.pop()
        self.queue.extendleft(file for file in worker.held if file.parts == 1 or file.id in self._parts)
        return suspect

    def _fail(self, file: VideoFile, reason: str) -> Iterator[tuple[VideoFile, Event]]:
        if file.parts > 1 and file.id not in self._parts:
            return
        self._give_up(file.id)
        yield replace(file, part=0, parts=1), Failure(file.id, file.source, reason, identity=stat_of(file.path))

    def _give_up(self, film: str) -> None:
        """No more is done in parts on a shared film; what there is of it is forgotten."""
        if self._parts.pop(film, None) is not None:
            self.queue = deque(file for file in self.queue if file.id != film)


def run_local(
    files: list[VideoFile], job: Job, *, workers: int | None, timeout: float, stop: threading.Event
) -> Iterator[tuple[VideoFile, Event]]:
    """Yields each file's events; unless stopped, every file ends in exactly one VideoRecord or Failure."""
    with Crew(job, workers=workers or _cores(), timeout=timeout) as crew:
        yield from (happened for happened in crew.run(files, stop) if happened is not None)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
