"""Videos and stores behind URLs, on a real S3 server of this machine: the same store as on disk, and never a spoilt one."""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from films import write_film
from lvmae.embedding import EmbedSummary, embed_videos
from lvmae.errors import InputError, OutageError, WorkError
from lvmae.store import (
    EmbeddingStore,
    Failure,
    Manifest,
    StoreWriter,
    VideoRecord,
    merge_stores,
    remove_videos,
    repair_store,
    verify_store,
)
from lvmae.store.folder import StoreFolder

pytest.importorskip("s3fs", reason="s3:// needs the extra `s3`")
pytest.importorskip("moto.server", reason="the S3 server of these tests is moto's")

import fsspec

SEGMENTS = 8
MANIFEST = Manifest("mean", 4, {"kind": "fixed", "seconds": 1.0}, {"name": "mean", "options": {}, "licence": "CC0"})


class Mean:
    """An encoder without weights: mean brightness of a clip's four rows of blocks. With `log`, a dot a segment, and slow."""

    name, dim, num_frames, image_size, interpolation, framing = "mean", 4, 2, 32, "bilinear", "crop"
    licence, has_text, space_id = "CC0", False, "mean"

    def __init__(self, log: str = "") -> None:
        self.options: dict[str, Any] = {"log": log} if log else {}

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        if log := self.options.get("log"):
            time.sleep(0.1)
            with Path(log).open("a") as file:
                file.write("." * len(frames))
        return frames.reshape(len(frames), 2, 4, 8, -1).mean(axis=(1, 3, 4)).astype(np.float32) / 255

    def encode_text(self, texts: list[str]) -> np.ndarray:
        raise InputError("no text")

    def self_test(self) -> None: ...


MEAN = f"{Path(__file__).stem}:Mean"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """moto's S3, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of a new bucket; the environment says where the server is, as a user's would."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("LVMAE_CACHE", str(tmp_path / "cache"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = f"b{time.time_ns()}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    (root / "sub").mkdir()
    for i in range(6):
        write_film(
            root / (f"sub/{i}.mp4" if i % 2 else f"{i}.mp4"),
            [40 * k for k in range(25 * SEGMENTS)],
            options={"g": "25"},
            pictures=lambda k, i=i: np.full((64, 64, 3), (40 * i + k) % 256, np.uint8),
        )
    (root / "words.mp4").write_text("no video\n" * 100)
    return root


@pytest.fixture
def videos(folder: Path, bucket: str) -> str:
    fsspec.filesystem("s3").put(f"{folder}/", f"{bucket}/videos/", recursive=True)
    return f"{bucket}/videos"


def embed(videos: Any, out: str | Path, **options: Any) -> EmbedSummary:
    return embed_videos(videos, out, **({"encoder": MEAN, "segment_seconds": 1.0, "workers": 1} | options))


def contents(path: str | Path) -> dict[str, Any]:
    store = EmbeddingStore.open(path)
    assert len(set(store.ids)) == len(store.ids)
    rows = (store[i] for i in range(len(store)))
    return {r.id: (r.duration, r.starts.tobytes(), r.ends.tobytes(), np.asarray(r.embeddings).tobytes()) for r in rows}


def record(name: str, value: float = 0.5, length: int = 3) -> VideoRecord:
    times = np.arange(length, dtype=np.float64)
    return VideoRecord(name, f"{name}.mp4", float(length), times, times + 1, np.full((length, 4), value, np.float32))


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_from_bucket_to_bucket_it_is_the_store_that_the_disk_has_and_it_can_be_learnt_from(
    folder: Path, videos: str, bucket: str, tmp_path: Path
) -> None:
    out = f"{bucket}/deep/store"
    here, there = embed(folder, tmp_path / "here"), embed(videos, out)
    assert (there.embedded, there.failed, there.segments) == (here.embedded, here.failed, here.segments) == (6, 1, 48)
    assert contents(out) == contents(tmp_path / "here")
    store = EmbeddingStore.open(out)
    assert store[store.index("sub/1")].source == f"{videos}/sub/1.mp4"
    assert store.failures == [Failure("words", f"{videos}/words.mp4", here.failures[0].reason)]
    assert embed(videos, out).skipped == 6
    mapped = list((tmp_path / "cache" / "stores").glob("*.arrow"))
    assert mapped
    from lvmae.pretraining import pretrain  # here, because the workers import this module for its encoder

    run = pretrain(out, tmp_path / "run", recipe="tiny", settings={"epochs": 1})
    assert (run / "model.safetensors").exists()


SCRIPT = """
import sys
from lvmae.embedding import embed_videos
videos, out, log = sys.argv[1:]
embed_videos(videos, out, encoder="test_object_storage:Mean", encoder_options={"log": log}, segment_seconds=1.0, workers=1,
             batch_size=4, commit_seconds=0.2)
"""


def test_killed_and_resumed_equals_uninterrupted(folder: Path, videos: str, bucket: str, tmp_path: Path) -> None:
    out, log = f"{bucket}/store", tmp_path / "log"
    job = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, videos, out, str(log)], cwd=Path(__file__).parent, process_group=0
    )
    wait_for(lambda: log.exists() and log.stat().st_size >= 3 * SEGMENTS)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    before = EmbeddingStore(out)
    assert 0 < len(before) < 6
    summary = embed(videos, out)
    assert (summary.skipped, summary.embedded) == (len(before), 6 - len(before))
    embed(folder, tmp_path / "here")
    assert contents(out) == contents(tmp_path / "here")


@pytest.fixture
def gate(server: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The server as seen through a gate that can be shut."""
    started = Gate(server)
    threading.Thread(target=started.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{started.server_address[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield started
    started.shutdown()


class Gate(http.server.ThreadingHTTPServer):
    """Passes requests on; what is asked of videos is answered as S3 answers a token that has expired, once it is shut."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.server_url, self.open_for = server, 100  # so many videos may be asked for
        self.asked: dict[str, None] = {}


class _Passing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gate

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked, name = self.server.asked, urllib.parse.urlsplit(self.path).path
        if name.endswith(".mp4"):
            asked.setdefault(name)
        if name in list(asked)[self.server.open_for :]:
            word = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
            self._answer(400, {"Content-Type": "application/xml"}, word)
            return
        where = urllib.parse.urlsplit(self.server.server_url)
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        left_out = {"transfer-encoding", "connection", "date", "server"}
        left_out |= set() if self.command == "HEAD" else {"content-length"}
        for name, value in headers.items():
            if name.lower() not in left_out:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


def test_a_token_that_expires_stops_the_job_and_a_resumed_one_that_is_killed_loses_nothing(
    folder: Path, videos: str, bucket: str, gate: Gate, tmp_path: Path
) -> None:
    out, log = f"{bucket}/store", tmp_path / "log"
    names = ["0.mp4", "2.mp4", "4.mp4"]
    urls = [f"{videos}/{name}" for name in names]
    gate.open_for = 1
    with pytest.raises(OutageError, match=r"1 files in a row cannot be reached.*credentials may have expired"):
        embed(urls, out, encoder_options={"log": str(log)}, outage_after=1)
    assert len(EmbeddingStore(out)) == 1
    gate.open_for = 100
    log.unlink()
    script = SCRIPT.replace("videos, out, log = sys.argv[1:]", "out, log, *videos = sys.argv[1:]")
    job = subprocess.Popen(
        [sys.executable, "-c", script, out, str(log), *urls], cwd=Path(__file__).parent, process_group=0
    )
    wait_for(lambda: log.exists() and log.stat().st_size > 0)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    kept = len(EmbeddingStore(out))
    summary = embed(urls, out, encoder_options={"log": str(log)})
    assert (summary.skipped, summary.embedded, summary.failed) == (kept, 3 - kept, 0)
    embed([folder / name for name in names], tmp_path / "here")
    assert contents(out) == contents(tmp_path / "here")


def test_of_two_writers_one_stops_and_nothing_is_there_twice(bucket: str) -> None:
    out = f"{bucket}/store"
    first, second = StoreWriter(out, MANIFEST), StoreWriter(out, MANIFEST)
    for writer, names in ((first, "ab"), (second, "bc")):
        for name in names:
            writer.add(record(name, value=0.25 if writer is first else 0.75))
    first.commit()
    with pytest.raises(InputError, match="another process is writing to s3://"):
        second.commit()
    assert EmbeddingStore.open(out).ids == ["a", "b"]
    assert float(EmbeddingStore.open(out).embeddings(1)[0, 0]) == 0.25
    first.add(record("d"))
    first.commit()
    with StoreWriter(out, MANIFEST) as third:
        assert third.done == {"a", "b", "d"}
        third.add(record("c"))
    assert EmbeddingStore.open(out).ids == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="holds embedding space 'mean', not 'other'"):
        StoreWriter(out, Manifest("other", 4, MANIFEST.segments, MANIFEST.encoder))


def test_a_put_whose_answer_was_lost_is_no_other_writer(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StoreWriter(f"{bucket}/store", MANIFEST)
    put = writer._folder.fs.pipe_file

    def twice(*args: Any, **options: Any) -> None:
        put(*args, **options)
        put(*args, **options)

    monkeypatch.setattr(writer._folder.fs, "pipe_file", twice, raising=False)
    writer.add(record("a"))
    writer.commit()
    assert EmbeddingStore.open(f"{bucket}/store").ids == ["a"]


def test_stores_of_ranks_merge_in_the_bucket(videos: str, folder: Path, bucket: str, tmp_path: Path) -> None:
    out = f"{bucket}/ranks"
    done = [embed(videos, out, rank=rank, world_size=2, workers=1).embedded for rank in range(2)]
    assert sum(done) == 6
    merged = merge_stores(out, f"{bucket}/whole")
    assert (merged.added, merged.failed) == (6, 1)
    embed(folder, tmp_path / "here")
    assert contents(f"{bucket}/whole") == contents(tmp_path / "here")


def test_a_shard_that_changes_in_the_bucket_is_not_read_from_the_cache(bucket: str) -> None:
    out, files = f"{bucket}/store", fsspec.filesystem("s3")
    for value in (0.25, 0.75):
        with StoreWriter(out, MANIFEST) as writer:
            writer.add(record("a", value))
        assert float(EmbeddingStore.open(out).embeddings(0)[0, 0]) == value
        # Size and time could be the same: a bucket's listing knows whole seconds.
        (shard,) = StoreFolder(out).shards("data")
        assert shard.changed == files.info(f"{out}/{shard.path}")["ETag"]
        files.rm(out, recursive=True)


def test_what_cannot_be_reached_is_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bucket does not exist"):
        StoreWriter("s3://there-is-none/store", MANIFEST)
    with pytest.raises(InputError, match="is not a store"):
        EmbeddingStore("s3://there-is-none/store")
    with pytest.raises(InputError, match="cannot be listed: The specified bucket does not exist"):
        embed("s3://there-is-none/videos", tmp_path / "store")
    fsspec.filesystem("s3").pipe_file(f"{bucket}/full/film.mp4", b"...")
    with pytest.raises(InputError, match="is not empty and holds no store"):
        StoreWriter(f"{bucket}/full", MANIFEST)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(InputError, match="cannot be reached: Unable to locate credentials"):
        EmbeddingStore(f"{bucket}/store")


def test_no_network_is_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(WorkError, match="cannot be reached: Could not connect to the endpoint URL"):
        EmbeddingStore(f"{bucket}/store")


@pytest.mark.parametrize(("url", "module", "extra"), [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gcs")])
def test_a_scheme_whose_client_is_missing_names_the_extra(url: str, module: str, extra: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from lvmae.cli import main; sys.exit(main(sys.argv[1:]))"
    for command in (["inspect", url], ["embed", url, "--out", str(tmp_path / "store")]):
        run = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert run.stderr.splitlines()[-1].endswith(f"needs another package: pip install 'lvmae[{extra}]'")


def test_hf_urls_go_to_the_hub() -> None:
    from lvmae.files.urls import file_system

    files, root = file_system("hf://datasets/someone/films/store")
    assert (type(files).__name__, root) == ("HfFileSystem", "datasets/someone/films/store")


def test_in_a_bucket_damage_is_put_aside_and_removed_videos_are_gone(bucket: str) -> None:
    out, files = f"{bucket}/store", fsspec.filesystem("s3")
    for name in "abcd":
        with StoreWriter(out, MANIFEST) as writer:
            writer.add(record(name, 0.5))
    assert verify_store(out).problems == []
    files.rm(f"{out}/data/part-00000003.parquet")
    content = bytearray(files.cat_file(f"{out}/data/part-00000001.parquet"))
    content[-30] ^= 1
    files.pipe_file(f"{out}/data/part-00000001.parquet", bytes(content))
    found = verify_store(out)
    assert [problem.ids for problem in found.problems] == [("b",), ("d",)]
    repair_store(out, found)
    assert verify_store(out).problems == []
    assert EmbeddingStore.open(out).ids == ["a", "c"]
    assert (remove_videos(out, ["c"]).videos, EmbeddingStore.open(out).ids) == (1, ["a"])
    assert verify_store(out).problems == []
    with StoreWriter(out, MANIFEST) as writer:
        assert writer.removed == {"c"}
        writer.admit(["c"])
        for name in "bcd":
            writer.add(record(name, 0.25))
    assert EmbeddingStore.open(out).ids == ["a", "b", "c", "d"]
