"""Decides whether code that a store, a run or a recipe names may run: `module:Class` in somebody's data is somebody's program.

Built-in names and installed plugins need no permission. For the rest a caller gives it for a while (`trusting`), or the user
for good: `LVMAE_TRUST_CODE` lists what is trusted, with commas, as `module:Class` or `module` for all of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from lvmae.errors import InputError

VARIABLE = "LVMAE_TRUST_CODE"

_everything: ContextVar[bool] = ContextVar("trusts_everything", default=False)


class UntrustedCodeError(InputError):
    """Data names code that nobody has allowed to run."""


@contextlib.contextmanager
def trusting() -> Iterator[None]:
    """Within the block, allows code that stores and runs name; use it only if you trust their makers."""
    token = _everything.set(True)
    try:
        yield
    finally:
        _everything.reset(token)


def is_trusted(name: str) -> bool:
    """Whether the code `module:Class` may run."""
    module = name.partition(":")[0]
    listed = {entry.strip() for entry in os.environ.get(VARIABLE, "").split(",")}
    return _everything.get() or name in listed or module in listed


def require_trust(name: str, where: str) -> None:
    """Raises UntrustedCodeError where the code `name`, which stands in `where`, may not run."""
    if not is_trusted(name):
        raise UntrustedCodeError(
            f"{where} names the code {name!r}, and nothing of it was run: if you trust whoever made it, allow it (in Python "
            f"`with lvmae.trusting():`), or list {name} in the variable {VARIABLE}"
        )
