"""One request to an OpenAI-compatible chat endpoint: pictures in, one sentence out, and the handling of all errors.

Four ways it ends. An answer. `Unanswered`: this segment has no caption, others may. InputError or WorkError: no segment will have
one, so the run stops at once. And before `Unanswered`, retries with exponential backoff and jitter, or after as long as the server
asks to be left alone. What the server says is quoted in reasons, and the key is cut out of whatever it says.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from lvmae.captioning.answers import caption_in, one_line, without_key
from lvmae.errors import InputError, WorkError
from lvmae.files.urls import without_secrets

PROMPT = (
    "These pictures are frames, in order of time, of a few seconds of a longer video. Say in one or two plain sentences who or "
    "what is seen, where it is, and what happens. Answer with these sentences alone."
)
KEY_VARIABLES = ("LVMAE_API_KEY", "OPENAI_API_KEY")

_FIRST_WAIT, _LONGEST_BACKOFF = 1.0, 60.0  # seconds
_LONGEST_WAIT = 600.0  # seconds a server may ask for; beyond it, coming back later is better than sitting there
_LONGEST_CAPTION = 8000  # characters; more is a server gone astray, and too much for a reader of CSV at some point
_SECRET = 8  # characters; a shorter "key" is a word like "none" or "ollama", that a caption may contain
_BEGINNING = 4  # characters of a key that a server's remarks may not show
_RETRIED = frozenset({408, 409, 425, 429})  # and everything from 500 on
_NO_TO_CONTENT = re.compile(r"content[ _-]?(filter|policy|management)|moderation|flagged|safety", re.IGNORECASE)

_JITTER = random.Random()  # not the process's generator, which is the caller's


@dataclass(frozen=True)
class Answer:
    """A caption in one line, the tokens the server counted for it (0 if it does not), and whether it was cut at the limit."""

    text: str
    tokens_in: int
    tokens_out: int
    cut: bool


class Unanswered(Exception):
    """This segment got no caption, for the reason given. `refused`: because of what is in the pictures."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class _Again(Exception):
    """Worth another try, `wait` seconds from now if the server said so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Pace:
    """Lets requests start at most `per_minute` times a minute, evenly, and none before the server wants to hear of us again."""

    def __init__(
        self,
        per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = clock()
        self._clock, self._sleep = clock, sleep

    async def turn(self) -> None:
        """Returns when a request may start, and counts it."""
        while (wait := self._next - self._clock()) > 0:
            await self._sleep(wait)
        self._next = max(self._next, self._clock()) + self._interval

    def hold(self, seconds: float) -> None:
        """No request starts within the next `seconds`."""
        self._next = max(self._next, self._clock() + seconds)


def read_key() -> str | None:
    """The API key of the environment, if there is one. Raises InputError for one that no request can carry."""
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{name} holds characters that no key has; set it again")
            return key
    return None


class Endpoint:
    """A server and a model on it; an async context manager.

    Args:
        url: the address that /chat/completions is appended to, as http://127.0.0.1:11434/v1.
        model: the name the server knows it by.
        key: sent as the bearer token; None if the server wants none.
        max_tokens: the longest answer; 0 leaves it to the server.
        per_minute: requests that may start in a minute, retries included; None: any number.
        timeout: seconds for one request from its start to the last byte of its answer.
        retries: further tries of one segment.

    Raises:
        InputError: `url` is no plain address of the web, or the package `openai` is missing.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None,
        max_tokens: int,
        per_minute: float | None,
        timeout: float,
        retries: int,
    ) -> None:
        try:
            import openai

            from lvmae.captioning.measured import TooLong, bounded
        except ImportError:
            raise InputError("captions need the package openai; install it with pip install 'lvmae[caption]'") from None
        try:
            parts = urlsplit(url)
            plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            plain = plain and not (parts.query or parts.fragment or "@" in parts.netloc)
        except ValueError:
            plain = False
        if not plain:
            # Not quoted: it may hold a password.
            raise InputError(
                "`endpoint` must be an address like http://127.0.0.1:11434/v1, without user, password or query; "
                f"a key belongs into {KEY_VARIABLES[0]}"
            )
        self.shown = url
        self.model = model
        self.pace = Pace(per_minute)
        self._key, self._timeout, self._retries = key, timeout, retries
        self._limit = {"max_tokens": max_tokens} if max_tokens else {}
        self._answered = False
        self._openai, self._too_long = openai, TooLong
        self._client = openai.AsyncOpenAI(
            base_url=url.removesuffix("/").removesuffix("/chat/completions"),
            api_key=key or "none",  # the client wants one; servers that need none ignore it
            max_retries=0,  # retries are counted here, since each takes its turn in the rate limit
            timeout=timeout,
            # Nothing is sent to another address than the one that was given, and no answer is read beyond its measure.
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,
                timeout=timeout,
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [bounded]},
            ),
        )

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def describe(self, prompt: str, jpegs: Sequence[bytes]) -> Answer:
        """Asks about pictures in order of time.

        Raises:
            Unanswered: there is no caption for these pictures.
            InputError, WorkError: there will be none for any.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        for jpeg in jpegs:
            address = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
            content.append({"type": "image_url", "image_url": {"url": address}})
        for tried in range(self._retries + 1):
            await self.pace.turn()
            try:
                answer = await self._ask(content)
            except _Again as again:
                reason, wait = str(again), again.wait
            else:
                self._answered = True
                return answer
            if wait is not None:
                if wait > _LONGEST_WAIT:
                    raise WorkError(
                        f"{self.shown} asks for a pause of {wait / 60:.0f} minutes ({reason}); "
                        "rerun the same command then"
                    )
                self.pace.hold(wait)
            if tried < self._retries:
                backoff = min(_LONGEST_BACKOFF, _FIRST_WAIT * 2**tried)
                await asyncio.sleep(max(wait or 0.0, backoff * _JITTER.uniform(0.5, 1.0)))
        raise Unanswered(f"{reason}, {self._retries + 1} times" if self._retries else reason)

    async def _ask(self, content: list[dict[str, Any]]) -> Answer:
        """One request."""
        messages: Any = [{"role": "user", "content": content}]
        limit: Any = self._limit  # as it was sent: another request's answer may change it meanwhile
        try:
            async with asyncio.timeout(self._timeout):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self.model, messages=messages, **limit
                )
        except (TimeoutError, self._openai.APITimeoutError):
            raise _Again(f"no answer within {self._timeout:g} seconds") from None
        except self._openai.APIStatusError as error:
            raise self._judged(error.response, limit) from None
        except self._openai.APIConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, self._too_long):
                raise _Again(str(cause)) from None
            if type(cause).__name__ == "ConnectError" and not self._answered:
                raise InputError(
                    f"nothing answers at {self.shown} ({self._quoted(str(cause))}); start the server, or correct `endpoint`"
                ) from None
            said = self._quoted(str(cause)) if cause is not None else ""
            raise _Again(f"the connection broke ({said or type(cause).__name__})") from None
        except self._too_long as error:
            raise _Again(str(error)) from None
        return self._read(raw.http_response.text)

    def _judged(self, response: Any, limit: dict[str, int]) -> Exception:
        """What an answer that is no 200 means, to a request that was sent with `limit`."""
        status: int = response.status_code
        if 300 <= status < 400:
            to = without_secrets(self._quoted(response.headers.get("location", "elsewhere")))
            return InputError(
                f"{self.shown} sends requests on to {to}; frames go to no other address: give that one, if it is right"
            )
        try:
            body = json.loads(response.text)
        except (ValueError, RecursionError):
            body = None
        error = body.get("error", body) if isinstance(body, dict) else body
        message, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, None)
        # A page of HTML explains nothing in one sentence.
        said = self._quoted(message) if isinstance(message, str) else ""
        reason = f"the server said {status}" + (f": {said}" if said else "")
        if status == 401:
            # Its own text is left out: such answers repeat the key, or parts of it.
            variables = " or ".join(KEY_VARIABLES)
            if self._key is None:
                return InputError(f"{self.shown} wants a key; set {variables}")
            return InputError(f"{self.shown} does not take the key it was given; correct {variables}")
        if status in (400, 403, 422) and _NO_TO_CONTENT.search(f"{code} {said}"):
            return Unanswered(f"the content was refused ({reason})", refused=True)
        if status == 402 or code == "insufficient_quota":
            return WorkError(
                f"the account at {self.shown} is used up ({reason}); captions so far are kept: rerun the same command to resume"
            )
        if status == 403:
            return InputError(f"{self.shown} does not permit this ({reason}); try another key or model")
        if status in (404, 405):
            return InputError(
                f"{self.shown} knows no model {self.model!r}, or is no OpenAI-compatible endpoint ({reason}); "
                "correct `model`, or `endpoint`, which usually ends in /v1"
            )
        if status == 400 and "max_tokens" in limit and "max_completion_tokens" in said:
            # Newer hosted models know the limit by another name, local servers by this one.
            self._limit = {"max_completion_tokens": limit["max_tokens"]}
            return _Again(reason)
        if status in _RETRIED or status >= 500:
            return _Again(reason, _retry_after(response.headers))
        return Unanswered(reason)

    def _read(self, text: str) -> Answer:
        """The caption in the body of a 200."""
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise _Again("the answer was cut off or is no JSON") from None
        try:
            choice = body["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError):
            error = body.get("error") if isinstance(body, dict) else None
            said = self._quoted(error.get("message")) if isinstance(error, dict) else ""
            raise _Again(f"the answer holds no choice{f': {said}' if said else ''}") from None
        finish = choice.get("finish_reason")
        if refusal or finish == "content_filter":
            raise Unanswered(f"the content was refused: {self._quoted(refusal) or 'content_filter'}", refused=True)
        if isinstance(content, list):  # some servers answer in parts
            parts = [part for part in content if isinstance(part, dict)]
            content = " ".join(
                str(p.get("text") or "") for p in parts if p.get("type") not in ("thinking", "reasoning")
            )
        found = caption_in(content) if isinstance(content, str) else ""
        if found is None or (not found and (message.get("reasoning_content") or message.get("reasoning"))):
            cut = ", cut at `max_tokens`" if finish == "length" else ""
            raise _Again(f"the answer is thoughts alone, without a caption{cut}")
        caption = without_key(found, self._key, least=_SECRET)
        if not caption:
            raise _Again("the answer is empty" + (", cut at `max_tokens`" if finish == "length" else ""))
        if len(caption) > _LONGEST_CAPTION:
            raise _Again(f"an answer of {len(caption)} characters is no caption")
        usage = body.get("usage")
        tokens = usage if isinstance(usage, dict) else {}
        return Answer(caption, _count(tokens, "prompt"), _count(tokens, "completion"), finish == "length")

    def _quoted(self, said: object) -> str:
        """What a server said, in one line, without the key; the key goes first, so that no cut can leave a part of it."""
        line = one_line(str(said or ""))
        if self._key and len(self._key) >= _SECRET:
            line = without_key(line, self._key, least=_BEGINNING)
        return line if len(line) <= 200 else line[:200] + "..."


def _count(usage: dict[str, Any], kind: str) -> int:
    value = usage.get(f"{kind}_tokens")
    return value if isinstance(value, int) else 0


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the server wants to be asked again: a number, or a date."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds)
