"""The commands that find moments and videos, and that find the videos' files again: search, relocate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvmae.cli.command import command_of, takes_trust
from lvmae.cli.console import print_json
from lvmae.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from lvmae.library import Library


def add_search(commands: Any) -> None:
    command = command_of(
        commands,
        "search",
        _run_search,
        brief="Find moments that match a text, a picture or another moment, or find similar videos.",
        goes_in="a store and a text, --picture, or --video with --at; for similar videos: a store or representations and --video",
        comes_out="a table of videos, times and scores, or JSON; --out writes CSV, JSON, M3U or EDL",
        example='lvmae search store "a dog on a beach" --minus "a cat" --group video --out dogs.m3u',
    )
    takes_trust(command)
    command.add_argument("store", help="a store, or representations with --video")
    command.add_argument("text", nargs="?", help="text to search for")
    command.add_argument("--minus", default="", metavar="TEXT", help="subtract the meaning of this text")
    command.add_argument("--picture", metavar="FILE", help="find the moments most like this picture")
    command.add_argument("--video", metavar="ID", help="find the videos most like this one")
    command.add_argument(
        "--at", type=float, metavar="S", help="with --video: find the moments most like the one at this second"
    )
    command.add_argument(
        "--features",
        choices=["mean", "cls"],
        help="with --video: compare the mean of the segments (the default), or the [CLS] of representations",
    )
    command.add_argument("--top", type=int, default=10, metavar="N", help="number of results (default: 10)")
    command.add_argument(
        "--group",
        choices=["moment", "video"],
        default="moment",
        help="video: at most one result per video (default: moment)",
    )
    command.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="STORE",
        help="also search this store of the same videos, of another encoder, and join the two rankings; repeatable",
    )
    command.add_argument("--exact", action="store_true", help="compare with every vector instead of using an index")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--out", metavar="FILE", help="output file, ending in .csv, .json, .m3u or .edl")
    some = command.add_argument_group("look only at videos")
    some.add_argument("--folder", metavar="PATH", help="whose id or source is below this folder")
    some.add_argument("--source", metavar="GLOB", help="whose source matches, such as '*/2024/*.mp4'")
    some.add_argument("--min-seconds", type=float, metavar="S", help="that last at least S seconds")
    some.add_argument("--max-seconds", type=float, metavar="S", help="that last at most S seconds")
    some.add_argument("--labels", metavar="FILE", help="a table with columns id and label, for --label")
    some.add_argument("--label", action="append", default=[], metavar="NAME", help="that have this label; repeatable")
    some.add_argument("--after", metavar="DATE", help="whose file was changed on this day or later (2024-05-31)")
    some.add_argument("--before", metavar="DATE", help="whose file was changed before this day")


def _run_search(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lvmae.files.writing import write_text
    from lvmae.library import similar_videos
    from lvmae.library.chapters import clock
    from lvmae.library.filters import Filter
    from lvmae.library.playlists import FORMATS, check_format

    asked = [arguments.text is not None, arguments.picture is not None, arguments.video is not None]
    if sum(asked) != 1:
        raise InputError("give either a text to look for, --picture FILE or --video ID")
    if arguments.features and arguments.video is None:
        raise InputError("--features needs --video ID: it sets how videos are compared")
    if arguments.at is not None and arguments.video is None:
        raise InputError("--at needs --video ID: it is a time in that video")
    if arguments.at is not None and arguments.features:
        raise InputError("--features compares whole videos, and --at one moment: give one of them")
    if arguments.minus and arguments.text is None:
        raise InputError("--minus subtracts from a text: give the text too")
    form = check_format(arguments.out) if arguments.out else None
    names = ("folder", "source", "min_seconds", "max_seconds", "labels", "after", "before")
    kept = Filter(**{name: getattr(arguments, name) for name in names}, label=tuple(arguments.label))
    if arguments.others and arguments.video is not None and arguments.at is None:
        raise InputError("--with joins searches for moments: give a text, --picture, or --at with --video")
    if arguments.others and form:
        raise InputError("--out writes the moments of one store: use --json with --with")
    if arguments.video is not None and arguments.at is None:
        if kept or form or arguments.group == "video":
            raise InputError("filters, --group and --out go with moments: give a text, --picture, or --at with --video")
        videos = similar_videos(
            arguments.store,
            arguments.video,
            arguments.top,
            features=arguments.features or "mean",
            exact=arguments.exact,
        )
        if arguments.json:
            print_json([asdict(video) for video in videos])
        else:
            _print_rows([[f"{video.score:.3f}", clock(video.duration), video.video] for video in videos])
        return 0
    one_a_video = arguments.group == "video"
    if arguments.others:
        return _search_together(arguments, kept, one_a_video=one_a_video)
    library = _library(arguments.store, arguments, kept)
    moments = library.moments(_vector(library, arguments), arguments.top, one_a_video=one_a_video)
    if form:
        write_text(Path(arguments.out), FORMATS[form](library.store, moments))
        print(f"{arguments.out}: {len(moments)} moments")
    elif arguments.json:
        print_json([asdict(moment) for moment in moments])
    else:
        _print_rows([[f"{m.score:.3f}", f"{clock(m.start)}-{clock(m.end)}", m.video] for m in moments])
    return 0


def _search_together(arguments: argparse.Namespace, kept: Any, *, one_a_video: bool) -> int:
    from dataclasses import asdict

    from lvmae.library.chapters import clock
    from lvmae.library.fusion import DEPTH, fuse

    found = []
    for store in (arguments.store, *arguments.others):
        library = _library(store, arguments, kept)
        found.append(library.moments(_vector(library, arguments), max(DEPTH, arguments.top), one_a_video=one_a_video))
    hits = fuse(found, arguments.top, one_a_video=one_a_video)
    if arguments.json:
        print_json([asdict(hit) for hit in hits])
    else:
        _print_rows([[f"{hit.score:.4f}", f"{clock(hit.start)}-{clock(hit.end)}", hit.video] for hit in hits])
    return 0


def _library(store: str, arguments: argparse.Namespace, kept: Any) -> Library:
    from lvmae.library import Library

    library = Library(store, exact=arguments.exact)
    if not kept:
        return library
    videos = kept.videos(library.store)
    if not len(videos):
        raise InputError(f"none of the {len(library.store)} videos of {library.store.path} passes these filters")
    return library.only(videos)


def _vector(library: Library, arguments: argparse.Namespace) -> np.ndarray:
    if arguments.picture is not None:
        return library.vector_of_picture(arguments.picture)
    if arguments.at is not None:
        return library.vector_of_moment(arguments.video, arguments.at)
    return library.vector_of(arguments.text, arguments.minus)


def _print_rows(rows: list[list[str]]) -> None:
    width = max((len(row[1]) for row in rows), default=0)
    for score, time, video in rows:
        print(f"{score:>6}  {time:<{width}}  {video}")


def add_relocate(commands: Any) -> None:
    command = command_of(
        commands,
        "relocate",
        _run_relocate,
        brief="Tell a store that its videos have moved to another folder.",
        goes_in="a store, and the new folder of its videos",
        comes_out="the number of videos found there; pages, reports, captions and duplicates use the new places",
        example="lvmae relocate store --to /mnt/archive",
    )
    command.add_argument("store", help="folder or URL of a store")
    command.add_argument(
        "--to", required=True, metavar="FOLDER", help="the folder that holds the videos, or one above it"
    )


def _run_relocate(arguments: argparse.Namespace) -> int:
    from lvmae.store import relocate

    done = relocate(arguments.store, arguments.to)
    print(f"{done.found} of {done.found + len(done.missing)} local videos are found")
    for source in done.missing[:10]:
        print(f"missing: {source}")
    return 1 if done.missing else 0
