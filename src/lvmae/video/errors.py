"""Errors of video files: the file is bad, or cannot be reached now."""

from __future__ import annotations

from lvmae.errors import WorkError


class VideoError(WorkError):
    """Raised if a file cannot be used, or only in part; the message says why, for the table of failures.

    `decoded_until`: the end, in seconds, of the last segment that was yielded before; 0 if there is none.
    """

    decoded_until: float = 0.0


class Outage(VideoError):
    """A file cannot be reached now, which says nothing about the file: a server or network is down, slow, or refuses access."""
