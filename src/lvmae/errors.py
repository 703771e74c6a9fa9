"""The ways a command can end badly, and their exit codes.

Every error a user can cause carries one sentence that says what is wrong and what to do; the command line prints it without
a traceback. The model room does not use these: it ships alone and raises `ValueError`.
"""


class LVMAEError(Exception):
    """Base of all errors that are reported as one sentence."""

    exit_code = 1


class InputError(LVMAEError, ValueError):
    """The request cannot be carried out as given: wrong path, wrong file, wrong option. Exit code 2."""

    exit_code = 2


class InUse(InputError):
    """What the request needs is held by another process: the same request succeeds once that has ended."""


class WorkError(LVMAEError, RuntimeError):
    """The work was started and failed, in part or as a whole; what was done is kept. Exit code 1."""


class OutageError(WorkError):
    """A server, a network or credentials fail, and nothing is wrong with the request: the same one succeeds later. Exit code 75."""

    exit_code = 75


class Terminated(KeyboardInterrupt):
    """The process was told to end (SIGTERM), and what was finished is kept. Exit code 143."""

    exit_code = 143
