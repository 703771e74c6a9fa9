"""Screenshots of the search page, for docs: each view on a desktop and a phone, light and dark. Prints the files.

python benchmarks/screenshots.py STORE docs/pictures
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

VIEWS = {
    "search": "#q=a%20red%20motorbike",
    "moment": "#q=a%20red%20motorbike&v=0&s=3",
    "library": "#q=&view=library",
    "map": "#q=&view=map",
}


def main() -> None:
    """Takes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("out", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lvmae", "serve", arguments.store, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    with sync_playwright() as playwright:
        browser: Any = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for kind, scheme, size in (("desktop", "light", (1200, 900)), ("phone", "dark", (390, 844))):
            options = {"viewport": {"width": size[0], "height": size[1]}, "color_scheme": scheme}
            for view, state in VIEWS.items():
                page = browser.new_context(**options).new_page()
                page.on("pageerror", lambda error: print("error:", error, file=sys.stderr))
                page.goto(f"{address}{state}")
                page.wait_for_load_state("networkidle")
                page.wait_for_timeout(1500)
                path = arguments.out / f"serve-{view}-{kind}.png"
                with Image.open(io.BytesIO(page.screenshot())) as picture:
                    picture.convert("RGB").quantize(64).save(path, optimize=True)
                print(path)
                page.context.close()
        browser.close()
    server.terminate()
    server.wait()


if __name__ == "__main__":
    main()
