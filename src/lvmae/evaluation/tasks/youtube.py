"""The eleven characters of a video on YouTube, in the file names that downloaders give it."""

from __future__ import annotations

import re

from lvmae.evaluation.matching import bare_name

_BRACKETED = re.compile(r"\[([A-Za-z0-9_-]{11})\]$")  # yt-dlp: Title [id].mp4
_WHOLE = re.compile(r"[A-Za-z0-9_-]{11}")
_ADDRESS = re.compile(r"(?:[?&]v=|youtu\.be/|/(?:embed|shorts)/)([A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])")
_DASHED = re.compile(r".-([A-Za-z0-9_-]{11})$")  # youtube-dl: Title-id.mp4
_PREFIXED = re.compile(r"v_([A-Za-z0-9_-]{11})$")  # v_id.mp4, as ActivityNet and COIN's tools write


def youtube_id(name: str) -> str | None:
    """The id that a file's name or an address tells; None if it tells none."""
    if address := _ADDRESS.search(name):
        return address[1]
    last = bare_name(name)
    if _WHOLE.fullmatch(last):
        return last
    for pattern in (_BRACKETED, _PREFIXED, _DASHED):
        if found := pattern.search(last):
            return found[1]
    return None
