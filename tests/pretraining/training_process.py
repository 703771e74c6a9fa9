"""What runs in the processes of these tests: a training, alone or as one of several, that may be killed at a chosen spot."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from lvmae.errors import LVMAEError
from lvmae.pretraining import pretrain
from lvmae.recipes import Recipe


def train(
    store: Path,
    out: Path,
    recipe: Recipe,
    *,
    spot: tuple[str, int, str] | None = None,
    largest_file: int | None = None,
    launched: tuple[int, int, int] | None = None,
) -> None:
    """Trains; an error's sentence goes to `<out>.said`, its exit code is the process's.

    `spot` names a function, which call of it, and when to die of SIGKILL or stop by SIGINT. `largest_file` is what the disk
    has room for. `launched` is (rank, world, port), as torchrun says it.
    """
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for loader workers; inherited is a server that imports all again
    if launched is not None:
        rank, world, port = map(str, launched)
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if spot is not None:
        _arm(*spot)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        pretrain(store, out, recipe=recipe)
    except LVMAEError as error:
        Path(f"{out}.said").write_text(str(error))
        sys.exit(error.exit_code)


def _arm(function: str, call: int, when: str) -> None:
    module_name, _, path = function.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return real(*args, **kwargs)
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        result = real(*args, **kwargs)
        if when == "half a file":
            os.truncate(args[1], args[1].stat().st_size // 2)
        if when == "half a line":
            folder = args[0]
            os.ftruncate(folder._metrics, os.fstat(folder._metrics).st_size - 20)
        if when != "interrupted":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)
