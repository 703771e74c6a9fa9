"""A model's answer -> its caption; and the part of a server's message that is safe to show.

Reasoning models think aloud, each family between marks of its own, and some servers send the closing mark alone because the opening
one is part of their prompt. The caption is what follows the thoughts.
"""

from __future__ import annotations

import re
import unicodedata

_THINK = r"(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|seed:think|scratchpad)"
# Where thoughts end; the caption is after the last of these.
_END_OF_THOUGHTS = re.compile(
    rf"""(?isx) </\s*{_THINK}\s*> | [\u25c1<]\s*/\s*{_THINK}\s*[\u25b7>] | \[/\s*{_THINK}\s*\]
    | <\|?\s*(?:END_THINKING|end_of_thought|/think|end_think)\s*\|?>
    | <\|channel\|>\s*final\s*(?:<\|constrain\|>[^<]*)?<\|message\|>
    | \[BEGIN\ FINAL\ RESPONSE\] | Here(?:'s|\ is)\ my\ response:
    """
)
_BEGIN_OF_THOUGHTS = re.compile(
    rf"""(?isx) \A\s*(?: <\s*{_THINK}\s*> | \u25c1\s*{_THINK}\s*\u25b7 | \[\s*{_THINK}\s*\]
    | <\|?\s*(?:START_THINKING|begin_of_thought|think)\s*\|?> | <\|(?:start|channel)\|>
    | Here(?:'s|\ is|\ are)\ my\ (?:thought\ process|reasoning\ steps):)
    """
)
_BARE_CHANNELS = re.compile(
    r"(?s)\Aanalysis(?=\S|\s).*?assistant\s*final\s*"
)  # of gpt-oss, where the server drops the marks
_ANSWER = re.compile(r"(?is)<answer>(.*?)(?:</answer>|\Z)")
_BOX = re.compile(r"(?s)\A\s*\\boxed\{(.*)\}\s*\Z")
_AFTER = re.compile(r"(?is)<\|(?:end|return|call|start)\|>.*\Z|\[END FINAL RESPONSE\].*\Z")
_MARKS = re.compile(
    r"<\|[\w-]{1,40}\|>|<\uff5c[^<>]{1,40}\uff5c>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn)>|</?answer>"
)
_STEERING = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def caption_in(answer: str) -> str | None:
    """The caption in one line; empty if there is none, and None if the answer holds only the model's reasoning."""
    text = answer
    ends = list(_END_OF_THOUGHTS.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    elif _BARE_CHANNELS.match(text):
        text = _BARE_CHANNELS.sub("", text)
    elif _BEGIN_OF_THOUGHTS.match(text):
        return None
    text = _AFTER.sub("", text)
    inside = _ANSWER.search(text)
    text = inside[1] if inside else text
    box = _BOX.match(_MARKS.sub("", text))
    caption = one_line(box[1] if box else _MARKS.sub("", text))
    return caption if caption or not ends else None


def one_line(text: str) -> str:
    """The text in one line, without characters that steer a terminal or turn its writing, and without halves of characters."""
    whole = _STEERING.sub("", text.encode("utf-8", "replace").decode())
    return " ".join(
        "".join(
            c if c.isspace() or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _BIDI) else "" for c in whole
        ).split()
    )


# --- keys --------------------------------------------------------------------------------------------------------------------


def without_key(text: str, key: str | None, *, least: int) -> str:
    """The text without the key, and without beginnings of it of `least` characters or more, masked to the end or not."""
    if not key or len(key) < least:
        return text
    text = text.replace(key, "[key]")
    if key[:least] in text:
        beginnings = "|".join(re.escape(key[:length]) for length in range(len(key) - 1, least - 1, -1))
        text = re.sub(rf"(?:{beginnings})[\w*.\u2026\u2022-]*", "[key]", text)
    ends = "|".join(re.escape(key[-length:]) for length in range(min(len(key), 12), 2, -1))
    return re.sub(rf"[*\u2022\u2026.]{{3,}}(?:{ends})\b", "[key]", text)
