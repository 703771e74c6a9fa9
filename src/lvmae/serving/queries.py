"""Searches of many visitors at once: those that wait are answered together, by one call of the text encoder and one product."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lvmae.errors import InputError
from lvmae.library import Library, Moment
from lvmae.library.filters import Filter

MOST_TOP = 200
"""Moments that one search may ask for."""
_LONGEST = 1000  # characters of a text
_TOGETHER = 64  # searches answered at once
_PARTS = 8  # filtered libraries that are kept
_TEXTS = 1024  # vectors of texts that are kept


@dataclass(frozen=True)
class Query:
    """What a visitor looks for: a text less another one, or a moment; where; and how much of it."""

    text: str = ""
    minus: str = ""
    moment: tuple[int, int] | None = None
    """(video, segment)."""
    vector: tuple[float, ...] = ()
    """Of a picture."""
    top: int = 24
    one_a_video: bool = False
    kept: Filter = field(default_factory=Filter)


def query_of(values: Mapping[str, str], tags: str) -> Query:
    """The query in a request's parameters. Raises InputError for one that makes no sense.

    Args:
        values: q, minus, top, group, folder, source, min_seconds, max_seconds, label, after, before.
        tags: the file whose labels `label` means.
    """
    group = values.get("group", "moment")
    if group not in ("moment", "video"):
        raise InputError(f"group is moment or video, not {group[:40]!r}")
    number = _number(values, "top")
    top = 24 if number is None else number
    if not 1 <= top <= MOST_TOP or top != int(top):
        raise InputError(f"top is a whole number from 1 to {MOST_TOP}")
    label = values.get("label", "")
    kept = Filter(
        folder=values.get("folder") or None,
        source=values.get("source") or None,
        min_seconds=_number(values, "min_seconds"),
        max_seconds=_number(values, "max_seconds"),
        labels=tags if label else None,
        label=(label,) if label else (),
        after=values.get("after") or None,
        before=values.get("before") or None,
    )
    text, minus = (" ".join(values.get(name, "")[:_LONGEST].split()) for name in ("q", "minus"))
    return Query(text, minus, top=int(top), one_a_video=group == "video", kept=kept)


def _number(values: Mapping[str, str], name: str) -> float | None:
    text = values.get(name, "")
    if not text:
        return None
    try:
        return float(text[:30])
    except ValueError:
        raise InputError(f"{name} is a number, not {text[:30]!r}") from None


class Searcher:
    """Answers queries in a thread of its own."""

    def __init__(self, library: Library) -> None:
        self.library = library
        _ = library.held  # now, so that the first query does not wait
        self.batches = 0
        self.answered = 0
        self._waiting: list[tuple[Query, asyncio.Future[list[Moment]]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._parts: OrderedDict[Filter, Library] = OrderedDict()
        self._vectors: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    async def __call__(self, query: Query) -> list[Moment]:
        """The moments of a query. Raises InputError if there are none to be had."""
        future: asyncio.Future[list[Moment]] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            batch = [one for one in batch if not one[1].cancelled()]
            answers = await loop.run_in_executor(self._thread, self._answers, [query for query, _ in batch])
            self.batches, self.answered = self.batches + 1, self.answered + len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _answers(self, queries: list[Query]) -> list[list[Moment] | Exception]:
        try:
            vectors = self._vectors_of(queries)
        except Exception as error:  # of the encoder: each of them is told
            return [error] * len(queries)
        answers: list[list[Moment] | Exception] = [[] for _ in queries]
        groups: dict[tuple[Filter, int, bool], list[int]] = {}
        for place, query in enumerate(queries):
            if query.vector or query.moment is not None or query.text:
                groups.setdefault((query.kept, query.top, query.one_a_video), []).append(place)
        for (kept, top, one_a_video), places in groups.items():
            try:
                asked = np.stack([np.asarray(vectors[place]) for place in places])
                found = self._part(kept).moments_of_many(asked, top, one_a_video=one_a_video)
            except Exception as error:
                for place in places:
                    answers[place] = error
                continue
            for place, moments in zip(places, found, strict=True):
                answers[place] = moments
        return answers

    def _vectors_of(self, queries: list[Query]) -> list[np.ndarray | None]:
        """A vector each; None if nothing is asked. One call of the text encoder for all texts that are new."""
        asked = {(query.text, query.minus) for query in queries if query.text}
        new = [pair for pair in asked if pair not in self._vectors]
        if new:
            for pair, vector in zip(new, self.library.vectors_of(new), strict=True):
                self._vectors[pair] = vector
        found: list[np.ndarray | None] = []
        for query in queries:
            if query.vector:
                found.append(np.array(query.vector, np.float32))
            elif query.moment is not None:
                video, segment = query.moment
                found.append(np.asarray(self.library.store.embeddings(video, segment, segment + 1)[0], np.float32))
            else:
                found.append(self._vectors[query.text, query.minus] if query.text else None)
        while len(self._vectors) > _TEXTS:
            self._vectors.popitem(last=False)
        return found

    def vector_of(self, text: str) -> np.ndarray:
        """(D,): the vector of a text, which is mostly known from the search that came before."""
        known = self._vectors.get((text, ""))
        return self.library.vector_of(text) if known is None else known

    def _part(self, kept: Filter) -> Library:
        if not kept:
            return self.library
        if kept.label:  # tags change while the page is open
            return self.library.only(kept.videos(self.library.store))
        if kept not in self._parts:
            self._parts[kept] = self.library.only(kept.videos(self.library.store))
            while len(self._parts) > _PARTS:
                self._parts.popitem(last=False)
        return self._parts[kept]

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
