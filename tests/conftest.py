"""What all tests share: the reference material beside the checkout, and a cache of their own."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from films import Filmer, write_film

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before anything loads torch

# Processes that tests start find the modules that tests share.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))

# The encoders of these tests, named in the stores that they write.
os.environ["LVMAE_TRUST_CODE"] = (
    "jobs,test_search,test_compare_and_fusion,test_chapters,test_serving,test_interpretation,test_encoders,test_internvideo2"
)

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children too; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
NO_BROWSER = "there is no Chromium: install it (Debian: apt-get install chromium)"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference checkpoint, films and annotation files; it lies beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the reference material (../shared) is not beside this checkout: put it there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the tests' memory maps and extracted weights out of the user's cache."""
    os.environ["LVMAE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def film(tmp_path: Path) -> Filmer:
    """Writes a film into the test's folder: film("name.mp4", milliseconds, ...)."""
    return lambda name, *args, **kwargs: write_film(tmp_path / name, *args, **kwargs)


@pytest.fixture(scope="module")  # its event loop must not outlive the module: others start their own
def browser() -> Iterator[Any]:
    """A running Chromium. Where it is missing, tests of pages are skipped; in CI that is a failure."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_BROWSER)
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=QUIET.split())
        yield running
        running.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Ends a run with one line that names what was skipped, and how to get it."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())
    )
    if reasons:
        told = "; ".join(f"{count} because {reason}" for reason, count in sorted(reasons.items()))
        terminalreporter.write_line(f"Skipped: {told}.")
