"""Watches a process and all that it started, from outside its code: memory, open files, zombies. Linux only (/proc)."""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_PROC = Path("/proc")


@dataclass
class Sample:
    """One look: mebibytes and counts by process id."""

    seconds: float
    pss: dict[int, float]  # proportional set size, MiB: memory that is shared counts once over all processes
    files: dict[int, int]
    zombies: int


@dataclass
class Watch:
    """A context in which this process and its descendants are looked at every `every` seconds."""

    every: float = 1.0
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self.every):
            alive, zombies = family(os.getpid())
            pss = {pid: size for pid in alive if (size := _pss(pid)) is not None}
            files = {pid: open_files(pid) for pid in alive}
            self.samples.append(Sample(time.monotonic() - self._began, pss, files, zombies))

    @property
    def peak(self) -> float:
        """MiB of all processes together, at most."""
        return max((sum(sample.pss.values()) for sample in self.samples), default=0.0)

    def by_quarter(self) -> list[int]:
        """MiB of all processes together, the median of each quarter of the time: a leak shows as a slope."""
        totals = [sum(sample.pss.values()) for sample in self.samples]
        edges = [len(totals) * i // 4 for i in range(5)]
        return [round(statistics.median(totals[a:b])) for a, b in itertools.pairwise(edges) if b > a]


def family(root: int) -> tuple[list[int], int]:
    """The process and its descendants that are alive, and the number of descendants that nobody has waited for."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            parents[int(entry.name)] = int(fields[1]), fields[0]
    alive, zombies, known = [root], 0, {root}
    grown = True
    while grown:
        grown = False
        for pid, (parent, state) in parents.items():
            if parent in known and pid not in known:
                known.add(pid)
                grown = True
                if state == "Z":
                    zombies += 1
                else:
                    alive.append(pid)
    return alive, zombies


def _pss(pid: int) -> float | None:
    try:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def open_files(pid: int) -> int:
    """How many files, sockets and pipes a process has open; 0 if it has ended."""
    try:
        return len(list((_PROC / str(pid) / "fd").iterdir()))
    except OSError:
        return 0
