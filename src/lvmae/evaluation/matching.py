"""Names of videos in labels -> videos of a store, so that a label never lands on another video.

A name fits an id where both are the same but for a known suffix (of a video or an array file) and for folders that only
one of them names. A folder that both name has to agree; a dot in a name is no suffix unless what follows is a known one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvmae.errors import InputError

SUFFIXES = frozenset(  # of videos, and of arrays
    """.264 .265 .3g2 .3gp .asf .av1 .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2t .m2ts .m2v .m4v
    .mjpeg .mjpg .mkv .mod .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogg .ogm .ogv .qt .rm .rmvb .tod .ts .vob .vro .webm .wmv
    .wtv .y4m .h5 .hdf5 .mat .npy .npz .parquet .pt .pth .safetensors""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Matches:
    """Where each name is among a store's ids.

    Attributes:
        places: the place of each name; None if the store has not the video.
        loose: (name, id) of those that do not agree to the letter.
    """

    places: list[int | None]
    loose: tuple[tuple[str, str], ...]

    def note(self) -> str:
        """One sentence about loose matches; "" if there are none."""
        if not self.loose:
            return ""
        some = ", ".join(f"'{name}' is '{id_}'" for name, id_ in self.loose[:2])
        return f"{len(self.loose)} videos were found under another spelling: {some}."


def match_ids(
    names: Iterable[str],
    known: Sequence[str],
    source: str | Path,
    spelling: Callable[[str], str | None] | None = None,
) -> Matches:
    """Finds each name among a store's ids: to the letter, or else by suffix, folders, and a data set's own spelling.

    Args:
        names: as labels write them.
        known: the store's ids.
        source: of the names, for messages.
        spelling: brings names and ids of one data set to one form; None for what is none of its.

    Raises:
        InputError: where a name fits several ids, or two names one id.
    """
    exact = {id_: index for index, id_ in enumerate(known)}
    by_stem: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    by_spelling: dict[str, list[int]] = {}
    for index, id_ in enumerate(known):
        folders, stem = _parts(id_)
        by_stem.setdefault(stem, []).append((folders, index))
        if spelling is not None and (own := spelling(id_)) is not None:
            by_spelling.setdefault(own, []).append(index)
    places: list[int | None] = []
    loose: list[tuple[str, str]] = []
    taken: dict[int, str] = {}
    for name in names:
        place = exact.get(name)
        if place is None:
            folders, stem = _parts(name)
            fitting = [index for others, index in by_stem.get(stem, ()) if _agree(folders, others)]
            if not fitting and spelling is not None and (own := spelling(name)) is not None:
                fitting = by_spelling.get(own, [])
            if len(fitting) > 1:
                some = " and ".join(f"'{known[i]}'" for i in fitting[:2])
                raise InputError(
                    f"'{name}' in {source} fits several videos of the store, such as {some}; write the whole id"
                )
            if fitting:
                place = fitting[0]
                loose.append((name, known[place]))
        if place is not None:
            if place in taken and taken[place] != name:
                raise InputError(
                    f"'{taken[place]}' and '{name}' in {source} are both the store's video '{known[place]}'; "
                    "a video has one row: keep the one that is meant, or write the store's ids"
                )
            taken[place] = name
        places.append(place)
    return Matches(places, tuple(loose))


def bare_name(name: str) -> str:
    """The last part of a path without known suffixes."""
    return _parts(name)[1]


def _parts(name: str) -> tuple[tuple[str, ...], str]:
    """Folders, outermost first, and the name without known suffixes; in one Unicode form."""
    *folders, last = unicodedata.normalize("NFC", name.strip()).replace("\\", "/").split("/")
    while (dot := last.rfind(".")) > 0 and last[dot:].lower() in SUFFIXES:
        last = last[:dot]
    return tuple(folder for folder in folders if folder not in ("", ".")), last


def _agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shared = min(len(one), len(other))
    return shared == 0 or one[-shared:] == other[-shared:]
