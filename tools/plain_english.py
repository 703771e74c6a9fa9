"""Finds phrases that make readers stumble, in src, docs and the pages at the root: `python tools/plain_english.py`.

The phrases, and what to say instead, are in plain_english.tsv. The exit code is 1 if one is found.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READ = ("src/**/*.py", "src/**/*.html", "src/**/*.js", "docs/**/*.md", "*.md", "benchmarks/*.py", "examples/*.ipynb")
# Between two words: a space, or the end of a line with the comment mark or the quotes of two strings around it.
GAP = r"(?: | ?(?:\\n)?\"?,?\s*\n\s*(?:# ?|f?\"|\* ?)?)"


def main() -> int:
    with Path(__file__).with_suffix(".tsv").open(encoding="utf-8") as file:
        instead = {row["phrase"]: row["say instead"] for row in csv.DictReader(file, delimiter="\t")}
    patterns = {
        phrase: re.compile(r"\b" + GAP.join(map(re.escape, phrase.split())) + r"\b", re.I) for phrase in instead
    }
    found = 0
    for path in sorted(path for glob in READ for path in ROOT.glob(glob) if "vendor" not in path.parts):
        text = path.read_text(encoding="utf-8")
        for phrase, pattern in patterns.items():
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                print(f"{path.relative_to(ROOT)}:{line}: {phrase!r}: say {instead[phrase]!r}")
                found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
