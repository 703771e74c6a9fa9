"""Several commands as one: each is printed as a person would type it, and then run in this process."""

from __future__ import annotations

import shlex
import time

from lvmae.errors import LVMAEError


class StepFailedError(LVMAEError):
    """A command ended badly, having said why; the exit code is its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def run_step(*arguments: object, allowed: tuple[int, ...] = (0,)) -> int:
    """Prints one command, runs it, and returns its exit code.

    Raises:
        StepFailedError: the exit code is not among `allowed`.
    """
    from lvmae.cli import main

    argv = [str(argument) for argument in arguments]
    line = shlex.join(["lvmae", *argv])
    print(f"\n$ {line}", flush=True)
    began = time.monotonic()
    code = main(argv)
    if code not in allowed:
        raise StepFailedError(f"the step `{line}` failed; rerun the whole command to resume there", code)
    print(f"({time.monotonic() - began:.0f} s)", flush=True)
    return code
