"""The work left to hand out, the results of processes that died, and the parts of shared films."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lvmae.embedding.pipeline import Advanced, Event, Postponed, joined
from lvmae.embedding.sources import VideoFile
from lvmae.files.identity import stat_of
from lvmae.files.urls import is_remote
from lvmae.store import Failure, VideoRecord

_ATTEMPTS = 2  # tries of a file whose process died


class Ledger:
    """The files of a job, whole or in parts, until each has ended."""

    def __init__(self, files: list[VideoFile]) -> None:
        self.queue = deque(files)
        self._deaths: Counter[VideoFile] = Counter()
        # Parts of films that are shared, by id; those given up are not here.
        self._parts: dict[str, dict[int, VideoRecord]] = {}
        self._fractions: dict[str, dict[int, float]] = {}
        for file in files:
            if file.parts > 1:
                self._parts[file.id], self._fractions[file.id] = {}, {}

    def wanted(self, file: VideoFile) -> bool:
        """Whether what becomes of a file or part still matters; a part does not once its film was given up."""
        return file.parts == 1 or file.id in self._parts

    def heard(self, file: VideoFile, event: Event) -> Iterator[tuple[VideoFile, Event]]:
        """What a process said of a file or a part, as events of whole files."""
        if file.parts == 1:
            yield file, event
            return
        film, parts = replace(file, part=0, parts=1), self._parts.get(file.id)
        if parts is None:
            return  # no longer a shared film; this part was still in work
        if isinstance(event, Advanced):
            fractions = self._fractions[file.id]
            fractions[file.part] = event.fraction
            yield film, replace(event, fraction=sum(fractions.values()) / file.parts)
        elif isinstance(event, VideoRecord):
            parts[file.part] = event
            if len(parts) == file.parts:
                yield film, joined([parts[part] for part in range(file.parts)])
                del self._parts[file.id]
        elif isinstance(event, Postponed):
            self._give_up(file.id)
            yield film, event
        else:  # one process does it all over, so that what becomes of a damaged film does not depend on how it was shared
            self._give_up(file.id)
            self.queue.appendleft(film)

    def died(self, held: Sequence[VideoFile], how: str) -> Iterator[tuple[VideoFile, Event]]:
        """A process has gone. The last file that it held is suspect, the others are tried again."""
        suspect = self._take_back(held)
        self._deaths[suspect] += 1
        if self._deaths[suspect] < _ATTEMPTS:
            self.queue.appendleft(suspect)
        else:
            yield from self.blamed(suspect, f"its process was ended {_ATTEMPTS} times while decoding it ({how})")

    def silent(self, held: Sequence[VideoFile], seconds: float) -> Iterator[tuple[VideoFile, Event]]:
        """A process was ended because nothing was heard of it."""
        suspect = self._take_back(held)
        reason = f"decoding made no progress for {seconds:g} s and was ended"
        if not is_remote(suspect.path):
            yield from self.blamed(suspect, reason)
        elif self.wanted(suspect):  # it is its server that is silent, as a rule
            self._give_up(suspect.id)
            postponed = Postponed(suspect.id, suspect.source, reason, outage=True)
            yield replace(suspect, part=0, parts=1), postponed

    def _take_back(self, held: Sequence[VideoFile]) -> VideoFile:
        self.queue.extendleft(file for file in held[:-1] if self.wanted(file))
        return held[-1]

    def blamed(self, file: VideoFile, reason: str) -> Iterator[tuple[VideoFile, Event]]:
        """A file is a failure for what it did to a process."""
        if self.wanted(file):
            self._give_up(file.id)
            yield replace(file, part=0, parts=1), Failure(file.id, file.source, reason, identity=stat_of(file.path))

    def _give_up(self, film: str) -> None:
        """No more is done in parts on a shared film; what there is of it is forgotten."""
        if self._parts.pop(film, None) is not None:
            self.queue = deque(file for file in self.queue if file.id != film)
