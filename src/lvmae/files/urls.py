"""Paths and URLs: which is which, and the file system behind one."""

from __future__ import annotations

import logging
import os
from typing import Any

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


def is_url(path: str) -> bool:
    """Whether a path names its protocol, and is not to be joined or made absolute."""
    return "://" in path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is for fsspec; `file://` is a path of this machine."""
    return isinstance(path, str) and is_url(path) and not path.startswith("file://")
