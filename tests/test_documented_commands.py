"""Each command of the README, the pages and the help texts is one that exists, with options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lvmae.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def documented(text: str) -> list[str]:
    """The command lines `lvmae ...` of a page's code blocks, without what is around them."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    found = [re.match(r"\s*(?:\$ |srun |torchrun [^;]*-m )?(?:python -m )?lvmae (\S.*)", line) for line in lines]
    return [match[1] for match in found if match]


COMMANDS = [
    pytest.param(line, id=f"{page.name}: {line}"[:80]) for page in PAGES for line in documented(page.read_text("utf-8"))
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_exists(line: str) -> None:
    arguments = shlex.split(line, comments=True)
    arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
    arguments = arguments[: arguments.index("|")] if "|" in arguments else arguments
    if arguments == ["COMMAND", "--help"]:
        return
    try:
        build_parser().parse_args(arguments)
    except SystemExit as stop:
        if stop.code:  # 0: it asks for help
            pytest.fail(f"lvmae {line}")


def test_what_counts_as_a_command() -> None:
    page = "text `lvmae no`\n\n    lvmae embed a --out b  # more\n\n```\n$ lvmae search \\\n  s x | head\n```\n"
    assert documented(page) == ["search  s x | head", "embed a --out b  # more"]


@pytest.mark.parametrize("line", ["embed a --out b --no-such-option", "no-such-command"])
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(pytest.fail.Exception):
        test_a_documented_command_exists(line)
