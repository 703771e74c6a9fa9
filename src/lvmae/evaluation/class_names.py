"""Classes as people write them -> one name a class.

What nobody can see is merged and said: Unicode forms, kinds and amounts of white space, characters without a picture,
`1` and `1.0`, `TRUE` and `True`. What looks alike or differs in case alone may be meant, and is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from lvmae.errors import InputError

# As spreadsheets, R, SQL and pandas write that there is no value.
_MISSING = frozenset(
    """na n/a n.a. #n/a #na <na> nan -nan nat null #null! nil 1.#ind -1.#ind 1.#qnan -1.#qnan
    #value! #ref! #div/0! #name?""".split()  # noqa: SIM905 (a list of 19 strings reads worse)
)
_INVISIBLE = dict.fromkeys(  # soft hyphens, spaces of no width, marks of direction
    [0x00AD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_PLAIN_DECIMAL = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.(\d*?)0*)?", re.ASCII)
_ALIKE = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеіјорсухѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧοѵԁԛԝ" + "‐‑‒–—―−’‘`´“”",
    "ABESIJKMHOPCTYXaeijopcyxsABEZHIKMNOPTYXovdqw" + "-------''''" + '""',
)


def is_missing(label: str) -> bool:
    """Whether a label says that there is none: empty, NA, N/A, NULL, NaN, None and their kin."""
    return not label or label == "None" or label.casefold() in _MISSING


def as_number(label: str) -> float | None:
    """The number that a label is, "inf" among them; None if it is none."""
    text = label.strip()
    if _NUMBER.fullmatch(text) or text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return float(text)
    return None


def one_name_a_class(labels: Sequence[str], source: object) -> tuple[list[str], list[str]]:
    """Each label under its class's one name, and a sentence about each class that was written in several ways.

    Raises:
        InputError: for two classes that differ in case alone, or in characters that look alike.
    """
    keys = [_key(label) for label in labels]
    spellings: dict[str, Counter[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        spellings.setdefault(key, Counter())[label.strip()] += 1
    names: dict[str, str] = {}
    said: list[str] = []
    for key, written in spellings.items():
        names[key] = visible(_best(written))
        if len(written) > 1:
            ways = ", ".join(f"{label!r} ({count})" for label, count in sorted(written.items()))
            said.append(f"One class, {names[key]!r}, was written in {len(written)} ways: {ways}.")
    by_look: dict[str, str] = {}
    for key, name in names.items():
        other = by_look.setdefault(_look(key), name)
        if other != name:
            raise InputError(
                f"the classes {other!r} and {name!r} in {source} differ only in case or in characters that look alike "
                f"({_differing(other, name)}); write them in one way, or name them apart"
            )
    return [names[key] for key in keys], said


def _best(written: Counter[str]) -> str:
    """Of several spellings the shortest, and of these the most frequent: 1 of 1 and 1.0, True of TRUE and True."""
    return min(written, key=lambda one: (len(visible(one)), -written[one], one != one.capitalize(), one))


def visible(label: str) -> str:
    """A label without what cannot be seen: one Unicode form (NFC), single plain spaces, no characters without a picture."""
    return " ".join(unicodedata.normalize("NFC", label).translate(_INVISIBLE).split())


def _key(label: str) -> str:
    """The same for labels that are one class."""
    text = visible(label)
    if text.casefold() in ("true", "false"):
        return text.casefold()
    plain = _PLAIN_DECIMAL.fullmatch(text)
    if plain:  # 1.0 and 1, 2.50 and 2.5
        return plain[1] + (f".{plain[2]}" if plain[2] else "")
    return text


def _look(key: str) -> str:
    number = as_number(key)
    if number is not None:
        return repr(number)
    folded = unicodedata.normalize("NFKC", key).translate(_ALIKE).casefold()
    return " ".join(folded.translate(_INVISIBLE).split())


def _differing(one: str, other: str) -> str:
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a != b][:1]
    told = [f"{a!r} is {unicodedata.name(a, 'unnamed')}, {b!r} {unicodedata.name(b, 'unnamed')}" for a, b in pairs]
    return told[0] if told else f"of {len(one)} and {len(other)} characters"
