"""The two stages on a cluster: actors that decode, on any node with CPUs, and actors that encode, where the accelerators are.

Each actor minds one process of `lvmae.embedding.two_stages`, so a decoder that crashes or hangs, or an encoder that does, is
dealt with on its node as on one machine. Messages carry up to a batch of segments with their frames from the one to the other
through Ray's object store, and what was said of files besides; Ray Data holds decoders back where encoders are slower. What a
lost node makes Ray do again comes twice: vectors of a segment are the same each time, and the driver's `Assembly` takes them as
often as they come.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from lvmae.embedding.frame_memory import FrameMemory
from lvmae.embedding.ledger import Ledger
from lvmae.embedding.pipeline import Advanced, Decoded, Decoding, Job
from lvmae.embedding.processes import Starts
from lvmae.embedding.sources import VideoFile
from lvmae.embedding.two_stages import DecodingProcess, EncodingProcess, Filled, ready
from lvmae.errors import WorkError
from lvmae.store import Failure

_GRANTED = 3  # slots that a decoder may fill ahead
_DIED = "its process was ended 2 times while encoding it"
_SPARE_SECONDS = 5.0  # a message that is not full is sent after this, so that the driver hears of slow files


@dataclass(frozen=True)
class Vectors:
    """Vectors (n, dim) of segments of one file, by their places."""

    places: tuple[int, ...]
    values: np.ndarray


@dataclass
class Message:
    """From a decoding actor to an encoding one: segments, whose and which, with frames (n, T, S, S, 3); and what else was said."""

    said: list[tuple[str, Decoding]]
    segments: list[tuple[str, int]]
    frames: np.ndarray | None
    error: str = ""


class DecodingActor:
    """On a node with CPUs: takes a task of files, gives messages."""

    def __init__(self, job: Job, timeout: float, path: list[str]) -> None:
        sys.path += [entry for entry in path if entry not in sys.path]
        self._job, self._decoder = job, Decoder(job, timeout)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        said: list[tuple[str, Decoding]] = []
        segments: list[tuple[str, int]] = []
        frames: list[np.ndarray] = []
        sent = time.monotonic()

        def message(error: str = "") -> dict[str, Any]:
            nonlocal sent
            sent = time.monotonic()
            full = Message(said.copy(), segments.copy(), np.stack(frames) if frames else None, error)
            for sent_on in (said, segments, frames):
                sent_on.clear()
            return boxed(full)

        try:
            for happened in self._decoder.run(list(batch["files"][0])):
                if happened is not None:
                    file, event = happened
                    if isinstance(event, Decoded):
                        segments.append((file.id, event.place))
                        frames.append(event.frames)
                    elif not isinstance(event, Advanced):
                        said.append((file.id, event))
                if len(frames) == self._job.batch_size or time.monotonic() - sent > _SPARE_SECONDS:
                    yield message()
        except WorkError as error:
            yield message(str(error))
        yield message()


class EncodingActor:
    """Where the accelerator is: takes a message, gives it on with vectors in place of frames."""

    def __init__(self, job: Job, timeout: float, path: list[str]) -> None:
        sys.path += [entry for entry in path if entry not in sys.path]  # for encoders given as module:Class
        self._encoder = Encoder(job, timeout)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        message: Message = batch["message"][0]
        said: list[tuple[str, Any]] = list(message.said)
        try:
            if message.frames is not None:
                said += self._encoder.encode(message.segments, message.frames)
        except WorkError as error:
            return boxed(Message([], [], None, str(error)))
        return boxed(Message(said, [], None, message.error))


def boxed(message: Message) -> dict[str, Any]:
    """A batch of one row for Ray Data."""
    row = np.empty(1, object)
    row[0] = message
    return {"message": row}


class Decoder:
    """One decoding process that stays: what becomes of files, segment by segment; one that dies or hangs costs a file."""

    def __init__(self, job: Job, timeout: float) -> None:
        assert job.frames is not None
        self._job, self._timeout = job, timeout
        self._memory = FrameMemory(_GRANTED, job.frames.shape)
        self._free = deque(range(_GRANTED))
        self._process: DecodingProcess | None = None
        self._starts = Starts("A decoding process")

    def run(self, files: list[VideoFile]) -> Iterator[tuple[VideoFile, Any] | None]:
        """Yields what `decode_files` does, and None after a second without anything. After a crash a file's segments come again."""
        work = Ledger(files)
        while work.queue or (self._process is not None and self._process.take is not None):
            process = self._process = self._process or DecodingProcess(self._job, self._memory)
            if process.asking and work.queue:
                process.answer(work.queue.popleft())
            while self._free and process.take:
                process.grant(self._free.popleft())
            if not wait([process.connection], timeout=min(1.0, self._timeout)):
                yield None
                if process.late(self._timeout):
                    process.end()
                    yield from self._lost(process, work, "")
                continue
            process.heard = time.monotonic()
            try:
                message = process.connection.recv()
            except (EOFError, OSError):
                yield from self._lost(process, work, process.mourn())
                continue
            if ready(message):
                self._starts.succeeded()
                process.started = process.asking = True
                continue
            assert process.take is not None
            file = process.take.file
            if isinstance(message, Filled):
                frames = self._memory[message.slot].copy()
                process.granted.discard(message.slot)
                self._free.append(message.slot)
                yield file, Decoded(message.place, frames)
                continue
            if process.ends(message):
                process.take = None
            yield file, message

    def _lost(self, process: DecodingProcess, work: Ledger, how: str) -> Iterator[tuple[VideoFile, Any]]:
        self._process = None
        self._free.extend(process.granted)
        if process.take is None:
            if not process.started:
                self._starts.failed(how)
        elif how:
            yield from work.died([process.take.file], how)
        else:
            yield from work.silent([process.take.file], self._timeout)


class Encoder:
    """One encoding process that stays. A file that ends it twice, the second time alone, is a failure; so is one that hangs."""

    def __init__(self, job: Job, timeout: float) -> None:
        assert job.frames is not None
        self._job, self._timeout = job, timeout
        self._memory = FrameMemory(job.batch_size, job.frames.shape)
        self._process: EncodingProcess | None = None
        self._starts = Starts("An encoding process")

    def encode(self, segments: list[tuple[str, int]], frames: np.ndarray) -> list[tuple[str, Any]]:
        """(file's id, `Vectors` or a Failure) for the segments (id, place) with frames (n, T, S, S, 3)."""
        vectors, how = self._try(frames)
        said: list[tuple[str, Any]] = []
        for key in dict.fromkeys(key for key, _ in segments):
            rows = [row for row, (owner, _) in enumerate(segments) if owner == key]
            own = None if vectors is None else vectors[rows]
            if own is None and (len(rows) < len(segments) or how.startswith(_DIED)):  # once more, alone
                own, how = self._try(frames[rows])
            if own is None:
                said.append((key, Failure(key, "", how)))
            else:
                said.append((key, Vectors(tuple(segments[row][1] for row in rows), own)))
        return said

    def _try(self, frames: np.ndarray) -> tuple[np.ndarray | None, str]:
        """Vectors, or why there are none. Raises WorkError for an encoder that fails."""
        process = self._ready()
        for slot, segment in enumerate(frames):
            self._memory[slot][:] = segment
        process.send(list(range(len(frames))))
        if not process.connection.poll(self._timeout):
            process.end()
            self._process = None
            return None, f"encoding made no progress for {self._timeout:g} s and was ended"
        try:
            message = process.connection.recv()
        except (EOFError, OSError):
            self._process = None
            return None, f"{_DIED} ({process.mourn()})"
        if isinstance(message, str):
            raise WorkError(message)
        vectors: np.ndarray = message.vectors
        return vectors, ""

    def _ready(self) -> EncodingProcess:
        while self._process is None:
            process = EncodingProcess(self._job, self._memory, "")
            try:
                message = process.connection.recv()
            except (EOFError, OSError):
                self._starts.failed(process.mourn())
                continue
            if not ready(message):
                raise WorkError(message)
            self._starts.succeeded()
            self._process = process
        return self._process
