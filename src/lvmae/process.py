"""The state that a call shares with its process: signals, standard streams, and the state of torch and numpy.

Whatever a library call changes here it puts back, and nothing that the caller has set changes what it computes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

EVENTS = "lvmae.events"
"""The logger of what happens to each file, which says too much for a terminal."""

Handler = Callable[[int, FrameType | None], Any]


def is_terminal(stream: Any) -> bool:
    """Whether somebody reads or types at a standard stream; False for one that is None, closed, or has no `isatty`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def say(text: str) -> None:
    """Prints a line on standard error, if there is one that can be written to."""
    stream = sys.stderr
    with contextlib.suppress(AttributeError, ValueError, OSError):
        if stream is not None:
            stream.write(text + "\n")
            stream.flush()


def tell_event(kind: str, text: str, **facts: Any) -> None:
    """Logs something that happened as a record that programs read: to the logger `lvmae.events`, with `facts` as its attribute."""
    logging.getLogger(EVENTS).info("%s", text, extra={"facts": {"event": kind, **facts}})


@contextlib.contextmanager
def handling_signals(handlers: Mapping[signal.Signals, Handler]) -> Iterator[Callable[[int], None]]:
    """Has signals handled by `handlers` within the block; yields a function that gives one signal back before its end.

    Does nothing outside the main thread, and leaves alone a signal whose handler was not installed from Python, because
    such a handler cannot be put back.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if signal.getsignal(number) is not None:
                before[number] = signal.signal(number, handler)

    def give_back(number: int) -> None:
        if number in before:
            signal.signal(number, before[number])

    try:
        yield give_back
    finally:
        for each in before:
            give_back(each)


@contextlib.contextmanager
def own_state(*, environment: bool = True) -> Iterator[None]:
    """The state that our arithmetic counts on within the block, and the caller's after it. Also a decorator.

    Within: float32 and the CPU as torch's defaults, gradients on, no autocast, no inference mode, numpy's usual reaction to
    overflow and division by 0. After: these, the generators of torch, numpy and `random`, torch's threads, the filters of
    warnings and, but for `environment=False`, the environment's variables are as they were.
    """
    import numpy as np

    with contextlib.ExitStack() as stack:
        if environment:
            stack.callback(_restore_environment, dict(os.environ))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        if sys.stderr is None:  # libraries that we call draw progress on it
            stack.callback(setattr, sys, "stderr", None)
            sys.stderr = stack.enter_context(Path(os.devnull).open("w"))
        if "torch" in sys.modules:  # else nobody has changed anything in it
            stack.enter_context(_own_torch())
        yield


@contextlib.contextmanager
def _own_torch() -> Iterator[None]:
    import torch

    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        torch.set_default_dtype(torch.float32)
        # Entered only where they change something: a device as a context costs time at every call into torch.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
