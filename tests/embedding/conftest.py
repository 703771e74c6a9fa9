"""Shared by the tests of the embedding room."""

from __future__ import annotations

from pathlib import Path

import pytest
from films import Filmer, write_film


@pytest.fixture
def film(tmp_path: Path) -> Filmer:
    """Writes a film into the test's folder: film("name.mp4", milliseconds, ...)."""
    return lambda name, *args, **kwargs: write_film(tmp_path / name, *args, **kwargs)
