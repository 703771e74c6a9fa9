"""Memory for frames that processes of one machine share: slots of one size, each for one segment.

It has no name and is no part of /dev/shm, which containers keep small: an anonymous file in memory where the system has them
(Linux), else an unlinked one in the folder for temporary files. So nothing is left of it when its processes are killed.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from lvmae.errors import WorkError


class FrameMemory:
    """`slots` arrays uint8 of one `shape`, by number. Processes that were handed `descriptor` see the same ones."""

    def __init__(self, slots: int, shape: Sequence[int], descriptor: int | None = None) -> None:
        size = slots * math.prod(shape)
        self.slots = slots
        self.descriptor = _anonymous_file(size) if descriptor is None else descriptor
        self._owned = descriptor is None
        self._map = mmap.mmap(self.descriptor, size)
        self._frames = np.frombuffer(self._map, np.uint8).reshape(slots, *shape)

    def __getitem__(self, slot: int) -> np.ndarray:
        frames: np.ndarray = self._frames[slot]
        return frames

    def close(self) -> None:
        """Gives the memory back once every process has done so, or ended; its arrays must not be used afterwards."""
        if self._owned:
            os.close(self.descriptor)
            self._owned = False


def _anonymous_file(size: int) -> int:
    descriptor: int | None = None
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("lvmae-frames")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):  # now, with an error, and not later with a signal
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT):
            raise
        raise WorkError(
            f"There is no room for {size / 1e6:.0f} MB of frames on their way to the encoders ({error.strerror}): "
            "take fewer workers or a smaller batch size, or set TMPDIR to a folder with more room."
        ) from None
    return descriptor
