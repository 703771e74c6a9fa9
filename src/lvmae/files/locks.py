"""One writer at a time: locks that a killed process does not leave behind."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from lvmae.errors import InputError, InUse
from lvmae.files.writing import reason


class Lock:
    """An exclusive lock, held from `take` to `release`; several in one process exclude each other too.

    Args:
        path: the lock's file; it stays when the lock is released, and means nothing by itself.
        busy: the sentence for a lock that another process holds.
    """

    def __init__(self, path: Path, busy: str) -> None:
        self.path, self._busy = path, busy
        self._lock = FileLock(path)

    def take(self, wait: float = 0.0) -> None:
        """Takes the lock, making its folder if there is none; waits for it `wait` seconds at most, for ever below 0.

        Raises:
            InUse: another process holds it.
            InputError: the folder cannot be written to.
        """
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=wait)
        except Timeout:
            raise InUse(self._busy) from None
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{folder} is a file where a folder is needed; choose another place") from None
        except (OSError, NotImplementedError) as error:
            raise InputError(f"{folder} cannot be written to ({reason(error)}); choose another place") from None

    def release(self) -> None:
        """Lets others take it; releasing a lock that is not held does nothing."""
        self._lock.release()
