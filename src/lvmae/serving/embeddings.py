"""`POST /v1/embeddings`, as OpenAI's and vLLM's clients ask it: texts, and videos by `video_url`."""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lvmae.encoding import encode_video
from lvmae.errors import InputError
from lvmae.library import Library
from lvmae.store import l2_normalize

MOST_BYTES = 64 << 20
"""Of a request's body."""
_MOST_TEXTS = 2048
_LONGEST = 100_000  # characters of a text
_AT_ONCE = 16  # segments
_STORE = "lvmae:"  # the scheme of the ids of the store


def embeddings(library: Library, body: bytes, *, model: str, allowed: Collection[str] = ()) -> dict[str, Any]:
    """The answer to a request, as OpenAI's API has it.

    Args:
        library: whose encoder is asked, and whose videos may be named as `lvmae:ID`.
        body: the request.
        model: the name that answers carry.
        allowed: hosts that videos may be fetched from.

    Raises:
        InputError: a request that makes no sense, or a video that cannot be read.
        WorkError: the video cannot be decoded.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the body is not JSON") from None
    if not isinstance(asked, dict):
        raise InputError("the body is not an object")
    form = asked.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise InputError("encoding_format is float or base64")
    if asked.get("dimensions") not in (None, library.store.dim):
        raise InputError(f"this model has {library.store.dim} dimensions")
    parts = _parts(asked)
    texts = [value for kind, value in parts if kind == "text"]
    of_texts = iter(l2_normalize(library.encoder.encode_text(texts)) if texts else ())
    vectors = [next(of_texts) if kind == "text" else _video(library, value, allowed) for kind, value in parts]
    if "messages" in asked and len(vectors) > 1:
        vectors = [l2_normalize(np.mean(vectors, axis=0))]  # a conversation has one vector
    words = sum(len(text.split()) for text in texts)
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": number, "embedding": _written(vector, form)}
            for number, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }


def _written(vector: np.ndarray, form: str) -> Any:
    values = np.asarray(vector, np.float32)
    return values.tolist() if form == "float" else base64.b64encode(values.astype("<f4").tobytes()).decode()


def _parts(asked: dict[str, Any]) -> list[tuple[str, str]]:
    """("text" or "video", text or URL) of what is to be embedded."""
    if "messages" in asked:
        parts = [part for message in _list(asked["messages"]) for part in _of_message(message)]
    else:
        given = asked.get("input")
        parts = [("text", text) for text in ([given] if isinstance(given, str) else _list(given))]
    if not parts or len(parts) > _MOST_TEXTS:
        raise InputError(f"give 1 to {_MOST_TEXTS} inputs")
    for kind, value in parts:
        if not isinstance(value, str) or not value.strip():
            raise InputError("an input is a text that is not empty; tokens are not taken")
        if kind == "text" and len(value) > _LONGEST:
            raise InputError(f"a text has at most {_LONGEST} characters")
    return parts


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InputError("give input as a text or a list of texts, or messages as a list")
    return value


def _of_message(message: Any) -> list[tuple[str, str]]:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [("text", content)]
    parts: list[tuple[str, str]] = []
    for given in _list(content):
        part: dict[str, Any] = given if isinstance(given, dict) else {}
        kind = part.get("type")
        if kind == "text":
            parts.append(("text", part.get("text", "")))
        elif kind == "video_url":
            where: Any = part.get("video_url", "")
            parts.append(("video", where.get("url", "") if isinstance(where, dict) else where))
        else:
            raise InputError("a part of a message is of type text or video_url")
    return parts


def _video(library: Library, url: str, allowed: Collection[str]) -> np.ndarray:
    """(D,): the mean of a video's segments."""
    if url.startswith(_STORE):
        try:
            place = library.store.index(url.removeprefix(_STORE))
        except KeyError:
            raise InputError("there is no such video in the store") from None
        mean: np.ndarray = l2_normalize(l2_normalize(library.store.embeddings(place)).mean(axis=0))
        return mean
    if url.startswith("data:"):
        head, _, data = url.partition(",")
        if not head.startswith("data:video/") or not head.endswith(";base64"):
            raise InputError("a data URL holds a video in base64: data:video/mp4;base64,...")
        try:
            content = base64.b64decode(data, validate=True)
        except (ValueError, binascii.Error):
            raise InputError("the data URL is not base64") from None
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(content)
            file.flush()
            return _encoded(library, file.name)
    parsed = urlsplit(url)
    if parsed.scheme not in ("http", "https") or parsed.hostname not in allowed:
        raise InputError(f"videos come as data: URLs or as {_STORE}ID of the store; other hosts have to be allowed")
    return _encoded(library, url)


def _encoded(library: Library, path: str | os.PathLike[str]) -> np.ndarray:
    segments = encode_video(library.encoder, library.store.manifest.segments, path, batch_size=_AT_ONCE)
    mean: np.ndarray = l2_normalize(segments.vectors.mean(axis=0))
    return mean
