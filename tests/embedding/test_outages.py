"""An outage is not a bad file, and neither is a file that is still being written."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from films import write_film
from jobs import Mean, contents, embed
from lvmae.cli import main
from lvmae.embedding.pipeline import FrameFormat, Job, Postponed, decode_files
from lvmae.embedding.sources import VideoFile
from lvmae.errors import InUse
from lvmae.store import EmbeddingStore, StoreWriter
from lvmae.video import remote
from lvmae.video.decoding import probe
from lvmae.video.errors import Outage, VideoError
from lvmae.video.remote import RemoteFile
from lvmae.video.segmentation import SegmentRule

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    for i in range(3):
        times = [40 * k for k in range(50)]
        write_film(root / f"{i}.mp4", times, pictures=lambda k, i=i: np.full((64, 64, 3), 60 * i + k, np.uint8))
    return root


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, with ranges; `trouble` says what goes wrong with the next `times` answers."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.trouble, self.times = root, "", 0
        self.retry_after = "0"
        self.asked: list[str] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server, path = self.server, self.server.root / self.path.strip("/")
        server.asked.append(f"{self.command} {self.path}")
        trouble = server.trouble if server.times > 0 else ""
        server.times -= bool(trouble)
        if not path.is_file():
            self._send(404, b"")
        elif trouble.isdigit():
            self._send(int(trouble), b"busy", {"Retry-After": server.retry_after})
        elif trouble == "redirect":
            self._send(302, b"", {"Location": self.path})
        else:
            data = path.read_bytes()
            begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(begin) : int(end) + 1 if end else None]
            content_range = {"Content-Range": f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}"}
            ranged = "Range" in self.headers
            self._send(206 if ranged else 200, part, content_range if ranged else {}, trouble)

    do_HEAD = do_GET

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, trouble: str = "") -> None:
        lying = trouble in ("stall", "short") and self.command == "GET"
        sent = body[: len(body) // 2] if lying else body
        self.send_response(status)
        for name, value in ({"Accept-Ranges": "bytes"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent if trouble == "short" else body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)
            if trouble == "stall":
                self.wfile.flush()
                self.server.over.wait(60)
                self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    started = Server(folder)
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.over.set()
    started.shutdown()


# --- reading --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "_STALL_SECONDS", 1.0)
    yield
    remote.set_patience(120)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("trouble", ["429", "500", "503", "403", "401", "redirect", "stall", "short"])
def test_what_a_server_does_once_is_tried_again_and_what_it_keeps_doing_is_an_outage(
    server: Server, folder: Path, trouble: str
) -> None:
    url = f"{server.url}/1.mp4"
    wanted = (folder / "1.mp4").read_bytes()
    server.trouble, server.times = trouble, 2 if trouble == "stall" else 3
    if trouble in ("403", "401"):  # tried once more; a HEAD and a GET make one try
        server.times = 2
    file = RemoteFile(url)
    assert file.read(-1) == wanted
    assert server.times <= 0
    file.close()
    server.times = 1000
    with pytest.raises(Outage, match=r"the server answered \d+|redirects in circles|did not answer|sent \d+ of \d+"):
        probe(url)


@pytest.mark.usefixtures("hasty")
def test_what_is_not_there_is_the_file_s_own_fault_and_a_wait_that_is_asked_for_is_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VideoError, match="there is no such file") as caught:
        RemoteFile(f"{server.url}/none.mp4")
    assert not isinstance(caught.value, Outage)
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    server.trouble, server.times, server.retry_after = "503", 2, "7"  # HEAD and GET
    RemoteFile(f"{server.url}/1.mp4").close()
    assert pauses == [7.0]
    server.times, server.retry_after = 1000, "7000"
    with pytest.raises(Outage, match="the server answered 503; the server asks to wait 7000 s"):
        RemoteFile(f"{server.url}/1.mp4")
    assert pauses == [7.0]


# --- jobs -----------------------------------------------------------------------------------------------------------------


def test_a_job_stops_after_some_outages_in_a_row_and_the_same_command_continues(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [f"{server.url}/{i}.mp4" for i in range(3)] + [f"{server.url}/none.mp4"]
    command = ["embed", *urls, "--out", str(tmp_path / "store"), "--encoder", "jobs:Mean", "--workers", "1"]
    command += ["--segment-seconds", "1", "--outage-after", "2"]
    server.trouble, server.times = "503", 10**6
    assert main(command) == 75
    said = capsys.readouterr().err
    assert "2 files in a row cannot be reached" in said
    assert "the server answered 503" in said
    store = EmbeddingStore(tmp_path / "store")
    assert (store.ids, store.failures) == ([], [])
    server.times = 0
    assert main(command) == 1  # for the one that is not there
    store = EmbeddingStore.open(tmp_path / "store")
    assert sorted(store.ids) == ["0", "1", "2"]
    assert [(f.id, f.reason) for f in store.failures] == [("none", "there is no such file")]
    embed(folder, tmp_path / "here")
    got, wanted = contents(tmp_path / "store"), contents(tmp_path / "here")
    assert {key: row[1:] for key, row in got.items()} == {key: row[1:] for key, row in wanted.items()}


def test_a_file_out_of_reach_among_others_is_postponed(server: Server, folder: Path, tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:9/{0}.mp4"  # nobody listens
    videos = [gone, f"{server.url}/1.mp4", folder / "2.mp4"]
    summary = embed(videos, tmp_path / "store", timeout=2.0)
    assert (summary.embedded, summary.failed) == (2, 0)
    assert [(file.path, file.outage) for file in summary.postponed] == [(gone, True)]
    assert EmbeddingStore.open(tmp_path / "store").failures == []


def test_a_file_that_changes_while_it_is_read_is_not_taken_as_finished(folder: Path, tmp_path: Path) -> None:
    """Between two of its segments the file grows, as a recording does; once it has settled it is embedded."""
    film = tmp_path / "film.mp4"
    film.write_bytes((folder / "1.mp4").read_bytes())
    job, file = Job("mean", {}, SegmentRule(1.0), 4), VideoFile("film", str(film))
    said = []
    for _, event in decode_files([file], FrameFormat.of(Mean()), job):
        if len(said) == 1:
            with film.open("ab") as more:
                more.write(b"\0" * 100)
        said.append(event)
    assert isinstance(said[-1], Postponed)
    assert not said[-1].outage
    assert "still being written" in said[-1].reason
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"begun")
    reading = decode_files([VideoFile("bad", str(bad))], FrameFormat.of(Mean()), job)
    assert [type(event).__name__ for _, event in reading] == ["Failure"]
    assert embed([film], tmp_path / "store").embedded == 1


def test_a_recording_is_reported_and_embedded_by_the_next_run(folder: Path, tmp_path: Path) -> None:
    """A writer appends to a film all the while it is decoded, and is stopped when the job has told so."""
    film = tmp_path / "film.mp4"
    film.write_bytes((folder / "1.mp4").read_bytes())
    over = threading.Event()

    def record() -> None:
        while not over.is_set():
            with film.open("ab") as more:
                more.write(b"\0" * 64)
            time.sleep(0.001)

    writer = threading.Thread(target=record)
    writer.start()
    try:
        summary = embed([film, folder / "2.mp4"], tmp_path / "store")
    finally:
        over.set()
        writer.join()
    assert (summary.embedded, summary.failed) == (1, 0)
    assert [(file.id, file.outage) for file in summary.postponed] == [("film", False)]
    after = embed([film, folder / "2.mp4"], tmp_path / "store")
    assert (after.embedded, after.skipped, after.postponed) == (1, 1, ())


# --- ends -----------------------------------------------------------------------------------------------------------------


def _command(folder: Path, out: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lvmae", "embed", str(folder), "--out", str(out), "--encoder", "jobs:Mean"),
        *("--encoder-option", f"trouble=log={out.with_suffix('.log')}", "--segment-seconds", "1"),
        *("--workers", "1", "--batch-size", "1", *options),
    ]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}


def test_sigterm_commits_what_is_finished_and_exits_with_143(folder: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "store", tmp_path / "store.log"
    job = subprocess.Popen(_command(folder, out), env=_environment(), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 3:  # one film of two segments is finished
        assert time.monotonic() < end
        time.sleep(0.02)
    job.terminate()
    _, said = job.communicate(timeout=30)
    assert job.returncode == 128 + signal.SIGTERM == 143
    assert "What was finished is in the store" in said
    assert 1 <= len(EmbeddingStore.open(out)) < 3


def test_a_store_in_use_is_waited_for_if_asked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    embed([folder / "0.mp4"], out)
    manifest = EmbeddingStore.open(out).manifest
    with StoreWriter(out, manifest):
        with pytest.raises(InUse, match="another process is writing to"):
            embed(folder, out)
        job = subprocess.Popen(_command(folder, out, "--wait"), env=_environment(), stderr=subprocess.PIPE, text=True)
        assert job.stderr is not None
        assert "Waiting: another process is writing to" in job.stderr.readline()
    assert job.wait(timeout=60) == 0
    job.stderr.close()
    assert sorted(EmbeddingStore.open(out).ids) == ["0", "1", "2"]


def test_a_store_that_is_deleted_under_its_job_is_an_error(folder: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "store", tmp_path / "store.log"
    job = subprocess.Popen(_command(folder, out), env=_environment(), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 1:
        assert time.monotonic() < end
        time.sleep(0.02)
    shutil.rmtree(out)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "was deleted while it was written to" in said
    assert "Traceback" not in said
    assert embed(folder, out, encoder_options={"trouble": f"log={log}"}).embedded == 3  # nothing is in its way


def test_what_an_encoder_gives_that_is_no_number_is_a_failure(folder: Path, tmp_path: Path) -> None:
    summary = embed(folder, tmp_path / "store", encoder=f"{__name__}:Nan")
    assert (summary.embedded, summary.failed) == (0, 3)
    assert "values that are not finite" in summary.failures[0].reason


class Nan(Mean):
    """An encoder whose arithmetic overflows."""

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        return np.full((len(frames), 4), np.nan, np.float32)
