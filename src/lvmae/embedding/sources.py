"""What is to be embedded: folders and files -> a list of videos, each with an id."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lvmae.errors import InputError

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


@dataclass(frozen=True)
class VideoFile:
    """A video to embed: `id` is its path below the folder it was found in, without suffix, in POSIX form."""

    id: str
    path: str
    """A path of this machine, or a URL."""
    start: float | None = None
    """Seconds of the file at which the clip starts that is meant; None: at its start."""
    end: float | None = None
    """Seconds of the file at which the clip ends; None: at its end."""

    @property
    def source(self) -> str:
        """The path as a store can hold it: bytes that are no UTF-8 are written as escapes."""
        return _printable(self.path)

    def size(self) -> int:
        """Bytes of the file, 0 where that is not known."""
        try:
            return Path(self.path).stat().st_size
        except OSError:
            return 0


def find_videos(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[VideoFile]:
    """The videos of a folder (recursively, by suffix, hidden files left out), of single files, or of several of either.

    Sorted within each folder. Two files that differ in nothing but the suffix keep it in their id. Entries that only look like
    videos (pipes, broken links) are listed too, so that they end as failures with a reason. Raises InputError for a path that
    does not exist and for folders without a video.
    """
    given = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(p) for p in paths]
    found: list[tuple[str, Path]] = []
    for path in given:
        if path.is_dir():
            inside = sorted(_walk(path))
            if not inside:
                raise InputError(
                    f"There is no video in {path}: files ending in {' '.join(sorted(VIDEO_SUFFIXES))} are looked for."
                )
            found += [(file.relative_to(path).as_posix(), file) for file in inside]
        elif path.exists() or path.is_symlink():
            found.append((path.name, path))
        else:
            raise InputError(f"There is no file or folder {path}.")
    if not found:
        raise InputError("No video was given.")
    by_id: dict[str, list[int]] = {}
    for i, (name, _) in enumerate(found):
        by_id.setdefault(name.removesuffix(Path(name).suffix), []).append(i)
    ids = [name for name, _ in found]
    for short, places in by_id.items():
        if len(places) == 1:
            ids[places[0]] = short
    videos: dict[str, VideoFile] = {}
    for name, (_, path) in zip(ids, found, strict=True):
        unique = _printable(name if name not in videos or videos[name].path == str(path) else path.as_posix())
        videos[unique] = VideoFile(unique, str(path))
    return list(videos.values())


def _walk(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(root, name)


def _printable(name: str) -> str:
    """File names may hold bytes that are no UTF-8; ids may not."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
