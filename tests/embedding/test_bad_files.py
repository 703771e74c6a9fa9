"""A folder with every kind of bad file among good ones: the good ones are embedded, each bad one has its reason."""

from __future__ import annotations

import http.server
import importlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from films import write_film
from jobs import contents, embed
from lvmae.cli import main
from lvmae.store import EmbeddingStore

NOISE = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), np.uint8)
GOOD = ("good", "naïve 🎬 film", "two\nlines", "g" * 246, "raw \\xff bytes", "folder.mp4/inside")


def write_good(path: Path, *, seconds: int = 4, front: bool = False) -> Path:
    times = [40 * k for k in range(25 * seconds)]
    flags = {"container_options": {"movflags": "faststart"}} if front else {}
    return write_film(path, times, options={"g": "25"}, pictures=lambda k: NOISE[k % 50], **flags)


def write_audio(path: Path, *, cover: bool = False) -> None:
    """A second of silence, and if wanted a cover."""
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        picture: Any = container.add_stream("mjpeg") if cover else None
        if cover:
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        if cover:
            container.mux(
                picture.encode(av.VideoFrame.from_ndarray(NOISE[0], format="rgb24").reformat(format="yuvj420p"))
            )
        container.mux([*stream.encode(frame), *stream.encode(None)])


def patched(data: bytes, find: bytes, offset: int, value: bytes) -> bytes:
    """The file with other bytes so far behind every place where `find` stands."""
    changed, place = bytearray(data), data.find(find)
    assert place >= 0
    while place >= 0:
        changed[place + offset : place + offset + len(value)] = value
        place = data.find(find, place + 1)
    return bytes(changed)


def sized(data: bytes, width: int, height: int) -> bytes:
    """Another size in the sample entry (ISO/IEC 14496-12, 12.1.3), which the decoder does not go by."""
    return patched(data, b"avc1\0\0\0\0\0\0\0\1", 28, width.to_bytes(2, "big") + height.to_bytes(2, "big"))


def gif(folder: Path, width: int, height: int) -> bytes:
    """One with another size of its canvas, which the decoder does go by."""
    path = folder / "small.gif"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("gif", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb8"
        for picture in NOISE[:5]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="rgb8")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    return data[:6] + width.to_bytes(2, "little") + height.to_bytes(2, "little") + data[10:]


BAD = {
    "empty": "the file is empty",
    "words": "not a video, or its index is missing or damaged",
    "no index": "not a video, or its index is missing or damaged",
    "cut at 10": "truncated: it says it lasts 16.0 s, and ends after N s",
    "cut at 50": "truncated: it says it lasts 16.0 s, and ends after N s",
    "cut at 90": "truncated: it says it lasts 16.0 s, and ends after N s",
    "cut at 50, index behind": "not a video, or its index is missing or damaged",
    "only sound": "it holds no video, only audio",
    "only a cover": "it holds no video, only a cover picture and audio",
    "no canvas": "not a video, or its index is missing or damaged",
    "huge canvas": "its pictures are damaged, or too large to decode",
    "unknown codec": "its video codec is unknown",
    "pipe": "it is a pipe or a device, not a file",
    "a folder": "it is a folder, not a file",
    "broken link": "there is no such file, or it is a broken link",
    "loop": "it cannot be opened: Too many levels of symbolic links",
}
# Damaged, and yet every segment can be had: what the decoder makes of flipped bits is embedded, as a player would show it.
ODD = {"bit flips": 4, "no size": 4, "huge size": 4, "one frame": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    beside = tmp_path_factory.mktemp("bad")
    root = beside / "videos"
    root.mkdir()
    good = write_good(root / "good.mp4").read_bytes()
    front = write_good(beside / "front.mp4", seconds=16, front=True).read_bytes()
    for name in GOOD[1:4]:
        (root / f"{name}.mp4").write_bytes(good)
    Path(os.fsdecode(os.fsencode(root) + b"/raw \xff bytes.mp4")).write_bytes(good)
    (root / "folder.mp4").mkdir()
    (root / "folder.mp4/inside.mp4").write_bytes(good)

    rng = np.random.default_rng(1)
    flipped = bytearray(good)
    for place in rng.integers(len(good) // 4, len(good) // 2, 200):
        flipped[place] ^= 1 << int(rng.integers(8))
    files = {
        "empty.mp4": b"",
        "words.mp4": b"This was renamed.\n" * 1000,
        "no index.mp4": good[: good.index(b"moov") - 4],
        "cut at 10.mp4": front[: len(front) * 10 // 100],
        "cut at 50.mp4": front[: len(front) * 50 // 100],
        "cut at 90.mp4": front[: len(front) * 90 // 100],
        "cut at 50, index behind.mp4": good[: len(good) * 50 // 100],
        "bit flips.mp4": bytes(flipped),
        "no size.mp4": sized(good, 0, 0),
        "huge size.mp4": sized(good, 16384, 16384),
        "no canvas.gif": gif(beside, 0, 0),
        "huge canvas.gif": gif(beside, 16000, 16000),  # FFmpeg itself refuses 16384
        "unknown codec.mp4": good.replace(b"avc1", b"zzzz"),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    write_audio(root / "only sound.mp4")
    write_audio(root / "only a cover.mp4", cover=True)
    write_film(root / "one frame.mp4", [0], pictures=lambda k: NOISE[0])
    os.mkfifo(root / "pipe.mp4")
    (root / "a folder.mp4").mkdir()
    (root / "broken link.mp4").symlink_to(root / "nowhere")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    return root


def test_every_good_file_is_embedded_and_every_bad_one_says_why(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    command = ["embed", folder, "--out", out, "--encoder", "jobs:Mean", "--segment-seconds", "1", "--workers", "2"]
    assert main([str(argument) for argument in command]) == 1
    store = EmbeddingStore.open(out)
    assert {f.id: re.sub(r"(?<=after )[\d.]+", "N", f.reason) for f in store.failures} == BAD
    assert dict(zip(store.ids, store.lengths.tolist(), strict=True)) == ODD | dict.fromkeys(GOOD, 4)
    stored = contents(out)
    assert {stored[name][4] for name in GOOD} == {stored["good"][4]}  # the same film under other names
    said = capsys.readouterr().out
    assert f"{len(GOOD) + len(ODD)} videos embedded" in said
    assert f"{len(BAD)} failed" in said
    for name, reason in BAD.items():
        assert f"{name}." in said
        assert reason.partition(" N s")[0] in said

    command.append("--keep-partial")
    assert main([*(str(argument) for argument in command), "--retry-failures"]) == 1
    kept = {failure.id: failure.kept for failure in EmbeddingStore.open(out).failures if failure.kept}
    assert kept == {"cut at 10": 1, "cut at 50": pytest.approx(7.5, abs=0.5), "cut at 90": pytest.approx(14, abs=1)}
    said = capsys.readouterr().out
    assert "3 videos embedded" in said
    assert f"{len(BAD) - 3} failed, 3 only in part" in said
    assert f"kept {kept['cut at 50']:.1f} s of {folder}/cut at 50.mp4: truncated" in said


def test_a_picture_that_claims_to_be_huge_takes_no_memory(folder: Path) -> None:
    script = (
        "import re, sys\n"
        "from lvmae.video.decoding import VideoError, probe\n"
        "try:\n    probe(sys.argv[1])\nexcept VideoError:\n"
        "    print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )  # not ru_maxrss, which a process inherits from the one that started it
    command = [sys.executable, "-c", script, str(folder / "huge canvas.gif")]
    used = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert used < 400 << 10  # KiB; without a limit the decoder takes 1,987 MiB for it, with it 90


def test_a_file_without_read_permission(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_good(videos / "good.mp4")
    write_good(videos / "private.mp4").chmod(0)
    # Permission bits hold for root too, once it has given up its capabilities.
    powerless = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    if powerless and subprocess.run([*powerless, "true"], check=False, capture_output=True).returncode:
        pytest.skip("permission bits do not hold for root here, and setpriv cannot take its capabilities")
    script = f"from jobs import embed; print([f.reason for f in embed({str(videos)!r}, {str(tmp_path / 'store')!r}).failures])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [*powerless, sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['no permission to read it']"
    assert EmbeddingStore.open(tmp_path / "store").ids == ["good"]


@pytest.fixture
def stalling() -> Iterator[str]:
    """A server that sends the first half of a file and then nothing, as a lost connection or a hung disk does."""
    over = threading.Event()

    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"\0" * 1000)
                over.wait(60)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/slow.mp4"
    over.set()
    server.shutdown()


def test_a_server_that_stalls_is_no_file_s_fault(folder: Path, stalling: str, tmp_path: Path) -> None:
    began = time.monotonic()
    summary = embed([stalling, folder / "good.mp4"], tmp_path / "store", timeout=2.5)
    assert time.monotonic() - began < 30
    assert (summary.embedded, summary.failures) == (1, ())
    assert [file.id for file in summary.postponed] == ["slow"]
    assert re.search("the server did not answer|made no progress", summary.postponed[0].reason)


def test_mutated_files_end_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small version of benchmarks/fuzz.py."""
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    fuzz = importlib.import_module("fuzz")
    found = fuzz.fuzz(60, tmp_path / "fuzz", seed=1, workers=2)
    assert found["embedded"] + found["failed"] == 60
    assert found["embedded"] > 20
    assert found["failed"] > 5
    assert (found["unforeseen"], found["hung"], found["crashed"]) == (0, 0, 0)
    assert (found["files_left_open"], found["processes_left"]) == (0, 0)
