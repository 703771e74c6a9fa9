"""The inputs of an embedding job: folders, files, URLs and manifests -> a list of videos, each with an id.

A manifest is a table (CSV, TSV or Parquet, told by its suffix) with a column `path` and, where wanted, `id`, `start` and `end`: a
row is a video, or the clip of one from `start` to `end` seconds. Paths in it are relative to it. Other columns are left alone.
Nothing is opened here but folders and manifests: a path in a manifest that leads nowhere ends as a failure with a reason, like
any other bad file.

An id is made of the path below the folder that was given, without suffix; the suffix stays where another video beside the file has
the same name. A source that a store has keeps the id that it has there. Where an id would mean two videos, of this call or of this
call and the store, each gets as many of the folders above it as tell them apart.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from lvmae.embedding.folders import LOOKED_FOR, LeftOut, behind_url, in_folder, looks_like_video
from lvmae.errors import InputError
from lvmae.files.identity import UNKNOWN, FileIdentity, stat_of
from lvmae.files.table_files import cell_text, read_table
from lvmae.files.urls import in_utf8, is_url, without_secrets
from lvmae.store import StoredSources, in_share, path_names, source_key

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
_COLUMNS = ("path", "id", "start", "end")


@dataclass(frozen=True)
class VideoFile:
    """A video to embed, or a clip of one.

    Its `id` is its path below the folder it was found in, without suffix, in POSIX form, or what a manifest calls it. `part` of
    `parts` is the stretch of its timeline that is meant, all but equal in segments, so that several workers can share a long film.
    """

    id: str
    path: str
    """A path of this machine, or a URL."""
    start: float | None = None
    """Seconds of the file at which the clip starts; None: at its start."""
    end: float | None = None
    """Seconds of the file at which the clip ends; None: at its end."""
    part: int = 0
    parts: int = 1
    listed: FileIdentity = field(default=UNKNOWN, compare=False)
    """What a listing told about the file."""

    @property
    def source(self) -> str:
        """The path as a store can hold it: bytes that are no UTF-8 are written as escapes."""
        return in_utf8(self.path)

    def now(self) -> FileIdentity:
        """Size and time of the file, as far as they can be told at no cost."""
        return self.listed if self.listed != UNKNOWN else stat_of(self.path)

    def size(self) -> int:
        """Bytes of the file; 0 if that cannot be told at no cost."""
        return self.now().bytes or 0


@dataclass(frozen=True)
class Search:
    """What a search found, and what it left out, in words; empty if that is nothing."""

    videos: list[VideoFile]
    left_out: str = ""


def find_videos(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], stored: StoredSources | None = None
) -> list[VideoFile]:
    """Returns the videos of folders (recursively, by suffix, without hidden files), files, URLs and manifests.

    Sorted within each folder. With the sources of a store, what it has keeps its id, and no id means two videos. A clip without an
    id of its own has `@start-end` after it. Entries that only look like videos (pipes, broken links, folders of such a name) are
    listed too, so that they end as failures with a reason. Raises InputError for a path that does not exist, a folder without a
    video, a manifest with a wrong column or row, and an id in one that means another video than in the store.
    """
    return search_videos(inputs, stored).videos


def search_videos(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], stored: StoredSources | None = None
) -> Search:
    """As `find_videos`, with a count of the files that are left out."""
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    _stems_in.cache_clear()  # what the folders hold now
    found: list[_Found] = []
    left_out = LeftOut()
    for one in (os.fspath(path) for path in given):
        if _name_of(one).lower().endswith(MANIFEST_SUFFIXES):
            found += _in_manifest(one)
        elif is_url(one) and not one.startswith("file://"):
            found += _at_url(one, left_out)
        else:
            found += _at_path(Path(one.removeprefix("file://")), left_out)
    if not found:
        raise InputError("No video was given.")
    return Search(_named(found, stored or StoredSources()), str(left_out))


def share_of(videos: list[VideoFile], rank: int, world_size: int) -> list[VideoFile]:
    """The videos that process `rank` of `world_size` has to do: by a hash of the id, whatever else is in the list.

    Raises InputError for a rank that is not one of 0 to world_size - 1.
    """
    in_share("", rank, world_size)  # if there is no video, a wrong rank is wrong all the same
    return [v for v in videos if in_share(v.id, rank, world_size)]


@dataclass(frozen=True)
class _Found:
    """A video before it has its id: `name` is what to make one of, `origin` says where it was asked for."""

    name: str
    path: str
    id: str | None = None
    start: float | None = None
    end: float | None = None
    listed: FileIdentity = UNKNOWN
    origin: str = ""
    keeps_suffix: bool = False

    @property
    def place(self) -> tuple[str, float | None, float | None]:
        """Which stretch of which file this is, however it was named."""
        return source_key(in_utf8(self.path)), self.start, self.end

    def candidates(self) -> Iterator[str]:
        """Ids for it, shorter ones first; the last is followed by numbers."""
        clip = ""
        if self.start is not None or self.end is not None:
            clip = f"@{self.start or 0:g}-" + (f"{self.end:g}" if self.end is not None else "")
        parts = path_names(self.path)
        own = posixpath.normpath(self.name)
        first = len(own.split("/"))
        names = [own, *("/".join(parts[:count][::-1]) for count in range(first + 1, len(parts) + 1))]
        for keeps_suffix in (True,) if self.keeps_suffix else (False, True):
            for name in names:
                yield in_utf8((name if keeps_suffix else _without_suffix(name)) + clip)
        for number in itertools.count(2):
            yield in_utf8(f"{name}~{number}{clip}")

    def video(self, id: str) -> VideoFile:
        """The video under this id."""
        return VideoFile(id, self.path, self.start, self.end, listed=self.listed)


def _named(found: list[_Found], stored: StoredSources) -> list[VideoFile]:
    """Every video once, in the order they were found, each with its id."""
    named: dict[tuple[str, float | None, float | None, str], VideoFile] = {}
    given: dict[str, _Found] = {}
    for one in found:
        if one.id is None:
            continue
        first = given.setdefault(in_utf8(one.id), one)
        if first.place != one.place:
            raise InputError(f"{one.origin} gives the id {one.id!r} a second time, after {first.origin}.")
        if stored.is_another(in_utf8(one.id), one.path, one.listed):
            other = stored.rows[in_utf8(one.id)].source
            raise InputError(
                f"{one.origin} gives the id {one.id!r} to {one.path}, and in the store it is that of {other}; give it another id."
            )
    places = {one.place for one in given.values()}
    rest: dict[tuple[str, float | None, float | None], _Found] = {}
    for one in found:
        if one.id is None and one.place not in places:
            rest.setdefault(one.place, one)
    names = _told_apart(rest, set(given), stored)
    for one in found:
        id = in_utf8(one.id) if one.id is not None else names.get(one.place)
        if id is not None:
            named.setdefault((*one.place, id), one.video(id))
    return list(named.values())


def _told_apart(
    found: Mapping[tuple[str, float | None, float | None], _Found], taken: set[str], stored: StoredSources
) -> dict[tuple[str, float | None, float | None], str]:
    """An id for each of them that means no other video, here or in the store; the order in which they are given does not matter."""
    names: dict[tuple[str, float | None, float | None], str] = {}
    for place, one in found.items():
        known = stored.id_of(in_utf8(one.path)) if place[1:] == (None, None) else None
        if known is not None and known not in taken:
            names[place] = known
            taken.add(known)
    open_ = {place: one.candidates() for place, one in found.items() if place not in names}
    while open_:
        wanted = {place: next(candidates) for place, candidates in open_.items()}
        times = Counter(wanted.values())
        for place, name in wanted.items():
            one = found[place]
            if times[name] == 1 and name not in taken and not stored.is_another(name, in_utf8(one.path), one.listed):
                names[place] = name
                taken.add(name)
                del open_[place]
    return names


def _without_suffix(name: str) -> str:
    return name.removesuffix(posixpath.splitext(name)[1])


def _name_of(path: str) -> str:
    """The file name in a path or URL; of a URL without what comes after the path, if a name that ends like a file is left."""
    name = posixpath.basename(path)
    if not is_url(path) or looks_like_video(name):
        return name
    short = posixpath.basename(path.partition("?")[0].partition("#")[0])
    return short if looks_like_video(short) or short.lower().endswith(MANIFEST_SUFFIXES) else name


def _has_namesake(path: str) -> bool:
    """Whether the folder of a file of this machine has another video that differs in nothing but the suffix."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 (a link keeps its own name)
    return _stems_in(folder)[_without_suffix(name)] > looks_like_video(name)


@lru_cache(maxsize=512)
def _stems_in(folder: str) -> Counter[str]:
    try:
        return Counter(_without_suffix(name) for name in os.listdir(folder) if looks_like_video(name))  # noqa: PTH208
    except OSError:
        return Counter()


# --- folders and files ------------------------------------------------------------------------------------------------------


def _at_path(path: Path, left_out: LeftOut) -> Iterator[_Found]:
    if path.is_dir():
        inside = in_folder(path, left_out)
        if not inside:
            raise InputError(f"There is no video in {path}: {LOOKED_FOR}.")
        for file in inside:
            yield _Found(file.relative_to(path).as_posix(), str(file), keeps_suffix=_has_namesake(str(file)))
    elif path.exists() or path.is_symlink():
        yield _Found(path.name, str(path), keeps_suffix=_has_namesake(str(path)))
    else:
        raise InputError(f"There is no file or folder {path}.")


def _at_url(url: str, left_out: LeftOut) -> Iterator[_Found]:
    """A URL that ends like a video is one; any other is a folder to list."""
    if looks_like_video(_name_of(url)):
        yield _Found(without_secrets(_name_of(url)), url)
        return
    listing = behind_url(url, left_out)
    stems = Counter(_without_suffix(name) for name, _, _ in listing)
    for name, path, identity in listing:
        yield _Found(name, path, listed=identity, keeps_suffix=stems[_without_suffix(name)] > 1)


# --- manifests --------------------------------------------------------------------------------------------------------------


def _in_manifest(manifest: str) -> Iterator[_Found]:
    table = read_table(manifest)
    if not table.rows:
        raise InputError(f"{manifest} lists no video; a row with a path is needed for each.")
    _check_columns(manifest, list(table.columns))
    for one in table.rows:
        row, origin = one.values, f"{manifest}, {one.where}"
        path = row.get("path")
        if not isinstance(path, str) or not path.strip():
            raise InputError(f"{origin}: the path is empty.")
        start, end = _seconds(row, "start", origin), _seconds(row, "end", origin)
        if end is not None and end <= (start or 0.0):
            raise InputError(f"{origin}: the clip ends at {end:g} s, which is not after its start at {start or 0:g} s.")
        own = cell_text(row.get("id"))
        elsewhere = is_url(path) or Path(path).is_absolute()
        whole = path if elsewhere else _beside(manifest, path)
        yield _Found(
            without_secrets(_name_of(path)) if elsewhere else path.removeprefix("./"),
            whole,
            own or None,
            start,
            end,
            origin=origin,
            keeps_suffix=not is_url(whole) and _has_namesake(whole),
        )


def _check_columns(manifest: str, columns: list[str]) -> None:
    for column in columns:
        meant = difflib.get_close_matches(str(column).strip().lower(), _COLUMNS, n=1, cutoff=0.75)
        if column not in _COLUMNS and meant and meant[0] not in columns:
            raise InputError(f"{manifest} has a column {column!r}; it should be called {meant[0]!r}.")
    if "path" not in columns:
        raise InputError(f"{manifest} has no column 'path'; its columns are {', '.join(map(repr, columns))}.")


def _seconds(row: Mapping[str, Any], column: str, origin: str) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{origin}: {column} must be a number of seconds from 0 on, not {value!r}.")
    return seconds


def _beside(manifest: str, path: str) -> str:
    if is_url(manifest):
        return f"{manifest.rpartition('/')[0]}/{path}"
    return str(Path(manifest).parent / path)
