"""From a folder of videos to an open search page, in one command.

Enters: videos. Leaves, in one folder: the store, a WebVTT file of chapters for each video, and, where there are enough videos to
learn from, a run, its representations and report.html; and the search page, open in the browser. Every step is a command line,
printed and then run, so that a newcomer sees what to type next time. Each step resumes, so the whole resumes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path

from lvmae.cli.steps import run_step
from lvmae.errors import InputError, WorkError
from lvmae.store import EmbeddingStore

ENOUGH_VIDEOS = 48
"""The least number of videos that the demonstration learns from; with fewer a run is no better than interpolation."""

_MOST_CHAPTERED = 100
_PAGE_SECONDS = 120.0


def quickstart(
    videos: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "quickstart",
    *,
    encoder: str = "conse",
    dry_run: bool = False,
    serve: bool = True,
    open_browser: bool = True,
) -> int:
    """Embeds videos, finds chapters, pre-trains if there is enough to learn from, and opens the search page.

    Args:
        videos: files, folders, URLs or manifests.
        out: the folder for everything; an existing one is resumed.
        encoder: the segment encoder.
        dry_run: print what the embedding would cost, and do nothing.
        serve: start the page, and wait for Ctrl-C at the end.
        open_browser: open the page in the browser.

    Returns:
        The exit code: 1 where some videos could not be embedded, 0 otherwise.

    Raises:
        InputError: no video could be embedded.
        WorkError: a step failed.
    """
    root = Path(out).expanduser()
    store, run, reps = root / "store", root / "run", root / "reps"
    chosen = [] if encoder == "conse" else ["--encoder", encoder]
    if dry_run:
        return run_step("embed", *videos, "--out", store, *chosen, "--dry-run")
    root.mkdir(parents=True, exist_ok=True)
    code = run_step("embed", *videos, "--out", store, *chosen, allowed=(0, 1))
    opened = _opened(store)
    with _page(store, open_browser) if serve else contextlib.nullcontext():
        _chapters(opened, store, root / "chapters")
        if len(opened) >= ENOUGH_VIDEOS:
            run_step("pretrain", store, "--out", run, "--recipe", "tiny")
            run_step("represent", run, store, "--out", reps)
            run_step("interpret", run, store, "--out", root / "report.html")
            print(f"\nThe report: {(root / 'report.html').resolve()}")
        else:
            print(
                f"\n{len(opened)} {'video is' if len(opened) == 1 else 'videos are'} too few to learn from, so there is no "
                f"pre-training and no report: give {ENOUGH_VIDEOS} or more. Search and chapters need none."
            )
        _next_steps(store, root, videos[0])
        if serve:
            with contextlib.suppress(KeyboardInterrupt):
                print("The page stays open until Ctrl-C.", flush=True)
                while True:
                    time.sleep(3600)
    return code


def _opened(store: Path) -> EmbeddingStore:
    try:
        return EmbeddingStore.open(store)
    except InputError:
        raise InputError("no video could be embedded, so there is nothing to show: see the reasons above") from None


def _chapters(opened: EmbeddingStore, store: Path, folder: Path) -> None:
    """Writes a WebVTT file for each video that has more than one segment."""
    folder.mkdir(exist_ok=True)
    chosen = [video for video, length in zip(opened.ids, opened.lengths, strict=True) if length > 1]
    for video in chosen[:_MOST_CHAPTERED]:
        target = folder / f"{urllib.parse.quote(video, safe=' ')}.vtt"
        if not target.exists():
            run_step("timeline", "--out", target, store, "--", video)
    if len(chosen) > _MOST_CHAPTERED:
        print(
            f"\nChapters of the first {_MOST_CHAPTERED} of {len(chosen)} videos; `lvmae timeline` writes those of the others."
        )


def _next_steps(store: Path, root: Path, videos: str | os.PathLike[str]) -> None:
    print("\nTo look further:")
    for line in (
        ("search", store, "a dog on a beach"),
        ("serve", store),
        ("inspect", store),
        ("pretrain", "--help"),
    ):
        print(f"  {shlex.join(['lvmae', *map(str, line)])}")
    print(f"Everything is in {root}. After new videos in {os.fspath(videos)}, rerun the same command.", flush=True)


@contextlib.contextmanager
def _page(store: Path, open_browser: bool) -> Iterator[None]:
    """The search page in a process of its own, from now until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(f"\n$ {shlex.join(['lvmae', 'serve', str(store), '--port', str(port)])}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "lvmae", "serve", str(store), "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(address, process)
        print(f"The page: {address}", flush=True)
        if open_browser:
            webbrowser.open(address)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PAGE_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise WorkError("the page could not be started; `lvmae serve` says why")
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - this machine's own address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise WorkError(f"the page did not answer within {_PAGE_SECONDS:.0f} seconds; try `lvmae serve`")
