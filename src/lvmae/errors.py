"""The two ways a command can end badly, and their exit codes.

Every error a user can cause carries one sentence that says what is wrong and what to do; the command line prints it without
a traceback. The model room does not use these: it ships alone and raises `ValueError`.
"""


class LVMAEError(Exception):
    """Base of all errors that are reported as one sentence."""

    exit_code = 1


class InputError(LVMAEError, ValueError):
    """The request cannot be carried out as given: wrong path, wrong file, wrong option. Exit code 2."""

    exit_code = 2


class WorkError(LVMAEError, RuntimeError):
    """The work was started and failed, in part or as a whole; what was done is kept. Exit code 1."""
