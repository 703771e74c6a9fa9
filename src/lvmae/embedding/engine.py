"""Videos -> store: the job around the work. Nothing lost, nothing twice.

Enters: videos, and where the store goes. Leaves: the store, and a summary. What is done to a video is
`lvmae.embedding.pipeline`; who does it is an engine: a callable from files to events, on this machine
(`lvmae.embedding.local_engine`) or on a Ray cluster (`lvmae.embedding.ray_engine`). Here is what is the same for all:
which videos are still to be done, the writer, the progress line, Ctrl-C. A bad file is a row of the failures table;
Ctrl-C and kill -9 lose what was in flight, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from lvmae.embedding.pipeline import Advanced, Event, Job
from lvmae.embedding.sources import VideoFile, find_videos, share_of
from lvmae.encoders import load_encoder
from lvmae.errors import InputError
from lvmae.process import handling_signals, own_state, say
from lvmae.progress import progress
from lvmae.store import Failure, Manifest, StoreWriter, VideoRecord, ids_of_other_ranks, rank_store
from lvmae.video.segmentation import segment_rule

_COMMIT_SECONDS = 30.0
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EmbedSummary:
    """What a job did. `failed` counts every video given that is not in the store now; `failures` says why."""

    store: str  # where it is: `out`, or a rank's own below
    embedded: int
    skipped: int  # were in the store before
    failed: int
    partial: int  # of those in the store, the ones that break off; `failures` tells them too
    segments: int
    seconds_of_video: float
    wall_seconds: float
    failures: tuple[Failure, ...] = ()


class Engine(Protocol):
    """Who does the work: yields each file's events; unless stopped, every file ends in exactly one VideoRecord or Failure.

    `workers` is a number of processes or actors (None: what the machines have); a file that makes no progress for `timeout` seconds
    is given up. Once `stop` is set no new file is taken up. Closing the generator ends all that it started. Raises WorkError where
    no file is to blame: the encoder fails, workers cannot start.
    """

    def __call__(
        self, files: list[VideoFile], job: Job, *, workers: int | None, timeout: float, stop: threading.Event
    ) -> Iterator[tuple[VideoFile, Event]]: ...


def _engine(name: str, address: str | None, worker_cpus: float | None, worker_gpus: float | None) -> Engine:
    """The one place that knows the engines. Raises InputError for an unknown one and for what belongs to another."""
    if name == "local":
        if (address, worker_cpus, worker_gpus) != (None, None, None):
            raise InputError(
                "An address, and CPUs and GPUs a worker, are for a Ray cluster; they go with the engine 'ray'."
            )
        from lvmae.embedding.local_engine import run_local

        return run_local
    if name == "ray":
        try:
            from lvmae.embedding.ray_engine import ActorNeeds, run_on_ray
        except ImportError as error:
            raise InputError(f"The engine 'ray' needs {error.name}: pip install 'lvmae[ray]'.") from None
        cpus, gpus = 1.0 if worker_cpus is None else worker_cpus, worker_gpus or 0.0
        engine: Engine = partial(run_on_ray, address=address, needs=ActorNeeds(cpus, gpus))
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
    rank: int | None = None,
    world_size: int | None = None,
    engine: str = "local",
    address: str | None = None,
    worker_cpus: float | None = None,
    worker_gpus: float | None = None,
) -> EmbedSummary:
    """Embeds folders of videos, files, URLs or manifests into the store `out`, which is made or gone on with.

    `segment_kind` is "fixed", `segment_seconds` long (5), one every `stride`; or "shots", cut where they are longer than that (10).
    See `find_videos` for what is taken and what becomes its id. Videos in the store are left as they are; files that failed before
    are tried again only with `retry_failures`. Of a file that breaks off nothing is kept, or with `keep_partial` its segments
    before that place; the store tells the reason among its failures. A file that makes no progress for `timeout` seconds is given
    up. `workers` is the number of processes, by default one a core; the result does not depend on it. `engine` is "local", or "ray"
    with the `address` of a cluster (None: the one this machine belongs to, or one started here), where a worker is an actor that
    Ray gives `worker_cpus` (1) and `worker_gpus` (none).

    With `rank` and `world_size` this is one of several processes that were given the same videos, anywhere: it takes its share, by
    a hash of the ids, leaves out what any rank did before, and writes a store of its own below `out`. `lvmae.store.merge_stores`
    makes one of them all; the number of ranks may change in between.

    Raises InputError for a request that cannot be carried out, WorkError if the encoder fails, and KeyboardInterrupt, with how to
    go on as its message, after committing what was finished.
    """
    began = time.monotonic()
    for name, number in (("batch_size", batch_size), ("workers", workers), ("timeout", timeout)):
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"{name} must be positive, not {number}.")
    run = _engine(engine, address, worker_cpus, worker_gpus)
    files = find_videos(videos)
    whole, elsewhere = out, set[str]()
    if rank is not None and world_size is not None:
        files = share_of(files, rank, world_size)
        out = rank_store(whole, rank, world_size)
    elif rank is not None or world_size is not None:
        raise InputError("A rank and a world size go together.")
    rule = segment_rule(segment_kind, segment_seconds, stride)
    model = load_encoder(encoder, **(encoder_options or {}))
    manifest = Manifest(
        space_id=model.space_id,
        dim=model.dim,
        segments=rule.description,
        encoder={"name": encoder, "options": model.options, "licence": model.licence},
    )
    if out != whole:
        elsewhere = ids_of_other_ranks(whole, os.fspath(out), manifest)
    # What the encoder settled wins; what is no part of its space, such as the device, reaches the workers all the same.
    job = Job(encoder, {**(encoder_options or {}), **model.options}, rule, batch_size, keep_partial)
    embedded = segments = 0
    seconds = 0.0
    with _interruptible() as stop, StoreWriter(out, manifest, flush_seconds=_COMMIT_SECONDS) as writer:
        there = writer.done | elsewhere
        skipped = sum(file.id in there for file in files)
        todo = [f for f in files if f.id not in there and (retry_failures or f.id not in writer.failed)]
        if todo:
            model.self_test()
        del model  # the workers have their own; this process only minds them
        meter = _Meter(todo)
        with contextlib.closing(meter):
            for file, event in run(todo, job, workers=workers, timeout=timeout, stop=stop):
                meter.saw(file, event, seconds_of_video=seconds)
                if isinstance(event, VideoRecord):
                    writer.add(event)
                    embedded, segments, seconds = embedded + 1, segments + len(event.starts), seconds + event.duration
                elif isinstance(event, Failure):
                    writer.fail(event.id, event.path, event.reason, event.identity)
                elif meter.commit_due():
                    writer.commit()
        failures = tuple(writer.failed[file.id] for file in files if file.id in writer.failed)
    if meter.ended < len(todo):
        raise KeyboardInterrupt(
            f"Stopped. {skipped + embedded} of {len(files)} videos are in {os.fspath(out)}; the same command goes on."
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
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Sets the event at the first Ctrl-C; the second one interrupts as usual, and so does a request to end (SIGTERM)."""
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        stop.set()
        give_back(number)
        say("\nFinishing what is in hand; Ctrl-C once more stops at once.")

    def end(*_: object) -> None:
        raise KeyboardInterrupt("Told to end. What was finished is in the store; the same command goes on.")

    with handling_signals({signal.SIGINT: ask, signal.SIGTERM: end}) as give_back:
        yield stop


@dataclass
class _Meter:
    """The progress line: segments/s, speed over real time, and time left by the share of bytes done."""

    files: list[VideoFile]
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = {file.id: max(file.size(), 1) for file in self.files}
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
            + (f", {self.failed} failed" if self.failed else ""),
            refresh=False,
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
