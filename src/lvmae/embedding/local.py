"""The local engine: worker processes on one machine, and the one who minds them.

A worker is one process with one thread of arithmetic, which decodes a file and encodes it in batches that cross the borders of
videos. On CPU this beats one encoding process fed by decoders: frames never travel between processes, and both cores are always
busy (two threads in one process make the offline encoder 1.4 times as fast, two processes twice).

What can go wrong and what becomes of it: a worker that dies takes its file along once, and twice makes it a failure; one that is
silent for `timeout` seconds is ended and its file a failure; workers whose minder is gone end by themselves.
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
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Self

from lvmae.embedding.encoders import load_encoder
from lvmae.embedding.sources import VideoFile
from lvmae.embedding.work import Advanced, Event, Job, embed_files
from lvmae.errors import WorkError
from lvmae.store import Failure

_ATTEMPTS = 2  # a file in hand when its worker died is tried this often
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


_NEXT = "next"  # worker -> minder: decoded what I had, a file please; the answer is one, or None for the end of a round


def _work(descriptor: int) -> None:
    """A worker's life. Its messages: `_NEXT`, (file, event), or a sentence that says why it cannot go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the minder decides
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
        except (EOFError, OSError):
            raise
        except Exception as error:
            connection.send(f"The encoder {job.encoder!r} failed: {type(error).__name__}: {error}")
    except (EOFError, OSError):
        pass  # the minder is gone, so no one waits for the rest


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
            [sys.executable, "-c", f"from lvmae.embedding.local import _work; _work({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
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

    def run(self, files: list[VideoFile], stop: threading.Event) -> Iterator[tuple[VideoFile, Event]]:
        """Yields each file's events; unless stopped, every file ends in exactly one VideoRecord or Failure."""
        # Long ones first, so that no core is idle at the end.
        queue = deque(sorted(files, key=VideoFile.size, reverse=True))
        deaths: Counter[str] = Counter()
        pool = self._pool
        while (queue or any(w.held for w in pool)) and not stop.is_set():
            for worker in [w for w in pool if w.asking and queue]:
                worker.answer(queue.popleft())
            while len(pool) < self._size and len(queue) > sum(not w.held for w in pool):
                pool.append(_Worker(self._job))
            ready = wait([w.connection for w in pool], timeout=min(self._timeout, 1.0))
            for worker in [w for w in pool if w.connection in ready]:
                worker.heard = time.monotonic()
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    pool.remove(worker)
                    yield from _mourn(worker, queue, deaths)
                    continue
                if message == _NEXT:
                    worker.started = worker.asking = True
                    if queue or worker.held:
                        worker.answer(queue.popleft() if queue else None)
                elif isinstance(message, str):
                    raise WorkError(message)
                else:
                    file, event = message
                    if not isinstance(event, Advanced):
                        worker.held.remove(file)
                    yield file, event
            for worker in [w for w in pool if w.held and time.monotonic() - w.heard > self._timeout]:
                pool.remove(worker)
                worker.end()
                stuck = worker.held.pop()
                queue.extendleft(worker.held)
                yield (
                    stuck,
                    Failure(
                        stuck.id, stuck.source, f"decoding made no progress for {self._timeout:.0f} s and was ended"
                    ),
                )


def run_local(
    files: list[VideoFile], job: Job, *, workers: int | None, timeout: float, stop: threading.Event
) -> Iterator[tuple[VideoFile, Event]]:
    """Yields each file's events; unless stopped, every file ends in exactly one VideoRecord or Failure."""
    with Crew(job, workers=min(workers or _cores(), max(len(files), 1)), timeout=timeout) as crew:
        yield from crew.run(files, stop)


def _mourn(worker: _Worker, queue: deque[VideoFile], deaths: Counter[str]) -> Iterator[tuple[VideoFile, Event]]:
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
    suspect = worker.held.pop()
    deaths[suspect.id] += 1
    queue.extendleft(worker.held)
    if deaths[suspect.id] < _ATTEMPTS:
        queue.appendleft(suspect)
    else:
        yield (
            suspect,
            Failure(suspect.id, suspect.source, f"its process was ended {_ATTEMPTS} times while decoding it ({how})"),
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
