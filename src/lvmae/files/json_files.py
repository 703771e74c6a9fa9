"""JSON that somebody else may have written, damaged or filled with odd things: read, or refused in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from lvmae.errors import InputError
from lvmae.files.writing import reason


def read_object(path: str | os.PathLike[str], what_to_do: str = "restore it") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read, or holds something else; the sentence ends in `what_to_do`.
    """
    try:
        return parse_object(Path(path).read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{os.fspath(path)} cannot be read ({reason(error)}); {what_to_do}") from None


def read_lines(path: str | os.PathLike[str], what_to_do: str = "restore it") -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; a last line without an end is what a crash left, and is left out.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read, or a line holds something else.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be read ({reason(error)}); {what_to_do}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse_object(line))
        except ValueError as error:
            said = f"line {number} of {os.fspath(path)} is damaged ({reason(error)}); {what_to_do}"
            raise InputError(said) from None
    return found


def parse_object(content: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises ValueError if it is none, whatever is wrong with it."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return cast(dict[str, Any], value)
