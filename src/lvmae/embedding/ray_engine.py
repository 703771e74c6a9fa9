"""The Ray engine: actors on a cluster, which supervise processes as the local engine does; only the driver writes.

Enters: files, a `Job`, and where the cluster is. Leaves: the same events as the local engine gives, so the store is the same to
the bit. Without accelerators an actor minds one worker process (`lvmae.embedding.local_engine.Crew`), which loads the encoder
once, on one thread of arithmetic. With GPUs, or another resource that stands for an accelerator, there are two stages
(`lvmae.embedding.ray_stages`): actors that decode on any node, and actors that encode where the accelerators are; frames travel
between them through Ray Data, which holds decoders back where encoders are slower. Ray Data hands out tasks of a few files each, to
what nodes there are, runs the tasks of a lost node again on others, and brings the events back.

What is made again need not come in the same order, so Ray's word for what was delivered is not taken: the driver knows which files
have ended, drops what comes of them later, and runs another round for those that Ray says are done and are not. So nothing is lost
and nothing is there twice. Price: what was in flight on a lost node is done again: for each actor its current task, of at most 16
files, and one whose result was not fetched yet.

Every node needs this package, the encoder's weights, and the videos at the same paths or by URL.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from lvmae.embedding.local_engine import Crew
from lvmae.embedding.pipeline import Advanced, Assembly, Ended, Event, Job, Laid, Postponed
from lvmae.embedding.ray_stages import DecodingActor, EncodingActor, Message, Vectors
from lvmae.embedding.sources import VideoFile
from lvmae.errors import InputError, WorkError
from lvmae.files.urls import is_url
from lvmae.store import Failure, VideoRecord

_FILES_A_TASK = 16  # at most: batches cross the borders of so many, and so many are done again when a node is lost
_FILES_A_ROUND = 300_000  # Ray Data holds every task of a round in the driver's memory
_TASKS_AN_ACTOR = 8  # at least, where there are as many files: so that all actors end at about the same time
_BEATS_A_SECOND = 20.0  # messages that the driver is asked to take from all actors together
_FRUITLESS_ROUNDS = 3
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class ActorNeeds:
    """What Ray reserves: `cpus` for an actor that decodes, `gpus` and custom `resources` for one that encodes.

    Without GPUs and resources one actor does both. A GPU can be shared: with 0.5, two actors encode on one.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        amounts = [amount for _, amount in self.resources]
        if self.cpus <= 0 or self.gpus < 0 or any(amount <= 0 for amount in amounts):
            raise InputError(
                f"A worker needs some CPUs, and an encoder no less than nothing: not {self.cpus:g} CPUs, {self.gpus:g} GPUs"
                + "".join(f", {amount:g} {name}" for name, amount in self.resources)
                + "."
            )

    @property
    def accelerators(self) -> dict[str, float]:
        """What an encoder needs of a node, by Ray's names; empty if decoders encode."""
        return {name: amount for name, amount in (("GPU", self.gpus), *self.resources) if amount}

    def decoders_on(self, node: dict[str, float]) -> int:
        """How many actors that decode a node with these resources holds."""
        return _fitting(node, {"CPU": self.cpus})

    def encoders_on(self, node: dict[str, float]) -> int:
        """How many actors that encode it holds."""
        return _fitting(node, self.accelerators)


def _fitting(node: dict[str, float], wanted: dict[str, float]) -> int:
    return min((math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items()), default=0)


def run_on_ray(
    files: list[VideoFile],
    job: Job,
    *,
    workers: int | None,
    timeout: float,
    stop: threading.Event,
    address: str | None = None,
    needs: ActorNeeds | None = None,
) -> Generator[tuple[VideoFile, Event]]:
    """Yields each file's events; unless stopped, every file ends in exactly one VideoRecord or Failure.

    `workers` is a number of actors (None: as many as the cluster holds). `address` is the cluster's; None is the one this process
    is connected to, the one this machine belongs to, or one started here and ended with the job, in this order.

    Raises InputError if no cluster answers or none of its nodes can hold an actor, WorkError for an encoder that fails and for a
    cluster that no longer makes progress.
    """
    needs = needs or ActorNeeds()
    with _quiet(), _connection(address):
        given = {file.id: file for file in files}
        open_files = dict(given)
        begun: set[str] = set()
        awaited: set[str] | None = None  # once stopped: what was begun then; what actors take up afterwards is in vain
        fruitless = 0
        while open_files and not stop.is_set():
            before, trouble = len(open_files), "files are left over"
            some = list(islice(open_files.values(), _FILES_A_ROUND))
            try:
                with contextlib.closing(_round(some, job, workers=workers, timeout=timeout, needs=needs)) as happening:
                    for happened in happening:
                        if happened is None:
                            if stop.is_set():
                                awaited = set(begun) if awaited is None else awaited & begun
                                if not awaited:
                                    break
                            continue
                        key, event = happened
                        if isinstance(event, Advanced):  # may come behind the file's end
                            begun |= {key} & open_files.keys()
                            yield given[key], event
                        elif file := open_files.pop(key, None):
                            begun.discard(key)
                            yield file, _as_asked(event, file)
            except RayError as error:
                trouble = _in_a_line(error)
            fruitless = fruitless + 1 if len(open_files) == before else 0
            if fruitless == _FRUITLESS_ROUNDS:
                raise WorkError(
                    f"The cluster makes no progress: {trouble}; what was finished is kept: rerun the same command to resume."
                )


def _round(
    files: list[VideoFile],
    job: Job,
    *,
    workers: int | None,
    timeout: float,
    needs: ActorNeeds,
) -> Generator[tuple[str, Event] | None]:
    """One pass of Ray Data over files: (id, event) as they come, and None after every message of an actor."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    actors = workers or sum(needs.decoders_on(node) for node in nodes)
    encoders = sum(needs.encoders_on(node) for node in nodes)
    if not actors or (needs.accelerators and not encoders):
        wanted = {"CPUs": needs.cpus} if not actors else needs.accelerators
        raise InputError(
            f"No node of the cluster has {' and '.join(f'{amount:g} {name}' for name, amount in wanted.items())}, which an actor "
            "is to have; give it less, or start nodes that have it."
        )
    tasks = _tasks(files, actors)
    actors = min(actors, len(tasks))
    dataset: Any = ray.data.from_items([{"files": task} for task in tasks], override_num_blocks=len(tasks))
    if needs.accelerators:
        dataset = dataset.map_batches(
            DecodingActor,
            batch_size=1,
            compute=_pool(actors),
            fn_constructor_args=(replace(job, options={}), timeout, sys.path),
            num_cpus=needs.cpus,
        ).map_batches(
            EncodingActor,
            batch_size=1,
            compute=_pool(encoders),
            fn_constructor_args=(job, timeout, sys.path),
            num_cpus=0,
            num_gpus=needs.gpus or None,
            resources=dict(needs.resources) or None,
        )
    else:
        dataset = dataset.map_batches(
            _Actor,
            batch_size=1,
            compute=_pool(actors),
            fn_constructor_args=(job, timeout, max(0.5, actors / _BEATS_A_SECOND), sys.path),
            num_cpus=needs.cpus,
        )
    context = dataset.context
    context.enable_progress_bars = False  # ours is enough
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # every message of an actor is brought as soon as it is there
    context.max_consecutive_actor_init_deaths = _FRUITLESS_ROUNDS
    context.execution_no_progress_timeout_s = -1  # a long film is silent for long; actors mind their files themselves

    batches = cast("Generator[dict[str, Any]]", iter(dataset.iter_batches(batch_size=None, prefetch_batches=0)))
    assembled = _Assembled(files)
    with contextlib.closing(batches):
        for batch in batches:
            for message in batch.get("message", ()):
                if message.error:
                    raise WorkError(message.error)
                yield from assembled.heard(message)
            for events in batch.get("events", ()):
                for key, event in events:
                    if isinstance(event, str):
                        raise WorkError(event)
                    yield key, event
            yield None  # an actor is heard every beat, so Ctrl-C is too


def _pool(actors: int) -> Any:
    return ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors, max_tasks_in_flight_per_actor=1)


class _Assembled:
    """Files that are on their way through both stages, as events of whole files."""

    def __init__(self, files: list[VideoFile]) -> None:
        self._open = {file.id: Assembly(file) for file in files}

    def heard(self, message: Message) -> Iterator[tuple[str, Event]]:
        """What a message tells; of files that have ended nothing more is."""
        for key, said in message.said:
            assembly = self._open.get(key)
            if assembly is None:
                continue
            record: VideoRecord | None = None
            if isinstance(said, Vectors):
                for place, vector in zip(said.places, said.values, strict=True):
                    record = assembly.encoded(place, vector) or record
                yield key, Advanced(len(said.places), assembly.fraction)
            elif isinstance(said, Laid | Ended):
                record = assembly.decoding(said)
            elif isinstance(said, Failure | Postponed):
                del self._open[key]
                yield key, said
            if record is not None:
                del self._open[key]
                yield key, record


class _Actor:
    """On a node: takes files and yields lists of (id, event), one a beat, or a sentence if it cannot continue."""

    def __init__(self, job: Job, timeout: float, beat: float, path: list[str]) -> None:
        sys.path += [entry for entry in path if entry not in sys.path]  # for encoders given as module:Class
        self._crew = Crew(job, workers=1, timeout=timeout)
        self._beat = beat

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        events: list[tuple[str, Event | str]] = []
        advanced: dict[str, Advanced] = {}
        beaten = time.monotonic()

        def message() -> dict[str, Any]:
            row = np.empty(1, object)
            row[0] = [*advanced.items(), *events]
            return {"events": row}

        try:
            for happened in self._crew.run(list(batch["files"][0]), threading.Event()):
                if happened is not None:
                    file, event = happened
                    if isinstance(event, Advanced):
                        so_far = advanced.get(file.id, Advanced(0, 0.0)).segments
                        advanced[file.id] = replace(event, segments=so_far + event.segments)
                    else:
                        events.append((file.id, event))
                if time.monotonic() - beaten > self._beat:
                    yield message()
                    events, advanced, beaten = [], {}, time.monotonic()
        except WorkError as error:
            events.append(("", str(error)))
        yield message()


def _tasks(files: list[VideoFile], actors: int) -> list[list[VideoFile]]:
    """Long files first and alone, short ones together."""
    sized = sorted(((file.size(), file) for file in files), key=lambda pair: pair[0], reverse=True)
    shares = _TASKS_AN_ACTOR * actors
    most_bytes = sum(size for size, _ in sized) / shares
    most_files = max(1, min(_FILES_A_TASK, len(files) // shares))
    tasks: list[list[VideoFile]] = []
    room = 0.0
    for size, file in sized:
        if not tasks or len(tasks[-1]) == most_files or size > room:
            tasks.append([])
            room = most_bytes
        tasks[-1].append(replace(file, path=_for_any_process(file.path)))
        room -= size
    return tasks


def _for_any_process(path: str) -> str:
    """Actors have a working directory of their own, so a path of this machine has to be absolute."""
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - links stay as they are


def _as_asked(event: VideoRecord | Failure | Postponed, file: VideoFile) -> VideoRecord | Failure | Postponed:
    """The event with the path as it was given, as the local engine has it."""
    if isinstance(event, VideoRecord):
        return replace(event, source=file.source)
    return replace(event, path=file.source)


@contextlib.contextmanager
def _connection(address: str | None) -> Iterator[None]:
    """Connects to Ray; an existing connection is used and left open."""
    if ray.is_initialized():
        if address is not None:
            raise InputError(
                "This process is connected to a Ray cluster already; give no address, or ray.shutdown() first."
            )
        yield
        return
    _must_answer(address)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ side writes to standard error
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        what = f"No Ray cluster answers at {address}" if address else "Ray does not start here"
        raise InputError(f"{what}: {_in_a_line(error)}.") from None
    try:
        yield
    finally:
        ray.shutdown()  # ends the job's actors, wherever they are


def _must_answer(address: str | None) -> None:
    """Ray itself tries for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # none, or a word that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"No Ray cluster answers at {address}: {_in_a_line(error)}.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray's own messages: what they say of lost actors and tasks is dealt with here."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _in_a_line(error: BaseException) -> str:
    """The last line: an error of a node brings its traceback along."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__
