"""What all tests share: the reference material beside the checkout, and a cache of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from films import Filmer, write_film

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before anything loads torch

# Processes that tests start find the modules that tests share.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children too; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference checkpoint, films and annotation files; it lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the reference material (../shared) is not beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the tests' memory maps and extracted weights out of the user's cache."""
    os.environ["LVMAE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def film(tmp_path: Path) -> Filmer:
    """Writes a film into the test's folder: film("name.mp4", milliseconds, ...)."""
    return lambda name, *args, **kwargs: write_film(tmp_path / name, *args, **kwargs)
