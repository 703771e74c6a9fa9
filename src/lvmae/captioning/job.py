"""The run: which segments are left, what they will cost, and a bounded stream of them past the endpoint into the file."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.captioning.answers import one_line
from lvmae.captioning.endpoint import PROMPT, Endpoint, Unanswered, read_key
from lvmae.captioning.table import CaptionTable, key_of
from lvmae.errors import InputError, WorkError
from lvmae.progress import progress
from lvmae.store import EmbeddingStore, located
from lvmae.video.decoding import VideoError, probe, segment_jpegs

_PIXELS_PER_TOKEN = 750  # what several vision models make of a picture, within a factor of two
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_CAPTION = 60
_FAILURES_IN_A_ROW = 16  # then it is the endpoint, and the other ten thousand would fail as well


@dataclass(frozen=True)
class CaptionFailure:
    """A segment, in seconds of its video, that got no caption, and why."""

    video: str
    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class Estimate:
    """An estimate of the work left. Tokens are a guess within a factor of two; `dollars` is None without prices."""

    segments: int
    captioned: int
    missing_videos: int
    pictures: int
    picture_size: tuple[int, int]
    tokens_in: int
    tokens_out: int
    dollars: float | None
    minutes: float | None  # the least that the rate limit leaves

    def to_text(self) -> str:
        lines = [
            f"{self.segments} segments to caption ({self.captioned} are captioned): {self.segments} requests with "
            f"{self.pictures} pictures of {self.picture_size[0]}x{self.picture_size[1]}",
            f"estimated: {self.tokens_in:,} tokens in, {self.tokens_out:,} out"
            + ("" if self.dollars is None else f", ${self.dollars:,.2f}")
            + ("" if self.minutes is None else f", {math.ceil(self.minutes):,} minutes or more at this rate limit")
            + " (models count pictures differently: expect half to double)",
        ]
        if self.missing_videos:
            lines.append(f"videos that are not where the store says: {self.missing_videos}; their segments will fail")
        return "\n".join(lines)


@dataclass
class CaptionSummary:
    """The result of a captioning run: segments captioned now and before, failures, and the server's token counts."""

    captioned: int = 0
    before: int = 0
    cut: int = 0  # captions that end at the limit of tokens
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float | None = None
    failures: list[CaptionFailure] = field(default_factory=list)

    def to_text(self, out: str | os.PathLike[str], most: int = 20) -> str:
        """Returns a summary with the failures; those of one video with the same reason share a line."""
        counted = (
            f"; the server counted {self.tokens_in:,} tokens in, {self.tokens_out:,} out" if self.tokens_in else ""
        )
        paid = f", ${self.dollars:,.2f}" if counted and self.dollars is not None else ""
        lines = [
            f"{os.fspath(out)}: {self.captioned} segments captioned, {self.before} already stored, "
            f"{len(self.failures)} failed{counted}{paid}"
        ]
        if self.cut:
            lines.append(f"{self.cut} captions were cut at the limit of tokens; `max_tokens` sets it")
        groups: dict[tuple[str, str], list[CaptionFailure]] = {}
        for failure in self.failures:
            groups.setdefault((failure.video, failure.reason), []).append(failure)
        for (video, reason), failures in list(groups.items())[:most]:
            many = f"{len(failures)} segments from" if len(failures) > 1 else "the segment at"
            lines.append(
                one_line(f"failed: {video}, {many} {min(f.start for f in failures):g} s: {reason}").join(("  ", ""))
            )
        if len(groups) > most:
            lines.append(f"  and {sum(map(len, list(groups.values())[most:]))} more")
        if self.failures:
            lines.append("rerun the same command to try these again")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Left:
    """A video's segments that have no caption yet."""

    video: str
    source: str
    starts: np.ndarray  # (L,) seconds
    ends: np.ndarray


@dataclass(frozen=True)
class _Piece:
    """A segment with its JPEGs, in order of time."""

    video: str
    start: float
    end: float
    jpegs: list[bytes]


@dataclass(frozen=True)
class CaptionJob:
    """Captions every segment of a store: `estimate()` returns what is left, `run()` does it.

    Args:
        store: a store whose videos are still at their `source`.
        out: the CSV; captions that are in it stay and are not asked for again.
        endpoint: the address of an OpenAI-compatible server, as http://127.0.0.1:11434/v1.
        model: the name of a model that takes pictures.
        frames: evenly spaced frames of each segment (the paper: 20).
        prompt: what is asked about them.
        frame_height: pixels; the whole picture is sent.
        max_tokens: the longest answer; 0 leaves it to the server.
        concurrency: requests under way at once.
        requests_per_minute: requests that start in a minute, retries included.
        timeout: seconds for one request.
        retries: further tries of a segment.
        price_in, price_out: dollars for a million tokens.

    Raises:
        InputError: an option that makes no sense, no store, an `out` that cannot be resumed.
    """

    store: str | os.PathLike[str]
    out: str | os.PathLike[str]
    endpoint: str
    model: str
    frames: int = 8
    prompt: str = PROMPT
    frame_height: int = 360
    max_tokens: int = 300
    concurrency: int = 4
    requests_per_minute: float | None = None
    timeout: float = 120.0
    retries: int = 5
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("frame_height", 16), ("concurrency", 1), ("max_tokens", 0), ("retries", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        for name in ("requests_per_minute", "timeout"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise InputError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
        for name in ("price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < math.inf):
                raise InputError(f"--{name.replace('_', '-')} must not be below 0, not {value:g}")
        if not self.prompt.strip():
            raise InputError("`prompt` is empty; say what to ask about the frames, or leave it out")

    def estimate(self) -> Estimate:
        """Returns the work left for `run()` and its approximate cost. Writes nothing and sends no request."""
        table = self._table()
        left, captioned = self._left(table)
        segments = sum(len(video.starts) for video in left)
        width, height = self._picture_size(left)
        picture_tokens = math.ceil(width * height / _PIXELS_PER_TOKEN)
        tokens_in = segments * (self.frames * picture_tokens + math.ceil(len(self.prompt) / _CHARACTERS_PER_TOKEN))
        tokens_out = segments * _TOKENS_PER_CAPTION
        return Estimate(
            segments=segments,
            captioned=captioned,
            missing_videos=sum(not Path(video.source).exists() for video in left),
            pictures=segments * self.frames,
            picture_size=(width, height),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            dollars=self._dollars(tokens_in, tokens_out),
            minutes=segments / self.requests_per_minute if self.requests_per_minute else None,
        )

    def run(self) -> CaptionSummary:
        """Captions the segments that are left. Failed segments are listed in the summary; the next run retries them.

        Raises:
            InputError, WorkError: no request can be answered; captions so far are kept.
            KeyboardInterrupt: likewise, with how far it came.
        """
        endpoint = Endpoint(
            self.endpoint,
            self.model,
            key=read_key(),
            max_tokens=self.max_tokens,
            per_minute=self.requests_per_minute,
            timeout=self.timeout,
            retries=self.retries,
        )
        with self._table() as table:
            left, before = self._left(table)
            total = before + sum(len(video.starts) for video in left)
            summary = CaptionSummary(before=before)
            with progress(desc="caption", unit="segments", total=total, initial=before) as bar:
                try:
                    _run_to_end(_Stream(self, endpoint, table, left, summary).flow(bar))
                except ExceptionGroup as group:
                    # Several requests may meet the same end; the first says it.
                    raise group.exceptions[0] from None
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(
                        f"interrupted; {before + summary.captioned} of {total} segments are captioned in {self.out}, "
                        "rerun the same command to resume"
                    ) from None
        summary.dollars = self._dollars(summary.tokens_in, summary.tokens_out)
        return summary

    def _table(self) -> CaptionTable:
        made_with = {
            "model": self.model,
            "frames": self.frames,
            "frame_height": self.frame_height,
            "prompt": self.prompt,
        }
        return CaptionTable(self.out, made_with)

    def _left(self, table: CaptionTable) -> tuple[list[_Left], int]:
        """The videos with segments that have no caption, and how many segments have one."""
        store = EmbeddingStore.open(self.store)
        videos, captioned = [], 0
        for record in (store[place] for place in range(len(store))):
            times = zip(record.starts, record.ends, strict=True)
            left = np.array([key_of(record.id, start, end) not in table.done for start, end in times], bool)
            captioned += int((~left).sum())
            if left.any():
                videos.append(
                    _Left(
                        record.id,
                        located(store, record.source),
                        np.array(record.starts)[left],
                        np.array(record.ends)[left],
                    )
                )
        return videos, captioned

    def _picture_size(self, left: list[_Left]) -> tuple[int, int]:
        """Width and height of the pictures of a video, the first that can be opened; of 16:9 if none can."""
        for video in left[:8]:
            try:
                info = probe(video.source)
            except VideoError:
                continue
            return max(1, round(self.frame_height * info.width / info.height)), self.frame_height
        return round(self.frame_height * 16 / 9), self.frame_height

    def _dollars(self, tokens_in: int, tokens_out: int) -> float | None:
        if self.price_in is None and self.price_out is None:
            return None
        return (tokens_in * (self.price_in or 0.0) + tokens_out * (self.price_out or 0.0)) / 1e6


class _Stream:
    """Decoder -> a queue of `concurrency` pieces -> `concurrency` requests -> table. 2 `concurrency` + 1 pieces are in memory."""

    def __init__(
        self, job: CaptionJob, endpoint: Endpoint, table: CaptionTable, left: list[_Left], summary: CaptionSummary
    ) -> None:
        self._job, self._endpoint, self._table, self._left, self._summary = job, endpoint, table, left, summary
        self._in_a_row = 0

    async def flow(self, bar: Any) -> None:
        self._bar = bar
        queue: asyncio.Queue[_Piece | None] = asyncio.Queue(self._job.concurrency)
        async with self._endpoint, asyncio.TaskGroup() as group:
            for _ in range(self._job.concurrency):
                group.create_task(self._ask(queue))
            group.create_task(self._decode(queue))

    async def _decode(self, queue: asyncio.Queue[_Piece | None]) -> None:
        """All pieces in turn, decoded in one thread, then a None for each asker."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            for video in self._left:
                pictures = segment_jpegs(
                    video.source,
                    video.starts,
                    video.ends,
                    num_frames=self._job.frames,
                    height=self._job.frame_height,
                )
                for place, (start, end) in enumerate(zip(video.starts.tolist(), video.ends.tolist(), strict=True)):
                    try:
                        jpegs = await loop.run_in_executor(thread, next, pictures, None)
                        if jpegs is None:
                            raise VideoError("the file ends before its segments do")
                    except Exception as error:
                        # Whatever decoding a file raises is that file's failure; what was not foreseen names its type.
                        named = "" if isinstance(error, VideoError) else f"{type(error).__name__}: "
                        for begin, finish in zip(video.starts[place:], video.ends[place:], strict=True):
                            reason = f"{video.source}: {named}{error}"
                            self._fail(CaptionFailure(video.video, float(begin), float(finish), reason))
                        break
                    await queue.put(_Piece(video.video, start, end, jpegs))
        for _ in range(self._job.concurrency):
            await queue.put(None)

    async def _ask(self, queue: asyncio.Queue[_Piece | None]) -> None:
        while (piece := await queue.get()) is not None:
            try:
                answer = await self._endpoint.describe(self._job.prompt, piece.jpegs)
            except Unanswered as error:
                self._fail(CaptionFailure(piece.video, piece.start, piece.end, str(error)))
                # Refused pictures say nothing of the server: a scene that is refused can be long.
                self._in_a_row += not error.refused
                if self._in_a_row >= _FAILURES_IN_A_ROW:
                    raise WorkError(
                        f"{self._endpoint.shown} failed on {self._in_a_row} segments in a row, the last time because "
                        f"{error}; captions so far are kept: rerun the same command to resume"
                    ) from None
                continue
            self._in_a_row = 0
            self._table.add(piece.video, piece.start, piece.end, answer.text)
            summary = self._summary
            summary.captioned += 1
            summary.cut += answer.cut
            summary.tokens_in += answer.tokens_in
            summary.tokens_out += answer.tokens_out
            self._bar.update(1)

    def _fail(self, failure: CaptionFailure) -> None:
        self._summary.failures.append(failure)
        self._bar.set_postfix_str(f"{len(self._summary.failures)} failed", refresh=False)


def _run_to_end(flow: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine; in a thread where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(flow)
        return
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def stoppable() -> None:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        await flow

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(asyncio.run, stoppable())
        try:
            running.result()
        except KeyboardInterrupt:
            for loop, task in started:
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
            raise
