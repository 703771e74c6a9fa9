"""Decoders feed encoders: any number of decoding processes, one encoding process per device, and their supervisor.

Enters: files and a `Job` with devices. Leaves: the events of `lvmae.embedding.pipeline`. A decoder writes each segment's frames
into a slot of shared memory (`frame_memory`) that it was granted; the minder puts slots of whatever files together to batches; an
encoder takes a batch, has the next one brought to its device meanwhile, and answers with vectors. So there is one copy of the
weights a device, decoders need none, and no frame is pickled. Price: three slots a decoder, three batches an encoder, and a
message of the minder for each segment.

What can go wrong and what becomes of it: a decoder that dies takes its file along once, and twice makes it a failure; what it had
decoded of others is in the slots. Where an encoder dies, its batches are there too: the first is encoded again, each file of it
alone, and a file that ends an encoder alone, having done so before, is a failure. What makes no progress for `timeout` seconds is
ended; a decoder that waits for a slot is not late.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Self

import numpy as np

from lvmae.embedding.frame_memory import FrameMemory
from lvmae.embedding.ledger import Ledger
from lvmae.embedding.pipeline import (
    Advanced,
    Assembly,
    Decoded,
    Ended,
    Event,
    Job,
    Laid,
    Postponed,
    decode_files,
    shared_out,
)
from lvmae.embedding.processes import GONE, Process, Starts, connect, cores
from lvmae.embedding.sources import VideoFile
from lvmae.encoders import load_encoder
from lvmae.errors import WorkError
from lvmae.store import Failure, VideoRecord

_NEXT = "next"  # a process -> the minder: I am ready; of a decoder: a file please
_GRANTED = 3  # slots that a decoder may fill ahead
_BATCHES = 2  # that an encoder holds: one is encoded while the next is brought
_LINGER_SECONDS = 2.0  # an idle encoder does not wait longer for a batch to fill up
_ENCODER_THREADS = 4  # on a device other than the CPU; on it one, so that results do not depend on the machine


@dataclass(frozen=True)
class Filled:
    """A decoder has filled a slot; since its last message it worked and waited for slots so long, in seconds."""

    place: int
    slot: int
    worked: float
    waited: float


@dataclass(frozen=True)
class _Encoded:
    """The vectors (B, dim) of an encoder's oldest batch; it encoded and waited for it so long, in seconds."""

    vectors: np.ndarray
    busy: float
    idle: float


def ready(message: Any) -> bool:
    """Whether a process says that it is ready, a decoder each time that it wants a file."""
    return isinstance(message, str) and message == _NEXT


# --- the processes ----------------------------------------------------------------------------------------------------------


def _decode(descriptor: int, minder: int, frames: int) -> None:
    """A decoder's life. Hears: a file when it asked for one, numbers of slots at any time."""
    connection = connect(descriptor, minder)
    free: deque[int] = deque()
    with contextlib.suppress(*GONE):
        job, slots = connection.recv()
        memory = FrameMemory(slots, job.frames.shape, frames)

        def files() -> Iterator[VideoFile]:
            while True:
                connection.send(_NEXT)
                while isinstance(said := connection.recv(), int):
                    free.append(said)
                yield said

        since = time.monotonic()
        for _, said in decode_files(files(), job.frames, job):
            if not isinstance(said, Decoded):
                connection.send(said)
                since = time.monotonic()
                continue
            decoded = time.monotonic()
            while not free:
                free.append(connection.recv())
            got = time.monotonic()
            slot = free.popleft()
            memory[slot][:] = said.frames
            now = time.monotonic()
            connection.send(Filled(said.place, slot, decoded - since + now - got, got - decoded))
            since = now


def _encode(descriptor: int, minder: int, frames: int) -> None:
    """An encoder's life. Hears: lists of slots, each a batch."""
    connection = connect(descriptor, minder)
    sending = threading.Lock()
    staged: queue.Queue[Any] = queue.Queue(1)

    def tell(message: Any) -> None:
        with sending, contextlib.suppress(OSError):
            connection.send(message)

    def fail(error: Exception) -> None:
        tell(f"The encoder {job.encoder!r} failed: {type(error).__name__}: {error}")

    def work() -> None:
        free_since = time.monotonic()
        while True:
            batch = staged.get()
            began = time.monotonic()
            try:
                vectors = encode(batch)
            except Exception as error:
                fail(error)
                return
            now = time.monotonic()
            tell(_Encoded(vectors, now - began, began - free_since))
            free_since = now

    with contextlib.suppress(*GONE):
        job, slots = connection.recv()
        memory = FrameMemory(slots, job.frames.shape, frames)
        try:
            encoder = load_encoder(job.encoder, **job.options)
            # An encoder on a device brings a batch there by `stage`, while it encodes the one before by `encode_staged`.
            stage = getattr(encoder, "stage", np.stack)
            encode = getattr(encoder, "encode_staged", encoder.encode_video)
            if warm_up := getattr(encoder, "warm_up", None):
                warm_up(job.batch_size)
            connection.send(_NEXT)
            threading.Thread(target=work, daemon=True).start()
            while True:
                staged.put(stage([memory[slot] for slot in connection.recv()]))
        except GONE:
            raise
        except Exception as error:
            fail(error)
            _until_gone(connection)


def _until_gone(connection: Connection) -> None:
    while True:
        connection.recv()


# --- the minder's side ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Take:
    """One attempt at a file, from the hands of a decoder to its record."""

    file: VideoFile
    assembly: Assembly = field(init=False)
    alive: bool = True

    def __post_init__(self) -> None:
        self.assembly = Assembly(self.file)


class _Segment(NamedTuple):
    take: _Take
    place: int
    slot: int
    since: float


class DecodingProcess(Process):
    """The minder's side of a decoder."""

    def __init__(self, job: Job, memory: FrameMemory) -> None:
        super().__init__(f"{__name__}:{_decode.__name__}", descriptors=[memory.descriptor])
        self.send((job, memory.slots))
        self.take: _Take | None = None
        self.granted: set[int] = set()
        self.asking = False

    def answer(self, file: VideoFile) -> _Take:
        self.asking, self.heard = False, time.monotonic()
        self.take = _Take(file)
        self.send(file)
        return self.take

    def grant(self, slot: int) -> None:
        if not self.granted:
            self.heard = time.monotonic()  # it may have waited for one
        self.granted.add(slot)
        self.send(slot)

    @staticmethod
    def ends(message: Any) -> bool:
        """Whether a message is the last one of a file."""
        return isinstance(message, Ended | Failure | Postponed)

    def late(self, timeout: float) -> bool:
        return bool(self.take and self.granted) and time.monotonic() - self.heard > timeout


class EncodingProcess(Process):
    """The minder's side of an encoder."""

    def __init__(self, job: Job, memory: FrameMemory, device: str) -> None:
        threads = 1 if device in ("", "cpu") else min(_ENCODER_THREADS, cores())
        super().__init__(f"{__name__}:{_encode.__name__}", descriptors=[memory.descriptor], threads=threads)
        options = job.options | ({"device": device} if device else {})
        self.send((replace(job, options=options), memory.slots))
        self.device = device
        self.batches: deque[list[_Segment]] = deque()

    def take(self, batch: list[_Segment]) -> None:
        if not self.batches:
            self.heard = time.monotonic()
        self.batches.append(batch)
        self.send([segment.slot for segment in batch])

    def late(self, timeout: float) -> bool:
        return bool(self.batches) and time.monotonic() - self.heard > timeout


class TwoStages:
    """Decoders and encoders that stay, for however many calls of `run`. A context manager; leaving it ends them."""

    def __init__(self, job: Job, *, workers: int, timeout: float) -> None:
        assert job.frames is not None
        self._job, self._timeout = job, timeout
        self.workers = workers
        """How many decoders are at work; it may be lowered, and raised again to what it was."""
        self._memory = FrameMemory(
            _GRANTED * workers + (_BATCHES + 1) * job.batch_size * len(job.devices), job.frames.shape
        )
        self._free = deque(range(self._memory.slots))
        self._decoders: list[DecodingProcess] = []
        self._encoders: list[EncodingProcess] = []
        self._decoder_starts, self._encoder_starts = Starts("A decoding process"), Starts("An encoding process")
        self._pending: deque[_Segment] = deque()
        self._open: set[_Take] = set()
        self._suspects: Counter[VideoFile] = Counter()  # files, by how often an encoder died with them in its hands
        self._balance = _Balance()

    @property
    def encoder_seconds(self) -> tuple[float, float]:
        """How long encoders have encoded in all, and waited for batches."""
        return self._balance.total_busy, self._balance.total_idle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._decoders, *self._encoders):
            process.end()
        self._decoders, self._encoders = [], []
        self._memory.close()

    def run(self, files: list[VideoFile], stop: threading.Event) -> Iterator[tuple[VideoFile, Event] | None]:
        """Yields each file's events, and None after a second without one.

        Every file ends in exactly one VideoRecord, Failure or Postponed, unless `stop` is set: then current files are finished and
        no other is started. The finished parts of a shared film are lost then, if not all of its parts were started.
        """
        work = Ledger(shared_out(files, self.workers, self._job.rule))
        while work.queue or self._open:
            if stop.is_set():
                work.queue.clear()
            self._staff(work)
            for decoder in self._decoders[: self.workers]:
                if decoder.asking and work.queue:
                    self._open.add(decoder.answer(work.queue.popleft()))
            self._grant()
            self._hand_out(last=not work.queue)
            processes: list[DecodingProcess | EncodingProcess] = [*self._decoders, *self._encoders]
            speaking = wait([p.connection for p in processes], timeout=min(self._timeout, 0.5))
            if not speaking:
                yield None
            for process in [p for p in processes if p.connection in speaking]:
                process.heard = time.monotonic()
                try:
                    message = process.connection.recv()
                except (EOFError, OSError):
                    yield from self._died(process, work)
                    continue
                if isinstance(message, str) and not ready(message):
                    raise WorkError(message)
                if isinstance(process, DecodingProcess):
                    yield from self._heard_decoder(process, message, work)
                else:
                    yield from self._heard_encoder(process, message, work)
            for late in [p for p in processes if p.late(self._timeout) and p in (*self._decoders, *self._encoders)]:
                late.end()
                yield from self._silent(late, work)

    # --- handing out --------------------------------------------------------------------------------------------------------

    def _staff(self, work: Ledger) -> None:
        """Starts the processes that are lacking."""
        missing = Counter(self._job.devices) - Counter(encoder.device for encoder in self._encoders)
        self._encoders += [EncodingProcess(self._job, self._memory, device) for device in missing.elements()]
        while len(self._decoders) < self.workers and len(work.queue) > sum(d.take is None for d in self._decoders):
            self._decoders.append(DecodingProcess(self._job, self._memory))

    def _grant(self) -> None:
        """Gives free slots to decoders, one each in turn, to those first that have fewest."""
        for most in range(1, _GRANTED + 1):
            for decoder in self._decoders:
                if self._free and decoder.take and len(decoder.granted) < most:
                    decoder.grant(self._free.popleft())

    def _hand_out(self, *, last: bool) -> None:
        """Gives batches to encoders. A batch that is not full goes to an idle one, if nothing is to come or it waited for long."""
        for segment in [s for s in self._pending if not s.take.alive]:
            self._pending.remove(segment)
            self._free.append(segment.slot)
        for held in range(_BATCHES):
            for encoder in self._encoders:
                if encoder.started and len(encoder.batches) == held and self._pending:
                    batch = self._batch(partly=held == 0 and self._time_for_less(last))
                    if batch:
                        encoder.take(batch)

    def _time_for_less(self, last: bool) -> bool:
        decoding = any(decoder.take is not None for decoder in self._decoders)
        return (last and not decoding) or time.monotonic() - self._pending[0].since > _LINGER_SECONDS

    def _batch(self, *, partly: bool) -> list[_Segment]:
        """The next segments to encode; none if there are too few. A file that may have ended an encoder comes alone."""
        suspect = next((s.take for s in self._pending if self._suspects[s.take.file]), None)
        chosen = [s for s in self._pending if suspect in (None, s.take)][: self._job.batch_size]
        if len(chosen) < self._job.batch_size and not partly:
            return []
        taken = set(chosen)
        self._pending = deque(s for s in self._pending if s not in taken)
        return chosen

    # --- hearing ------------------------------------------------------------------------------------------------------------

    def _heard_decoder(self, decoder: DecodingProcess, message: Any, work: Ledger) -> Iterator[tuple[VideoFile, Event]]:
        take = decoder.take
        if ready(message):
            if not decoder.started:
                self._decoder_starts.succeeded()
            decoder.started = decoder.asking = True
            return
        assert take is not None
        if isinstance(message, Filled):
            decoder.granted.discard(message.slot)
            self._balance.decoded(message.worked, message.waited)
            self._pending.append(_Segment(take, message.place, message.slot, time.monotonic()))
            return
        if decoder.ends(message):
            decoder.take = None
        if not take.alive:
            return
        if isinstance(message, Laid | Ended):
            if record := take.assembly.decoding(message):
                yield from self._finished(take, record, work)
        elif isinstance(message, Advanced):
            yield from work.heard(take.file, message)
        else:
            yield from self._finished(take, message, work)

    def _heard_encoder(self, encoder: EncodingProcess, message: Any, work: Ledger) -> Iterator[tuple[VideoFile, Event]]:
        if ready(message):
            encoder.started = True
            self._encoder_starts.succeeded()
            return
        assert isinstance(message, _Encoded)
        self._balance.encoded(message.busy, message.idle)
        batch = encoder.batches.popleft()
        records: list[tuple[_Take, VideoRecord]] = []
        counted: Counter[_Take] = Counter()
        for segment, vector in zip(batch, message.vectors, strict=True):
            self._free.append(segment.slot)
            if segment.take.alive:
                counted[segment.take] += 1
                if record := segment.take.assembly.encoded(segment.place, vector):
                    records.append((segment.take, record))
        note = self._balance.note(len(self._decoders))
        for take, number in counted.items():
            yield from work.heard(take.file, Advanced(number, take.assembly.fraction, note))
        for take, record in records:
            yield from self._finished(take, record, work)

    def _finished(
        self, take: _Take, event: VideoRecord | Failure | Postponed, work: Ledger
    ) -> Iterator[tuple[VideoFile, Event]]:
        self._drop(take)
        yield from work.heard(take.file, event)

    def _drop(self, take: _Take) -> None:
        take.alive = False
        self._open.discard(take)

    # --- what ends before its time ------------------------------------------------------------------------------------------

    def _died(self, process: DecodingProcess | EncodingProcess, work: Ledger) -> Iterator[tuple[VideoFile, Event]]:
        how = process.mourn()
        if isinstance(process, DecodingProcess):
            take = self._lose(process)
            if take is not None:
                yield from work.died([take.file], how)
            elif not process.started:
                self._decoder_starts.failed(how)
            return
        self._encoders.remove(process)
        if not process.started:
            self._encoder_starts.failed(how)
        takes = self._suspected(process)
        for take in takes:
            self._suspects[take.file] += 1
            if len(takes) == 1 and self._suspects[take.file] > 1:
                self._drop(take)
                yield from work.blamed(take.file, f"its process was ended 2 times while encoding it ({how})")
        self._take_back(process)

    def _silent(self, process: DecodingProcess | EncodingProcess, work: Ledger) -> Iterator[tuple[VideoFile, Event]]:
        if isinstance(process, DecodingProcess):
            take = self._lose(process)
            if take is not None:
                yield from work.silent([take.file], self._timeout)
            return
        self._encoders.remove(process)
        takes = self._suspected(process)
        for take in takes:
            self._suspects[take.file] += 1
            if len(takes) == 1:
                self._drop(take)
                reason = f"encoding made no progress for {self._timeout:g} s and was ended"
                yield from work.blamed(take.file, reason)
        self._take_back(process)

    def _lose(self, decoder: DecodingProcess) -> _Take | None:
        """Takes back what a decoder had, now that it is gone: its slots, and its file if that still matters."""
        self._decoders.remove(decoder)
        self._free.extend(decoder.granted)
        take = decoder.take
        if take is None or not take.alive:
            return None
        self._drop(take)
        return take

    def _suspected(self, encoder: EncodingProcess) -> list[_Take]:
        """Those of the batch that an encoder was at when it ended."""
        return list({s.take: None for s in encoder.batches[0] if s.take.alive}) if encoder.batches else []

    def _take_back(self, encoder: EncodingProcess) -> None:
        """What an encoder that is gone was to encode is to be encoded again, first of all."""
        for batch in reversed(encoder.batches):
            self._pending.extendleft(reversed(batch))
        encoder.batches.clear()


class _Balance:
    """Which stage limits, from what both have said lately."""

    def __init__(self) -> None:
        self._worked = self._waited = self._busy = self._idle = 0.0
        self.total_busy = self.total_idle = 0.0

    def decoded(self, worked: float, waited: float) -> None:
        self._worked, self._waited = 0.99 * self._worked + worked, 0.99 * self._waited + waited

    def encoded(self, busy: float, idle: float) -> None:
        self._busy, self._idle = 0.9 * self._busy + busy, 0.9 * self._idle + idle
        self.total_busy, self.total_idle = self.total_busy + busy, self.total_idle + idle

    def note(self, decoders: int) -> str:
        """In words, with the number of decoders whose work would fill all of the encoders' time."""
        working = self._worked / max(self._worked + self._waited, 1e-9)
        encoding = self._busy / max(self._busy + self._idle, 1e-9)
        enough = max(1, math.ceil(decoders * working / max(encoding, 1e-3) - 0.05))
        if enough > decoders:
            return f"decoding limits, {enough} decoders would keep the encoder busy"
        return f"encoding limits, {enough} decoders keep the encoder busy"
