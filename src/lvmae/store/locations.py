"""Where a store's videos are now: sources are kept as they were given, and a store travels.

A relative source is looked for below the folder that `embed` ran in, and below the folders around the store. Roots that
`lvmae relocate` named come first: a source is found there by as much of the end of its path as there is. Roots and folders are in
`locations.json` beside the manifest. Nothing of a store's rows changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmae.errors import InputError
from lvmae.files.urls import is_remote
from lvmae.files.writing import write_json
from lvmae.store.reader import EmbeddingStore

FILE = "locations.json"


@dataclass(frozen=True)
class Relocation:
    """The result of `relocate`: how many local videos are found, and the first of those that are not."""

    found: int
    missing: tuple[str, ...]


def remember_folder(store: str | os.PathLike[str]) -> None:
    """Records the working directory, the base of relative sources, in a store's folder; the first record stays."""
    known = _read(os.fspath(store))
    here = os.fspath(Path.cwd())
    if here not in known["folders"] and not is_remote(os.fspath(store)):
        _write(store, {**known, "folders": [*known["folders"], here]})


def located(store: EmbeddingStore, source: str) -> str:
    """Returns the path or URL at which a source can be read now; the source itself if it is not found."""
    if not source or is_remote(source):
        return source
    plain = source.removeprefix("file://")
    for path in _places(store.path, plain):
        if path.is_file():
            return os.fspath(path)
    return source


def why_missing(store: EmbeddingStore, source: str) -> str:
    """Returns a sentence why a source cannot be read, and what to do; empty if it can."""
    if not source:
        return "this store does not say where the video is"
    if is_remote(source):
        return "the video is on another server, which this page does not ask"
    if Path(located(store, source)).is_file():
        return ""
    return f"there is no file {source}; if it has moved, run `lvmae relocate {store.path} --to FOLDER`"


def relocate(store: str | os.PathLike[str] | EmbeddingStore, root: str | os.PathLike[str]) -> Relocation:
    """Makes a store look for its videos below `root` first.

    Args:
        store: a store on this machine.
        root: the folder that holds the videos now, or a folder above it.

    Raises:
        InputError: there is no such folder, none of the store's videos is below it, or the store is in a bucket.
    """
    store = EmbeddingStore.open(store)
    if is_remote(store.path):
        raise InputError(f"{store.path} is not on this machine, so nothing can be noted in it")
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    known = _read(store.path)
    sources = [source for record in store if (source := record.source) and not is_remote(source)]
    if not any(path.is_file() for source in sources for path in _below(folder, source)):
        raise InputError(f"none of the {len(sources)} local videos of {store.path} is below {folder}")
    roots = [os.fspath(folder), *(one for one in known["roots"] if one != os.fspath(folder))]
    _write(store.path, {**known, "roots": roots})
    missing = tuple(source for source in sources if not Path(located(store, source)).is_file())
    return Relocation(len(sources) - len(missing), missing)


def _places(store: str, source: str) -> Iterator[Path]:
    """Where a local source may be, the likeliest first."""
    known = _read(store)
    for root in known["roots"]:
        yield from _below(Path(root), source)
    path = Path(source)
    if path.is_absolute():
        yield path
        return
    yield from (Path(folder) / path for folder in known["folders"])
    home = Path(store).absolute()
    for folder in (home.parent, home, *home.parent.parents):
        yield folder / path
    yield path


def _below(root: Path, source: str) -> Iterator[Path]:
    """`root` with the end of a source's path, as much of it as may be first; never above `root`."""
    parts = [part for part in Path(source.removeprefix("file://")).parts if part not in ("/", "..", ".")]
    for first in range(len(parts)):
        yield root.joinpath(*parts[first:])


def _read(store: str) -> dict[str, list[str]]:
    empty: dict[str, list[str]] = {"roots": [], "folders": []}
    if is_remote(store):
        return empty
    try:
        found: Any = json.loads((Path(store) / FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return empty
    if not isinstance(found, dict):
        return empty
    return {
        name: [one for one in found.get(name) or () if isinstance(one, str)]
        if isinstance(found.get(name), list)
        else []
        for name in empty
    }


def _write(store: str | os.PathLike[str], known: dict[str, list[str]]) -> None:
    write_json(Path(store) / FILE, known)
