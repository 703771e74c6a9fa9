"""Videos -> store: the job around the work. Nothing lost, nothing twice.

Enters: videos, and where the store goes. Leaves: the store, and a summary. What is done to a video is
`lvmae.embedding.pipeline`; who does it is an engine: a callable from files to events, on this machine
(`lvmae.embedding.local_engine`) or on a Ray cluster (`lvmae.embedding.ray_engine`). Here is what is the same for all:
which videos are still to be done, the writer, the progress line, Ctrl-C. A bad file is a row of the failures table; one that
cannot be reached, or is still being written, is neither done nor bad: a rerun tries it again. Ctrl-C and kill -9 lose only
what was in flight.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from lvmae.devices import release_memory
from lvmae.embedding.pipeline import Advanced, Event, FrameFormat, Job, Postponed
from lvmae.embedding.sources import VideoFile, search_videos, share_of
from lvmae.encoders import load_placed
from lvmae.errors import InputError, InUse, OutageError, Terminated
from lvmae.files.urls import is_url
from lvmae.process import handling_signals, own_state, say, tell_event
from lvmae.progress import progress
from lvmae.store import (
    Failure,
    Manifest,
    StoreWriter,
    VideoRecord,
    ids_of_other_ranks,
    rank_store,
    rank_stores,
    remember_folder,
    stored_sources,
)
from lvmae.video.segmentation import segment_rule

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 1.0  # pause before files that were still being written are tried again
_WAIT_SECONDS = 1.0  # between two looks at a store that another process writes to
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EmbedSummary:
    """The result of an embedding job. `failed` counts the given videos that are not in the store; `failures` says why."""

    store: str  # where it is: `out`, or a rank's own below
    embedded: int
    skipped: int  # were in the store before
    failed: int
    partial: int  # of those in the store, the ones that break off; `failures` tells them too
    segments: int
    seconds_of_video: float
    wall_seconds: float
    failures: tuple[Failure, ...] = ()
    postponed: tuple[Postponed, ...] = ()  # neither done nor failed: out of reach, or still being written
    changed: tuple[
        str, ...
    ] = ()  # files that are not what they were when they were stored, and were not embedded again
    left_out: str = ""  # how many files of the folders are no videos, by kind


class Engine(Protocol):
    """Who does the work: yields each file's events, and None at times so that its caller can do other things.

    Unless stopped, every file ends in exactly one VideoRecord, Failure or Postponed.

    `workers` is a number of processes or actors (None: what the machines have); a file that makes no progress for `timeout` seconds
    is given up. Once `stop` is set no new file is taken up. Closing the generator ends all that it started. Raises WorkError if
    no file is to blame: the encoder fails, workers cannot start.
    """

    def __call__(
        self, files: list[VideoFile], job: Job, *, workers: int | None, timeout: float, stop: threading.Event
    ) -> Iterator[tuple[VideoFile, Event] | None]: ...


def _engine(
    name: str,
    address: str | None,
    worker_cpus: float | None,
    worker_gpus: float | None,
    encoder_resources: Mapping[str, float] | None,
) -> Engine:
    """The one place that knows the engines. Raises InputError for an unknown one and for what belongs to another."""
    if name == "local":
        if (address, worker_cpus, worker_gpus, encoder_resources) != (None, None, None, None):
            raise InputError(
                "An address, and CPUs, GPUs and resources a worker, are for a Ray cluster; they go with the engine 'ray'."
            )
        from lvmae.embedding.local_engine import run_local

        return run_local
    if name == "ray":
        try:
            from lvmae.embedding.ray_engine import ActorNeeds, run_on_ray
        except ImportError as error:
            raise InputError(f"The engine 'ray' needs {error.name}: pip install 'lvmae[ray]'.") from None
        cpus, gpus = 1.0 if worker_cpus is None else worker_cpus, worker_gpus or 0.0
        needs = ActorNeeds(cpus, gpus, tuple((encoder_resources or {}).items()))
        engine: Engine = partial(run_on_ray, address=address, needs=needs)
        return engine
    raise InputError(f"There is no engine {name!r}. Known: {', '.join(ENGINES)}.")


@own_state()
def embed_videos(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    encoder: str = "conse",
    encoder_options: dict[str, Any] | None = None,
    segment_kind: str = "fixed",
    segment_seconds: float | None = None,
    stride: float | None = None,
    workers: int | None = None,
    batch_size: int = 16,
    retry_failures: bool = False,
    timeout: float = 300.0,
    keep_partial: bool = False,
    readmit: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    engine: str = "local",
    address: str | None = None,
    worker_cpus: float | None = None,
    worker_gpus: float | None = None,
    encoder_resources: Mapping[str, float] | None = None,
    devices: str | Iterable[str] | None = None,
    outage_after: int = 5,
    commit_seconds: float = 10.0,
    wait: bool = False,
    refresh: bool = False,
) -> EmbedSummary:
    """Embeds folders of videos, files, URLs or manifests into the store `out`, new or existing.

    `segment_kind` is "fixed", `segment_seconds` long (5), one every `stride`; or "shots", cut where they are longer than that (10).
    See `find_videos` for what is taken and what becomes its id. Videos in the store are left as they are; one whose file has
    changed since is listed in the summary, and with `refresh` embedded again. Files that failed are tried again with
    `retry_failures`, and by themselves where they have changed. Of a file that breaks off nothing is kept, or with
    `keep_partial` its segments before that place; the store tells the reason among its failures. A video that was removed from
    the store stays out, unless `readmit`. A file that makes no progress for `timeout` seconds is given up. `workers` is the number
    of processes, by default one a core; the result does not depend on it. `engine` is "local", or "ray" with the `address` of a
    cluster (None: the one this machine belongs to, or one started here), where a worker is an actor that Ray gives `worker_cpus`
    (1). With `worker_gpus`, or `encoder_resources` that nodes declare, workers decode, and actors that Ray gives these encode.

    An encoder on GPUs runs in a process for each of `devices` ("cuda:0,cuda:1"; None: all that are there) and the workers only
    decode for them. On the CPU each worker does both, unless devices are named ("cpu,cpu").

    A URL that cannot be reached is tried several times and then left for the next run; after `outage_after` of these in a row the
    job stops with OutageError. A file that changes while it is read is left for the next run too; the summary tells both as
    `postponed`. What is finished is committed at the latest after `commit_seconds`, sooner in a young job. With `wait`, a store
    that another process writes to is waited for.

    With `rank` and `world_size` this is one of several processes that were given the same videos, anywhere: it takes its share, by
    a hash of the ids, leaves out what any rank did before, and writes a store of its own below `out`. `lvmae.store.merge_stores`
    makes one of them all; the number of ranks may change in between.

    Raises InputError for a request that cannot be carried out, WorkError if the encoder fails, OutageError, and KeyboardInterrupt
    (Terminated where the process was told to end), with how to continue as its message, after committing what was finished.
    """
    began = time.monotonic()
    positive = {"batch_size": batch_size, "workers": workers, "timeout": timeout, "outage_after": outage_after}
    for name, number in (positive | {"commit_seconds": commit_seconds}).items():
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"{name} must be positive, not {number}.")
    if devices is not None and engine != "local":
        raise InputError(
            "`devices` applies to this machine only; on a cluster, set the GPUs or resources of Ray for encoders."
        )
    run = _engine(engine, address, worker_cpus, worker_gpus, encoder_resources)
    stored = stored_sources([out] if rank is None else rank_stores(out))
    search = search_videos(videos, stored)
    files = search.videos
    whole, elsewhere = out, set[str]()
    if rank is not None and world_size is not None:
        files = share_of(files, rank, world_size)
        out = rank_store(whole, rank, world_size)
    elif rank is not None or world_size is not None:
        raise InputError("A rank and a world size go together.")
    rule = segment_rule(segment_kind, segment_seconds, stride)
    model, places = load_placed(encoder, encoder_options or {}, devices)
    manifest = Manifest(
        space_id=model.space_id,
        dim=model.dim,
        segments=rule.description,
        encoder={"name": encoder, "options": model.options, "licence": model.licence},
    )
    if out != whole:
        elsewhere = ids_of_other_ranks(whole, os.fspath(out), manifest)
    job = Job(
        encoder,
        # What the encoder settled wins; what is no part of its space, such as the device, reaches the workers all the same.
        {**(encoder_options or {}), **model.options},
        rule,
        batch_size,
        keep_partial,
        patience=min(120.0, timeout / 2),
        devices=places,
        frames=FrameFormat.of(model),
    )
    embedded = segments = 0
    seconds = 0.0
    postponed: dict[str, Postponed] = {}
    outage: Postponed | None = None  # the last of too many in a row
    with (
        _interruptible() as stop,
        _writer(out, manifest, commit_seconds, stop if wait else None) as writer,
    ):
        if any(not (is_url(f.path) or os.path.isabs(f.path)) for f in files):  # noqa: PTH117
            remember_folder(out)  # so that the videos are found from any other
        if readmit:
            writer.admit(file.id for file in files)
        there = writer.done | writer.removed | elsewhere
        if kept_out := sum(file.id in writer.removed for file in files):
            log.info(
                "%d of the videos were removed from %s and stay out; readmit them to embed them again", kept_out, out
            )
        changed = tuple(f for f in files if f.id in there and stored.changed(f.id, f.path, f.now()))
        again = {f.id for f in changed if refresh and f.id in writer.done}
        skipped = sum(file.id in there and file.id not in again for file in files)
        todo = [
            f
            for f in files
            if f.id in again
            or (
                f.id not in there
                and (retry_failures or f.id not in writer.failed or stored.may_succeed(f.id, f.path, f.now()))
            )
        ]
        chosen = {f.id for f in todo}
        for f in files:
            if f.id not in chosen:
                what = "stored" if f.id in there else "failed before"
                tell_event(what.replace(" ", "_"), f"{what} {f.id}", id=f.id, path=f.path)
        if todo:
            model.self_test()
        del model  # the workers have their own; this process only minds them
        release_memory()
        meter = _Meter(todo)
        commits = _Commits(writer, commit_seconds)
        out_of_reach = 0  # in a row
        with contextlib.closing(meter):
            for some in _passes(todo, postponed, stop):
                for happened in run(some, job, workers=workers, timeout=timeout, stop=stop):
                    commits.if_due()
                    if happened is None:
                        continue
                    file, event = happened
                    meter.saw(file, event, seconds_of_video=seconds)
                    if isinstance(event, Advanced):
                        continue
                    _tell_of(file, event)
                    postponed.pop(file.id, None)
                    out_of_reach = out_of_reach + 1 if isinstance(event, Postponed) and event.outage else 0
                    if isinstance(event, VideoRecord):
                        try:
                            writer.add(event, replaces=event.id in again)
                        except ValueError as error:  # an encoder's vectors that are no numbers, say
                            writer.fail(event.id, event.source, f"it cannot be stored: {error}", event.identity)
                            continue
                        embedded, segments = embedded + 1, segments + len(event.starts)
                        seconds += event.duration
                    elif isinstance(event, Failure):
                        writer.fail(event.id, event.path, event.reason, event.identity)
                    else:
                        postponed[file.id] = event
                        if out_of_reach == outage_after:
                            stop.set()  # the current files are finished
                            outage = event
        failures = tuple(writer.failed[file.id] for file in files if file.id in writer.failed)
    if outage is not None:
        raise OutageError(
            f"{outage_after} files in a row cannot be reached, the last one because {outage.reason}; "
            f"{skipped + embedded} of {len(files)} videos are in {os.fspath(out)}, and none of these files counts as bad: "
            "rerun the same command when they can be reached."
        )
    if meter.ended < len(todo):
        raise KeyboardInterrupt(
            f"Stopped. {skipped + embedded} of {len(files)} videos are in {os.fspath(out)}; rerun the same command to resume."
        )
    cut_short = sum(failure.kept > 0 for failure in failures)
    return EmbedSummary(
        store=os.fspath(out),
        embedded=embedded,
        skipped=skipped,
        failed=len(failures) - cut_short,
        partial=cut_short,
        segments=segments,
        seconds_of_video=seconds,
        wall_seconds=time.monotonic() - began,
        failures=failures,
        postponed=tuple(postponed.values()),
        changed=tuple(file.source for file in changed if file.id not in again),
        left_out=search.left_out,
    )


def _passes(todo: list[VideoFile], postponed: dict[str, Postponed], stop: threading.Event) -> Iterator[list[VideoFile]]:
    """Yields all files to do, then the postponed ones again."""
    yield todo
    if postponed and not stop.wait(_SETTLE_SECONDS):
        yield [file for file in todo if file.id in postponed]


@contextlib.contextmanager
def _writer(
    out: str | os.PathLike[str], manifest: Manifest, commit_seconds: float, stop: threading.Event | None
) -> Iterator[StoreWriter]:
    """The store's writer; with `stop`, one that another process holds is waited for until that is set."""
    told = False
    while True:
        try:
            opened = StoreWriter(out, manifest, flush_seconds=commit_seconds)
            break
        except InUse as error:
            if stop is None:
                raise
            if stop.wait(_WAIT_SECONDS if told else 0.0):
                raise KeyboardInterrupt(f"Stopped before it began: {error}.") from None
            if not told:
                say(f"Waiting: {error}.")
            told = True
    with opened as writer:
        yield writer


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Sets the event at the first Ctrl-C; the second one interrupts as usual. A request to end (SIGTERM) raises Terminated."""
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        stop.set()
        give_back(number)
        say("\nFinishing the current files; press Ctrl-C again to stop at once.")

    def end(*_: object) -> None:
        raise Terminated("Terminated. What was finished is in the store; rerun the same command to resume.")

    with handling_signals({signal.SIGINT: ask, signal.SIGTERM: end}) as give_back:
        yield stop


class _Commits:
    """When to commit: what is finished waits at most `seconds`, in a young job at most a quarter of its age."""

    def __init__(self, writer: StoreWriter, seconds: float) -> None:
        self._writer, self._seconds = writer, seconds
        self._began = self._committed = time.monotonic()

    def if_due(self) -> None:
        now = time.monotonic()
        if now - self._committed >= min(self._seconds, max(1.0, (now - self._began) / 4)):
            self._committed = now
            self._writer.commit()


def _tell_of(file: VideoFile, event: VideoRecord | Failure | Postponed) -> None:
    """An event a file, for the log."""
    if isinstance(event, VideoRecord):
        text = f"embedded {file.id}: {len(event.starts)} segments" + (
            f" ({event.shortened})" if event.shortened else ""
        )
        facts = {"segments": len(event.starts), "seconds": event.duration, "reason": event.shortened or None}
        tell_event("partial" if event.shortened else "embedded", text, id=file.id, path=file.path, **facts)
    else:
        kind = "failed" if isinstance(event, Failure) else "postponed"
        tell_event(kind, f"{kind} {file.id}: {event.reason}", id=file.id, path=file.path, reason=event.reason)


@dataclass
class _Meter:
    """The progress line: segments/s, speed over real time, and time left by the share of bytes done."""

    files: list[VideoFile]
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = {file.id: max(file.size(), 1) for file in self.files}
        self.shares: dict[str, float] = {}
        self.ends: dict[str, Event] = {}
        self.segments, self.note = 0, ""
        self.began = time.monotonic()
        self.bar = progress(desc="embed", unit="segments", total=None)

    def saw(self, file: VideoFile, event: Event, *, seconds_of_video: float) -> None:
        if isinstance(event, Advanced):
            self.segments += event.segments
            self.shares[file.id] = max(self.shares.get(file.id, 0.0), event.fraction)
            done = sum(self.sizes[key] * share for key, share in self.shares.items())
            self.bar.total = round(self.segments * sum(self.sizes.values()) / max(done, 1e-9))
            self.note = event.note or self.note
            self.bar.update(event.segments)
            return
        self.shares[file.id] = 1.0
        self.ends[file.id] = event
        speed = (seconds_of_video + getattr(event, "duration", 0.0)) / max(time.monotonic() - self.began, 1e-9)
        kinds = Counter(type(end) for end in self.ends.values())
        self.bar.set_postfix_str(
            f"{self.ended}/{len(self.files)} videos, {speed:.0f}x real time"
            + (f", {kinds[Failure]} failed" if kinds[Failure] else "")
            + (f", {kinds[Postponed]} postponed" if kinds[Postponed] else "")
            + (f", {self.note}" if self.note else ""),
            refresh=False,
        )

    @property
    def ended(self) -> int:
        """How many files have ended, whichever way."""
        return len(self.ends)

    def close(self) -> None:
        if self.ended == len(self.files):
            self.bar.total = self.segments
        self.bar.close()
