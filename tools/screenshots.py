"""Takes the README's pictures of the report and the search page, light and dark: `python tools/screenshots.py demo`.

Enters: the folder that `lvmae demo` made. Leaves: docs/images/{report,search}-{light,dark}.png. Needs Chromium and playwright.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1280, "height": 800}
QUERY = "a cat"


def main(demo: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "lvmae", "serve", str(demo / "store"), "--port", str(port)])
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(address)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for scheme in ("light", "dark"):
                page = browser.new_context(viewport=SIZE, color_scheme=scheme).new_page()
                _report(page, demo / "report.html", IMAGES / f"report-{scheme}.png")
                _search(page, address, IMAGES / f"search-{scheme}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address).close()  # noqa: S310 - this machine's own address
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit("the search page did not start")


def _report(page: Any, report: Path, picture: Path) -> None:
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("#segment h3")
    for _ in range(4):
        page.keyboard.press("ArrowRight")  # to a segment within the first video
    top = page.evaluate("document.querySelector('#segment').getBoundingClientRect().top + window.scrollY")
    page.evaluate("top => window.scrollTo({top: top, behavior: 'instant'})", top - 330)
    page.wait_for_timeout(300)
    page.screenshot(path=picture)


def _search(page: Any, address: str, picture: Path) -> None:
    page.goto(address)
    page.wait_for_selector("#hits .tile")
    with page.expect_response(lambda answer: "/api/search" in answer.url):
        page.fill("#query", QUERY)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=picture)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
