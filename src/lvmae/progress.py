"""One look for all progress lines: rate and time left, on standard error, sparse where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from lvmae.process import is_terminal

_WATCHED_SECONDS = 0.2
_LOGGED_SECONDS = 15.0


def progress(
    iterable: Iterable[Any] | None = None, *, desc: str, unit: str, total: float | None = None, initial: float = 0
) -> Any:
    """A tqdm bar: `for x in progress(xs, ...)`, or `bar.update(n)` and `bar.set_postfix_str(...)`.

    On a terminal it is redrawn five times a second; in a log it writes a line every 15 seconds.
    """
    watched = is_terminal(sys.stderr)
    return tqdm(
        iterable,
        disable=not callable(getattr(sys.stderr, "write", None)),  # there may be no standard error
        desc=desc,
        unit=f" {unit}",
        total=total,
        initial=initial,
        file=sys.stderr,
        mininterval=_WATCHED_SECONDS if watched else _LOGGED_SECONDS,
        dynamic_ncols=watched,
        smoothing=0.1,
        leave=True,
    )
