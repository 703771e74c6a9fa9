"""A folder, here or behind a URL -> the files in it that are videos, and a count of those that are left out.

Enters: a folder. Leaves: paths, sorted. Linked folders are entered, each real folder once. The suffix decides what is a video;
files of a few suffixes that videos share with other things are looked into.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvmae.errors import InputError, OutageError
from lvmae.files.identity import FileIdentity, listed
from lvmae.files.outages import passes_with_time
from lvmae.files.urls import file_system, without_secrets

_NAMES = """
264 265 266 26l 302 360 3g2 3gp 3gp2 3gpp 3gpp2 amv asf avc avchd avi avs2 avs3 bik bk2 camrec cavs cdxl cine cpk dav
dif divx dpg drc dv dvr-ms evo f4p f4v ffm flc fli flm flv gif gxf h261 h263 h264 h265 h266 hevc ifv imx insv ismv ivf
ivr k3g kux lrv lvf m1v m2p m2t m2ts m2v m4v mj2 mjpeg mjpg mk3d mkv mod mov moov movie mp4 mp4v mpe mpeg mpeg1 mpeg2
mpeg4 mpg mpg2 mpg4 mpv mpv2 mqv mts mtv mve mxf mxg nsv nut nuv obu ogm ogv pmp psp pva qt qtff rec rm rmvb roq rv
ser smk svi swf tivo tod tp trec trp ts ts4 ty viv vivo vob vp6 vp8 vp9 vro vvc webm wm wmv wtv xmv xvid y4m yop
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
_SHARED_SUFFIXES = frozenset({".dat", ".ogg", ".ogx", ".mp2", ".ps", ".vid", ".vdr", ".bin", ".raw", ".tmp", ".part"})
"""Of videos and of other things: the first bytes decide."""
LOOKED_FOR = "files that end like a video (.mp4, .mkv, .ts, ...) are looked for; name a file, and it is taken whatever its ending"
_HEAD_BYTES = 4096


@dataclass
class LeftOut:
    """How many files of the folders searched are not taken, by kind."""

    kinds: Counter[str] = field(default_factory=Counter)

    def note(self, name: str) -> None:
        """Counts a file that is no video."""
        if name.startswith("."):
            self.kinds["hidden"] += 1
        else:
            self.kinds[posixpath.splitext(name)[1].lower() or "without suffix"] += 1

    def __str__(self) -> str:
        """Such as `12 files that are no videos: 8 .txt, 3 .jpg, 1 hidden`; empty if nothing is left out."""
        if not self.kinds:
            return ""
        most = self.kinds.most_common(8)
        rest = self.kinds.total() - sum(count for _, count in most)
        said = [f"{count} {kind}" for kind, count in most] + ([f"{rest} of other kinds"] if rest else [])
        total = self.kinds.total()
        return f"{total} {'file that is no video' if total == 1 else 'files that are no videos'}: {', '.join(said)}"


def looks_like_video(name: str) -> bool:
    """Whether a file of this name is taken for a video in a folder, without a look into it."""
    return not name.startswith(".") and posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


def in_folder(folder: Path, left_out: LeftOut) -> list[Path]:
    """The videos below a folder, sorted, with what only looks like one (a pipe, a broken link, a folder of such a name)."""
    root = os.path.realpath(folder)
    seen = {root}
    found: list[Path] = []
    linked: list[Path] = []

    def walk(here: Path) -> int:
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            left_out.kinds["folders that cannot be read"] += 1
            return 0
        before = len(found)
        for entry in entries:
            if not _is_folder(entry):
                if looks_like_video(entry.name) or _holds_video(entry):
                    found.append(here / entry.name)
                else:
                    left_out.note(entry.name)
            elif entry.is_symlink():
                linked.append(here / entry.name)
            else:
                seen.add(os.path.realpath(entry.path))
                if not walk(here / entry.name) and looks_like_video(entry.name):
                    found.append(here / entry.name)
        return len(found) - before

    walk(folder)
    while linked:  # after all that is really here, so that a file has the name of its real place
        link = linked.pop(0)
        place = os.path.realpath(link)
        if place not in seen and not f"{root}{os.sep}".startswith(f"{place.rstrip(os.sep)}{os.sep}"):
            seen.add(place)
            walk(link)
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _holds_video(entry: os.DirEntry[str]) -> bool:
    name = entry.name.lower()
    if name.startswith(".") or posixpath.splitext(name)[1] not in _SHARED_SUFFIXES:
        return False
    try:
        if not entry.is_file():
            return False
        with Path(entry.path).open("rb") as file:
            return begins_like_video(file.read(_HEAD_BYTES))
    except OSError:
        return False


def begins_like_video(head: bytes) -> bool:
    """Whether the first 4 KiB of a file are those of MPEG, MP4, Matroska, AVI, FLV or Ogg with video."""
    if head.startswith((b"\0\0\1\xba", b"\0\0\1\xb3", b"\x1a\x45\xdf\xa3", b"FLV\1")) or head[4:8] in (
        b"ftyp",
        b"moov",
    ):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] in (b"AVI ", b"CDXA", b"AMV ")
    if head.startswith(b"OggS"):
        return any(mark in head for mark in (b"\x80theora", b"OVP80", b"BBCD\0", b"\1video"))
    packets = ((188, 0), (192, 4))  # of transport streams: length, and where the 0x47 is
    return any(len(head) > 4 * size and all(head[i * size + at] == 0x47 for i in range(4)) for size, at in packets)


def behind_url(url: str, left_out: LeftOut) -> list[tuple[str, str, FileIdentity]]:
    """The videos of a folder behind a URL, sorted: name below it, URL, what the listing says of it. InputError if it has none."""
    files, root = file_system(url)
    try:
        entries: Mapping[str, Any] = files.find(root, detail=True)
    except Exception as error:  # each store of objects has its own
        said = without_secrets(" ".join(str(error).split())).rstrip(".") or type(error).__name__
        kind = OutageError if passes_with_time(error) else InputError
        raise kind(f"{without_secrets(url)} cannot be listed: {said}.") from None
    found = []
    for path in sorted(entries):
        if looks_like_video(posixpath.basename(path)):
            name = posixpath.relpath(path, root) if path != root else posixpath.basename(path)
            found.append((name, files.unstrip_protocol(path), listed(entries[path])))
        else:
            left_out.note(posixpath.basename(path))
    if not found:
        raise InputError(f"There is no video in {without_secrets(url)}: {LOOKED_FOR}.")
    return found
