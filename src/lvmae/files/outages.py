"""Decides whether a failed fsspec request is the fault of the file, or of the server, network or credentials."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from lvmae.files.urls import without_secrets

_OF_THE_SERVER = frozenset({401, 403, 407, 408, 425, 429})  # statuses below 500 that say nothing about the file


def is_outage(error: BaseException) -> bool:
    """Whether what a client of fsspec raises is about the server, the network or the credentials, and not about the file."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _OF_THE_SERVER or 300 <= status < 400
    links = list(_chain(error))
    if any(kind.__name__ in _CLIENT_ERRORS for link in links for kind in type(link).__mro__):
        return True  # fsspec calls a URL that it cannot ask for "not found"
    return isinstance(links[-1], OSError) and not isinstance(
        links[-1], FileNotFoundError | IsADirectoryError | NotADirectoryError
    )


# By name, because their packages need not be installed: aiohttp, botocore, gcsfs.
_CLIENT_ERRORS = frozenset({"ClientError", "BotoCoreError", "HTTPClientError", "HttpError", "FSTimeoutError"})


def is_refusal(error: BaseException) -> bool:
    """Whether access was refused; with time it comes back only where credentials do."""
    return isinstance(error, PermissionError) or _status(error) in (401, 403, 407)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it: clients wrap a server's answer, fsspec even as a file that is not there."""
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def _status(error: BaseException) -> int | None:
    """The HTTP status that a server gave, if it did."""
    for link in _chain(error):
        response = getattr(link, "response", None)  # botocore's
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        elif response is not None:  # requests' and httpx's, as the clients of hubs have them
            found = getattr(response, "status_code", None)
        else:
            found = getattr(link, "status" if hasattr(link, "status") else "code", None)
        if isinstance(response, dict) and found == 400:
            return 401  # so S3 says that a token has expired; to a HEAD without a word more
        if isinstance(found, int | str) and str(found).isdigit() and int(found):
            return int(found)
    return None


def retry_after(error: BaseException) -> float | None:
    """The seconds that the server asks to wait."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        headers = (
            response.get("ResponseMetadata", {}).get("HTTPHeaders")
            if isinstance(response, dict)
            else getattr(link if response is None else response, "headers", None)
        )
        stated = next((v for k, v in dict(headers or {}).items() if str(k).lower() == "retry-after"), None)
        if stated is None:
            continue
        with contextlib.suppress(ValueError, TypeError):
            if str(stated).strip().isdigit():
                return float(stated)
            return max(0.0, (parsedate_to_datetime(str(stated)) - datetime.now(UTC)).total_seconds())
    return None


def answer_of(error: BaseException) -> str:
    """What went wrong, in a line, without the URL's secrets: of an answer of a server its status."""
    status = _status(error)
    names = [type(link).__name__ for link in _chain(error)]
    if "TooManyRedirects" in names:
        return "the server redirects in circles"
    text = without_secrets(" ".join(str(error).split())) or type(error).__name__
    if status is not None:
        more = f" ({text})" if isinstance(error, OSError) and error.errno else ""
        return f"the server answered {status}{more}" + (", credentials may have expired" if is_refusal(error) else "")
    return f"{type(error).__name__}: {text}"


def passes_with_time(error: BaseException) -> bool:
    """Whether the same request succeeds later: an outage, or credentials that have expired; not those that were never good."""
    if not is_outage(error) or any("Credential" in type(link).__name__ for link in _chain(error)):
        return False
    words = " ".join(str(link) for link in _chain(error)).lower()
    return not is_refusal(error) or "expired" in words or "token" in words
