"""What is to be embedded: folders, files, URLs and manifests -> a list of videos, each with an id.

A manifest is a table (CSV, TSV or Parquet, told by its suffix) with a column `path` and, where wanted, `id`, `start` and `end`: a
row is a video, or the clip of one from `start` to `end` seconds. Paths in it are relative to it. Other columns are left alone.
Nothing is opened here but folders and manifests: a path in a manifest that leads nowhere ends as a failure with a reason, like
any other bad file.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lvmae.errors import InputError, OutageError
from lvmae.files.outages import passes_with_time
from lvmae.files.table_files import cell_text, read_table
from lvmae.files.urls import file_system, is_url, without_secrets

VIDEO_SUFFIXES = frozenset(
    (
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    )
)
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
    bytes: int | None = field(default=None, compare=False)
    """Size of the file, where a listing told it."""

    @property
    def source(self) -> str:
        """The path as a store can hold it: bytes that are no UTF-8 are written as escapes."""
        return _printable(self.path)

    def size(self) -> int:
        """Bytes of the file; 0 where that cannot be told at no cost."""
        if self.bytes is not None:
            return self.bytes
        try:
            return os.stat(self.path).st_size  # noqa: PTH116 (a path may be a URL)
        except (OSError, ValueError):
            return 0


def find_videos(inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[VideoFile]:
    """The videos of a folder (recursively, by suffix, hidden files left out), of files, URLs and manifests, or of several of these.

    Sorted within each folder. Two files that differ in nothing but the suffix keep it in their id; a clip without an id of its own
    has `@start-end` behind it. Entries that only look like videos (pipes, broken links, folders of such a name) are listed too, so
    that they end as failures with a reason. Raises InputError for a path that does not exist, a folder without a video, and a
    manifest with a wrong column or row.
    """
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    found: list[_Found] = []
    for one in (os.fspath(path) for path in given):
        if one.lower().endswith(MANIFEST_SUFFIXES):
            found += _in_manifest(one)
        elif is_url(one):
            found += _at_url(one)
        else:
            found += _at_path(Path(one))
    if not found:
        raise InputError("No video was given.")
    return _named(found)


def share_of(videos: list[VideoFile], rank: int, world_size: int) -> list[VideoFile]:
    """The videos that process `rank` of `world_size` has to do: by a hash of the id, whatever else is in the list.

    Raises InputError for a rank that is not one of 0 to world_size - 1.
    """
    if not 0 <= rank < world_size:
        raise InputError(f"The rank must lie between 0 and world size - 1, not be {rank} of {world_size}.")
    return [v for v in videos if int.from_bytes(hashlib.sha256(v.id.encode()).digest()[:8]) % world_size == rank]


@dataclass(frozen=True)
class _Found:
    """A video before it has its id: `name` is what to make one of, `origin` says where it was asked for."""

    name: str
    path: str
    id: str | None = None
    start: float | None = None
    end: float | None = None
    bytes: int | None = None
    origin: str = ""


def _named(found: list[_Found]) -> list[VideoFile]:
    files: dict[str, set[str]] = {}  # a name without suffix -> the files that would be called so
    for one in found:
        files.setdefault(_without_suffix(one.name), set()).add(one.path)
    videos: dict[str, VideoFile] = {}
    rows: dict[str, str] = {}
    for one in found:
        short = _without_suffix(one.name)
        name = one.id if one.id is not None else (short if len(files[short]) == 1 else one.name)
        if one.id is None and (one.start is not None or one.end is not None):
            name += f"@{one.start or 0:g}-" + (f"{one.end:g}" if one.end is not None else "")
        video = VideoFile(_printable(name), one.path, one.start, one.end, bytes=one.bytes)
        known = videos.get(video.id)
        if known is not None and known != video:
            if one.id is not None or one.origin:
                raise InputError(f"{one.origin} gives the id {video.id!r} a second time{rows[video.id]}.")
            video = replace(video, id=_printable(Path(one.path).as_posix() if not is_url(one.path) else one.path))
        videos[video.id] = video
        rows.setdefault(video.id, f", after {one.origin}" if one.origin else "")
    return list(videos.values())


def _without_suffix(name: str) -> str:
    return name.removesuffix(posixpath.splitext(name)[1])


# --- folders and files ------------------------------------------------------------------------------------------------------


def _at_path(path: Path) -> Iterator[_Found]:
    if path.is_dir():
        inside = sorted(_walk(path))
        if not inside:
            raise InputError(f"There is no video in {path}: {_LOOKED_FOR}.")
        for file in inside:
            yield _Found(file.relative_to(path).as_posix(), str(file))
    elif path.exists() or path.is_symlink():
        yield _Found(path.name, str(path))
    else:
        raise InputError(f"There is no file or folder {path}.")


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        empty = [name for name in folders if _looks_like_video(name) and not any(_walk(Path(root, name)))]
        for name in names + empty:
            if _looks_like_video(name):
                yield Path(root, name)


def _at_url(url: str) -> Iterator[_Found]:
    """A URL that ends like a video is one; any other is a folder to list."""
    if _looks_like_video(posixpath.basename(url)):
        yield _Found(posixpath.basename(url), url)
        return
    files, root = file_system(url)
    try:
        listed: Mapping[str, Any] = files.find(root, detail=True)
    except Exception as error:  # each store of objects has its own
        said = without_secrets(" ".join(str(error).split())).rstrip(".") or type(error).__name__
        kind = OutageError if passes_with_time(error) else InputError
        raise kind(f"{without_secrets(url)} cannot be listed: {said}.") from None
    inside = [path for path in sorted(listed) if _looks_like_video(posixpath.basename(path))]
    if not inside:
        raise InputError(f"There is no video in {url}: {_LOOKED_FOR}.")
    for path in inside:
        name = posixpath.relpath(path, root) if path != root else posixpath.basename(path)
        yield _Found(name, files.unstrip_protocol(path), bytes=listed[path].get("size"))


def _looks_like_video(name: str) -> bool:
    return not name.startswith(".") and posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


_LOOKED_FOR = f"files ending in {' '.join(sorted(VIDEO_SUFFIXES))} are looked for"


def _printable(name: str) -> str:
    """File names may hold bytes that are no UTF-8; ids may not."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
        yield _Found(
            posixpath.basename(path) if elsewhere else path.removeprefix("./"),
            path if elsewhere else _beside(manifest, path),
            own or None,
            start,
            end,
            origin=origin,
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
