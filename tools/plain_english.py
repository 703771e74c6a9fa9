"""Finds phrases that make readers stumble, in src, docs and the pages at the root: `python tools/plain_english.py`.

The phrases and what to say instead are in plain_english.tsv. Exit code 1 where one is found.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READ = ("src/**/*.py", "src/**/*.html", "src/**/*.js", "docs/**/*.md", "*.md", "benchmarks/*.py", "examples/*.ipynb")


def main() -> int:
    with Path(__file__).with_suffix(".tsv").open(encoding="utf-8") as file:
        instead = {row["phrase"]: row["say instead"] for row in csv.DictReader(file, delimiter="\t")}
    pattern = re.compile(
        r"\b(" + "|".join(map(re.escape, sorted(instead, key=len, reverse=True))) + r")\b", re.IGNORECASE
    )
    found = 0
    for path in sorted(path for glob in READ for path in ROOT.glob(glob) if "vendor" not in path.parts):
        # A phrase may be broken over two lines, by a comment mark or by the quotes of two strings.
        text = path.read_text(encoding="utf-8")
        flat = re.sub(r"\n[ \t]*(#|f?\")?[ \t]*", lambda match: " " + "\0" * (len(match[0]) - 1), text)
        for match in pattern.finditer(flat.replace("\0", "")):
            phrase = match[0]
            line = _line_of(text, phrase)
            print(f"{path.relative_to(ROOT)}:{line}: {phrase!r}: say {instead[phrase.lower()]!r}")
            found += 1
    return 1 if found else 0


def _line_of(text: str, phrase: str) -> int:
    """The first line that holds the phrase's first word; close enough to find it."""
    place = text.find(phrase)
    if place < 0:
        place = max(text.find(phrase.split(maxsplit=1)[0]), 0)
    return text.count("\n", 0, place) + 1


if __name__ == "__main__":
    sys.exit(main())
