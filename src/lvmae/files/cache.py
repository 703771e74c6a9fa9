"""The folder of what can be made again: memory maps, unpacked weights, vectors, indexes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where memory maps and unpacked weights are kept: `$LVMAE_CACHE`, or `~/.cache/lvmae`. Safe to delete."""
    return Path(os.environ.get("LVMAE_CACHE") or Path.home() / ".cache" / "lvmae")
