"""The Ray engine on a real cluster of three nodes on this machine: the same store as the local engine's, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from films import write_film
from lvmae.embedding import EmbedSummary, embed_videos
from lvmae.errors import InputError, WorkError
from lvmae.store import EmbeddingStore

pytest.importorskip("ray", reason="the cluster engine needs the extra `ray`")

import psutil
import ray
from ray.cluster_utils import Cluster

from lvmae.embedding import ray_engine
from lvmae.embedding.ray_engine import ActorNeeds, _tasks
from lvmae.embedding.sources import VideoFile

VIDEOS, SEGMENTS = 9, 6
WHITE = np.full((64, 64, 3), 255, np.uint8)


class Mixed:
    """An encoder without weights: products of random float32 matrices, whose rounding would tell another number of threads.

    Slow and in trouble on request: `log` has a dot a segment encoded; a white film kills the process, or keeps it for ever.
    """

    name, dim, num_frames, image_size, interpolation, framing = "mixed", 8, 2, 32, "bilinear", "crop"
    licence, has_text, space_id = "CC0", False, "mixed"

    def __init__(self, log: str = "", white: str = "", broken: str = "") -> None:
        self.options: dict[str, Any] = {"log": log, "white": white, "broken": broken}
        random = np.random.default_rng(0)
        self.layers = [random.standard_normal(shape).astype(np.float32) for shape in ((2 * 32 * 32 * 3, 256), (256, 8))]

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        if self.options.get("broken"):
            raise RuntimeError(self.options["broken"])
        if self.options["white"] and (frames > 200).mean() > 0.9:
            if self.options["white"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        if self.options.get("log"):
            time.sleep(0.2)
            with Path(self.options["log"]).open("a") as log:
                log.write("." * len(frames))
        rows = []
        for clip in frames:  # one by one, so that a result does not depend on its neighbours
            hidden = np.tanh(clip.reshape(1, -1).astype(np.float32) @ self.layers[0] / 1e4)
            rows.append((hidden @ self.layers[1])[0])
        values = np.stack(rows)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    def encode_text(self, texts: list[str]) -> np.ndarray:
        raise InputError("no text")

    def self_test(self) -> None: ...


class Loading(Mixed):
    """The same, which notes each time that it is loaded."""

    def __init__(self, loads: str, white: str) -> None:
        super().__init__(white=white)
        self.options = {"loads": loads, "white": white}
        with Path(loads).open("a") as file:
            file.write(f"{os.getpid()}\n")


MIXED, LOADING = f"{Path(__file__).stem}:Mixed", f"{Path(__file__).stem}:Loading"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of one CPU, and one with what stands for a GPU; a node that is gone is noticed after two seconds."""
    soon: dict[str, Any] = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    soon |= {"health_check_initial_delay_ms": 0, "prestart_worker_first_driver": False}
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    )
    started.decoding_nodes = [started.add_node(num_cpus=1) for _ in range(2)]
    started.add_node(num_cpus=0, resources={"accelerator": 1})
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    for i in range(VIDEOS):
        write_film(
            root / f"{i:02d}.mp4",
            [40 * k for k in range(25 * SEGMENTS)],
            options={"g": "25"},
            pictures=lambda k, i=i: np.full((64, 64, 3), (20 * i + k) % 190, np.uint8),
        )
    return root


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("plain") / "store"
    embed(folder, out, workers=2)
    return contents(out)


def embed(videos: Any, out: Path, **options: Any) -> EmbedSummary:
    return embed_videos(videos, out, **({"encoder": MIXED, "segment_seconds": 1.0, "batch_size": 3} | options))


def contents(path: Path) -> dict[str, Any]:
    store = EmbeddingStore.open(path)
    assert len(set(store.ids)) == len(store.ids)
    rows = (store[i] for i in range(len(store)))
    return {
        r.id: (r.source, r.duration, r.starts.tobytes(), r.ends.tobytes(), np.asarray(r.embeddings).tobytes())
        for r in rows
    }


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def encoded(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def test_the_store_equals_the_local_one_and_bad_files_have_the_same_reasons(
    cluster: Cluster, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = Path("videos")
    videos.mkdir()
    for name in ("00", "01", "02", "03"):
        (videos / f"{name}.mp4").symlink_to(folder / f"{name}.mp4")
    write_film(videos / "white.mp4", [40 * k for k in range(50)], pictures=lambda k: WHITE)
    (videos / "words.mp4").write_text("no video\n" * 100)
    options: dict[str, Any] = {"encoder_options": {"white": "kill"}}
    here = embed(videos, tmp_path / "here", workers=2, **options)
    there = embed(videos, tmp_path / "there", engine="ray", address=cluster.address, **options)
    assert (there.embedded, there.failed, there.segments) == (here.embedded, here.failed, here.segments) == (4, 2, 24)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert sorted(there.failures, key=lambda f: f.id) == sorted(here.failures, key=lambda f: f.id)
    assert [f.path for f in there.failures] == ["videos/white.mp4", "videos/words.mp4"]
    assert not ray.is_initialized()


def test_a_file_that_hangs_is_given_up_and_an_encoder_that_fails_is_no_file_s_fault(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    white = write_film(tmp_path / "white.mp4", [40 * k for k in range(50)], pictures=lambda k: WHITE)
    ray_engine = {"engine": "ray", "address": cluster.address, "workers": 1}
    with pytest.raises(WorkError, match="failed: RuntimeError: no such kernel"):
        embed([folder / "00.mp4"], tmp_path / "none", encoder_options={"broken": "no such kernel"}, **ray_engine)
    out = tmp_path / "store"
    summary = embed([white, folder / "01.mp4"], out, encoder_options={"white": "hang"}, timeout=2.0, **ray_engine)
    assert (summary.embedded, summary.failed) == (1, 1)
    assert "no progress for 2 s" in summary.failures[0].reason


SCRIPT = """
import sys
from lvmae.embedding import embed_videos
folder, out, log, address = sys.argv[1:]
try:
    embed_videos(folder, out, encoder="test_ray_engine:Mixed", encoder_options={"log": log}, segment_seconds=1.0, batch_size=3,
                 engine="ray", address=address)
except KeyboardInterrupt as stopped:
    print(stopped)
"""


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    cluster: Cluster, folder: Path, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "store", tmp_path / "log"
    job = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(out), str(log), cluster.address],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: encoded(log) >= 18)
    job.send_signal(signal.SIGINT)
    said, _ = job.communicate(timeout=180)
    assert "rerun the same command to resume" in said
    before = EmbeddingStore(out).ids
    assert len(before) < VIDEOS
    monkeypatch.setattr(ray_engine, "_FILES_A_ROUND", 4)  # more rounds than one
    summary = embed(folder, out, engine="ray", address=cluster.address)
    assert (summary.skipped, summary.embedded) == (len(before), VIDEOS - len(before))
    assert contents(out) == plain


def test_what_a_cluster_cannot_do_is_said_in_one_sentence(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No Ray cluster answers at 127\.0\.0\.1:1"):
        embed(folder, tmp_path / "store", engine="ray", address="127.0.0.1:1")
    with pytest.raises(InputError, match="A worker needs some CPUs"):
        ActorNeeds(cpus=0)
    without = "import sys; sys.modules['ray'] = None; from lvmae.embedding import embed_videos; "
    call = f"embed_videos({str(folder)!r}, {str(tmp_path / 'store')!r}, engine='ray')"
    run = subprocess.run([sys.executable, "-c", without + call], capture_output=True, text=True, check=False)
    assert "pip install 'lvmae[ray]'" in run.stderr.splitlines()[-1]


def test_actors_and_tasks_are_counted() -> None:
    node = {"CPU": 8.0, "GPU": 2.0, "npu": 3.0}
    assert [ActorNeeds(cpus).decoders_on(node) for cpus in (1, 3, 16)] == [8, 2, 0]
    assert [ActorNeeds(gpus=gpus).encoders_on(node) for gpus in (0, 1, 0.25, 3)] == [0, 2, 8, 0]
    assert ActorNeeds(resources=(("npu", 2.0),)).encoders_on(node) == 1
    assert ActorNeeds(gpus=1, resources=(("tpu", 1.0),)).encoders_on(node) == 0
    files = [VideoFile(str(i), f"s3://bucket/{i}.mp4") for i in range(1000)]
    tasks = _tasks(files, actors=4)
    assert sorted(file.id for task in tasks for file in task) == sorted(file.id for file in files)
    assert {len(task) for task in tasks} == {16, 1000 % 16}
    assert {len(task) for task in _tasks(files[:20], actors=4)} == {1}


def named(process: psutil.Process) -> str:
    """Its command; nothing where it has just ended."""
    try:
        return "".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill_node(node: Any, actor: str, log: Path | None = None) -> None:
    """Kills a node of the cluster with all that runs on it, once an actor of a kind does and, with a log, something is encoded."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    wait_for(lambda: any(actor in named(p) for p in raylet.children()) and (log is None or encoded(log) >= 6))
    for process in [raylet, *raylet.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_decoders_feed_encoders_where_the_accelerator_is_whatever_dies(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    """A node of decoders is killed, and a film ends the encoder: nothing is lost but that film, and nothing is there twice."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("00", "01", "02"):
        (videos / f"{name}.mp4").symlink_to(folder / f"{name}.mp4")
    write_film(videos / "white.mp4", [40 * k for k in range(50)], pictures=lambda k: WHITE)
    (videos / "words.mp4").write_text("no video\n" * 100)
    loads = tmp_path / "loads"
    options: dict[str, Any] = {"encoder": LOADING, "encoder_options": {"loads": str(loads), "white": "kill"}}
    here = embed(videos, tmp_path / "here", workers=1, batch_size=1, encoder_options={"white": "kill"})
    node = cluster.decoding_nodes.pop()
    killer = threading.Thread(target=_kill_node, args=(node, "DecodingActor"))
    killer.start()
    there = embed(
        videos,
        tmp_path / "there",
        engine="ray",
        address=cluster.address,
        encoder_resources={"accelerator": 1},
        **options,
    )
    killer.join()
    cluster.worker_nodes.remove(node)
    assert (there.embedded, there.failed, there.segments) == (here.embedded, here.failed, here.segments) == (3, 2, 18)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    reasons = {failure.id: failure.reason for failure in there.failures}
    assert reasons["white"] == "its process was ended 2 times while encoding it (signal 9)"
    assert "not a video" in reasons["words"]
    assert 2 <= len(loads.read_text().split()) <= 4  # here, on the accelerator's node, and there after each death
    with pytest.raises(InputError, match="No node of the cluster has 2 accelerator"):
        embed(
            folder,
            tmp_path / "none",
            engine="ray",
            address=cluster.address,
            encoder_resources={"accelerator": 2},
        )


def test_a_node_killed_in_the_middle_loses_nothing(
    cluster: Cluster, folder: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    node = cluster.decoding_nodes.pop()
    killer = threading.Thread(target=_kill_node, args=(node, "_Actor", log))
    killer.start()
    summary = embed(
        folder, tmp_path / "store", encoder_options={"log": str(log)}, engine="ray", address=cluster.address
    )
    killer.join()
    assert (summary.embedded, summary.failed) == (VIDEOS, 0)
    assert contents(tmp_path / "store") == plain
    # Done again is at most what was in flight on that node: the task in hand, one file here, and one whose result was still there.
    assert VIDEOS * SEGMENTS <= encoded(log) <= (VIDEOS + 2) * SEGMENTS
    cluster.worker_nodes.remove(node)
