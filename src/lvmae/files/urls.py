"""Paths and URLs: which is which, and the file system behind one."""

from __future__ import annotations

import logging
import os
import re
from typing import Any
from urllib.parse import unquote

import fsspec

from lvmae.errors import InputError

for _client in (
    "gcsfs",
    "s3fs",
    "fsspec",
):  # their tracebacks are for those who set up logging; here an error is one sentence
    logging.getLogger(_client).addHandler(logging.NullHandler())

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # what installs the client of a scheme


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path within it. InputError for a scheme nobody here knows."""
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        extra = _EXTRAS.get(scheme)
        how = f"pip install 'lvmae[{extra}]'" if extra else str(error)
        raise InputError(f"{scheme}:// needs another package: {how}") from None
    except ValueError as error:
        raise InputError(f"cannot open {url}: {error}") from None
    return files, root


def in_utf8(path: str) -> str:
    """A path as text that can be stored: names of files may hold bytes that are no UTF-8, which become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_url(path: str) -> bool:
    """Whether a path names its protocol, and is not to be joined or made absolute."""
    return "://" in path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is for fsspec; `file://` is a path of this machine."""
    return isinstance(path, str) and is_url(path) and not path.startswith("file://")


# Names of parameters that grant access: of signed URLs of S3, Google, CloudFront, Azure, Aliyun and nginx, and tokens of any kind.
_SECRET = re.compile(
    r"""(?ix) ^(?: x-(?:amz|goog|oss|cos|ms|obs)-.* | q-.* | hdnts | hdnea | st | e
    | .*(?:signature|token|secret|passw|credential|apikey|api[-_]key|accesskey|access[-_]key|auth(?!or)|session|jwt).*
    | (?:.*[-_])?(?:sig|key|pwd|pass|sign|hmac|policy|expires|expiry|user|username|login) | key-pair-id | googleaccessid )$""",
)
_SHARED_ACCESS = {
    "sv",
    "ss",
    "srt",
    "sp",
    "se",
    "st",
    "spr",
    "sr",
    "si",
    "sip",
    "sdd",
    "ses",
    "rscd",
    "rsct",
}  # of Azure, by `sig`
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")  # container@account is a place here and nobody's name
_USER = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*)://[^/?#\s'\"<>]*@")
_PARAMETERS = re.compile(r"([?#])([^\s?#'\"<>]*=(?:[^\s?#'\"<>]*[^\s?#'\"<>:,.;)\]])?)")


def without_secrets(text: str) -> str:
    """A URL, or a text with URLs in it, without user names, passwords and signatures: fit to be stored, logged and printed."""
    if "://" not in text:
        return text
    text = _USER.sub(lambda url: url[0] if url[1].lower() in _CONTAINERS else f"{url[1]}://", text)
    return _PARAMETERS.sub(lambda part: _harmless(part[1], part[2]), text)


def _harmless(mark: str, parameters: str) -> str:
    names = {one.partition("=")[0].lower() for one in re.split("[&;]", parameters)}
    kept = [
        one
        for one in re.split("[&;]", parameters)
        if not (
            _SECRET.match(unquote(name := one.partition("=")[0])) or ("sig" in names and name.lower() in _SHARED_ACCESS)
        )
    ]
    return mark + "&".join(kept) if any(kept) else ""
