"""Worker processes of this machine: how their supervisor starts them, talks to them and ends them.

A process is a fresh interpreter that runs one function of this package; it ends within a second of its minder.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lvmae.errors import WorkError

GONE = (EOFError, BrokenPipeError, ConnectionResetError)  # the other end of a connection
_ORPHAN_SECONDS = 0.5
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_STARTS = 3  # a process that ends while it starts is tried this often, before the machine is at fault


class Process:
    """The minder's side of a process that runs `function`, given as `module:name`.

    The function is called with the descriptor of its connection (see `connect`), the minder's process id, and the `descriptors`
    that are handed down to it, open. `threads` is how many its arithmetic takes; with one, results do not depend on how many
    processes there are.
    """

    def __init__(self, function: str, *, descriptors: Sequence[int] = (), threads: int = 1) -> None:
        ours, theirs = socket.socketpair()
        # A fresh interpreter instead of multiprocessing's: it does not run the user's script again, so scripts need no main guard.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment |= dict.fromkeys(_THREAD_SETTINGS, str(threads))
        module, _, name = function.partition(":")
        handed = [theirs.fileno(), *descriptors]
        arguments = ", ".join(map(str, [handed[0], os.getpid(), *handed[1:]]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import {name}; {name}({arguments})"],
            pass_fds=handed,
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C is for the minder, who decides
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.heard = time.monotonic()
        self.started = False

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it has died; that is noticed when it is heard next
            self.connection.send(message)

    def end(self) -> int:
        """Ends it at once; its exit code."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()

    def mourn(self) -> str:
        """How it ended, in words; it has closed its connection."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = self.end()
        self.connection.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class Starts:
    """Counts processes that ended before they could start. Raises WorkError at the third in a row."""

    def __init__(self, what: str) -> None:
        self._what, self._failed = what, 0

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self, how: str) -> None:
        self._failed += 1
        if self._failed == _STARTS:
            raise WorkError(
                f"{self._what} ended {_STARTS} times before it could start ({how}); is there enough memory for it?"
            )


def connect(descriptor: int, minder: int) -> Connection:
    """The process's side of the connection; from now on it ends when its minder has gone."""
    threading.Thread(target=_end_with, args=(minder,), daemon=True).start()
    return Connection(descriptor)


def _end_with(minder: int) -> None:
    """Ends this process when its minder has gone, whatever it is at: it may hang in a file and never hear that no one listens."""
    while os.getppid() == minder:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
