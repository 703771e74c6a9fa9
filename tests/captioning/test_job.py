"""The caption file, being killed, videos that are gone, and the command: with the server on loopback of `test_asking`."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
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
from loopback import (
    EXPECTED,
    KEY,
    Request,
    body,
    captions,
    chat,
    error,
    make_store,
    run_cli,
    saw,
    sentence,
    write_film,
)

from lvmae.captioning import CaptionJob
from lvmae.errors import InputError, WorkError
from lvmae.store import Manifest, StoreWriter, VideoRecord

# --- the file ---------------------------------------------------------------------------------------------------------------


def test_any_text_is_one_row(server, job):
    texts = ['He says "no",\nthen\r\nleaves', "=1+1; <script>", "a\u2028b\x0bc\x85d", "half \ud83d of a pair", "雨 ☂"]
    server.behave = lambda request, nth: body(chat(f"<think>hm</think> {texts[request.segment % 5]}"))
    job().run()
    expected = ['He says "no", then leaves', "=1+1; <script>", "a b c d", "half ? of a pair", "雨 ☂"]
    assert {(c.video, c.start, c.text) for c in captions(job())} == {
        (f"film {n // 6}", n % 6 * 2.0, expected[n % 5]) for n in range(12)
    }
    assert len(Path(job().out).read_bytes().splitlines()) == 13


def test_times_come_back_to_the_last_bit_and_ids_whatever_they_are(server, tmp_path, films):
    names = ['a "b", c', " blank ", "line\nbreak"]
    starts = np.array([0.0, 1 / 3, 2 / 3])
    with StoreWriter(tmp_path / "store", Manifest("s", 4, {"kind": "shots"}, {"name": "imported"})) as writer:
        for name in names:
            writer.add(VideoRecord(name, str(films[0]), 1.0, starts, starts + 1 / 3, np.ones((3, 4))))
    options = {"endpoint": server.url, "model": "m", "frames": 1, "frame_height": 32}
    job = CaptionJob(tmp_path / "store", tmp_path / "c.csv", **options)
    assert job.run().captioned == 9
    assert job.run().captioned == 0
    content = job.out.read_bytes()
    job.out.write_bytes(content[: content.rindex(b"line\nbreak") + 5])  # half a row, and the end of a line
    assert job.run().captioned == 1
    assert {(c.video, c.start, c.end) for c in captions(job)} == {
        (name.strip(), start, start + 1 / 3) for name in names for start in starts.tolist()
    }
    assert job.run().captioned == 0


def test_a_half_written_row_is_repaired(server, job):
    """Wherever a power cut ends the file, what is lost is asked again and nothing else."""
    job().run()
    path = Path(job().out)
    whole = path.read_bytes()
    for kept in (5, 17, 21, 22, 40, 43, 60, 61):
        path.write_bytes(whole[:kept])
        rows = max(0, whole[:kept].count(b"\n") - 1)
        server.requests.clear()
        assert job().estimate().segments == 12 - rows
        assert path.read_bytes() == whole[:kept]
        summary = job().run()
        assert (summary.captioned, summary.before) == (12 - rows, rows)
        assert len(server.requests) == 12 - rows
        assert captions(job()) == EXPECTED
        assert path.read_bytes().startswith(whole[: whole[:kept].rfind(b"\n") + 1])


@pytest.mark.parametrize(
    "content",
    [
        "notes without an end",
        "a,b,c,d\n1,2,3,4\n",
        "video,start,end,text\nv,0,1,somebody's own\n",
        "start,end,video,text\n",
    ],
)
def test_a_file_of_another_is_left_alone(server, job, content):
    path = Path(job().out)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    for go in (job().run, job().estimate):
        with pytest.raises(InputError, match="not written by this command"):
            go()
    assert path.read_text() == content
    assert server.requests == []


def test_captions_of_two_models_or_prompts_never_mix(server, job):
    job().run()
    for change in ({"model": "n"}, {"prompt": "Why?"}, {"frames": 5}, {"frame_height": 48}):
        ((name, value),) = change.items()
        with pytest.raises(InputError, match=f"was made with {name} .* this asks for {re.escape(repr(value))}"):
            job(**change).run()
    assert len(server.requests) == 12


def test_two_runs_do_not_write_to_one_file(server, job):
    refused: list[Exception] = []

    def meanwhile(request: Request, nth: int) -> str:
        if request.segment == 0:
            with pytest.raises(InputError, match="another process is writing") as caught:
                job().run()
            refused.append(caught.value)
        return saw(request)

    server.behave = meanwhile
    job().run()
    assert len(refused) == 1
    assert server.asked() == dict.fromkeys(range(12), 1)


def test_a_full_disk_ends_the_run_with_whole_rows(server, job, monkeypatch):
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    job(prompt="p").estimate()
    server.behave = lambda request, nth: saw(request) + "." * 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limit[1]))
    try:
        with pytest.raises(WorkError, match="make room and rerun the same command"):
            job(prompt="p").run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    kept = captions(job())
    assert len(kept) == 4
    assert job(prompt="p").run().before == 4
    assert len(captions(job())) == 12


# --- killed and stopped -----------------------------------------------------------------------------------------------------


def start(job: CaptionJob) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "lvmae",
        "caption",
        str(job.store),
        "--out",
        str(job.out),
        "--endpoint",
        job.endpoint,
    ]
    return subprocess.Popen(
        [*command, "--model", "m", "--frames", "4", "--frame-height", "32", "--concurrency", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LVMAE_API_KEY": KEY},
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_keeps_all_and_goes_on(server, job, end):
    reached = threading.Event()

    def halt(request: Request, nth: int) -> str:
        if request.segment >= 7 and not server.stop.is_set():
            reached.set()
            server.stop.wait(20)
        return saw(request)

    server.behave = halt
    process = start(job())
    try:
        assert reached.wait(30)
        deadline = time.monotonic() + 10
        while len(captions(job())) < 7 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(end)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == (130 if end == signal.SIGINT else -9)
    kept = captions(job())
    assert {int(c.text.split()[1]) for c in kept} == set(range(7))
    if end == signal.SIGINT:
        assert "interrupted; 7 of 12 segments are captioned" in sentence(err)
        assert "rerun the same command to resume" in err
    assert KEY not in out + err
    server.stop.set()
    server.requests.clear()
    summary = job().run()
    assert (summary.captioned, summary.before) == (5, 7)
    assert server.asked() == dict.fromkeys(range(7, 12), 1)
    assert captions(job()) == EXPECTED


# --- videos that are not as the store says ----------------------------------------------------------------------------------


def test_missing_broken_and_short_videos_fail_with_a_sentence_and_the_others_go_on(server, tmp_path, films):
    (tmp_path / "text.mp4").write_text("no film")
    write_film(tmp_path / "short.mp4", 6.4, 0)
    store = make_store(
        tmp_path / "store", [films[0], tmp_path / "gone.mp4", tmp_path / "text.mp4", tmp_path / "short.mp4"]
    )
    job = CaptionJob(store, tmp_path / "c.csv", endpoint=server.url, model="m", frames=4, frame_height=32)
    assert job.estimate().missing_videos == 1
    code, out, err = run_cli(job)
    assert (code, "Traceback" in err) == (1, False)
    lines = [line.strip() for line in out.splitlines() if "failed:" in line]
    assert (
        f"failed: film 1, 6 segments from 0 s: {tmp_path}/gone.mp4: there is no such file, or it is a broken link"
        in lines
    )
    assert any(f"failed: film 2, 6 segments from 0 s: {tmp_path}/text.mp4: not a video" in line for line in lines)
    assert any("failed: film 3," in line and "short.mp4" in line for line in lines)
    assert len(lines) == 3
    assert {c for c in captions(job) if c.video == "film 0"} == {c for c in EXPECTED if c.video == "film 0"}
    write_film(tmp_path / "gone.mp4", 12, 12)
    again = job.run()
    assert again.captioned == 6
    assert {c for c in captions(job) if c.video in ("film 0", "film 1")} == EXPECTED


def test_decoding_stays_ahead_of_the_server_by_a_few_segments_only(server, job, monkeypatch):
    import lvmae.captioning.job as module

    decoded: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Iterator[list[bytes]]:
        for pictures in original(*arguments, **options):
            decoded.append(1)
            yield pictures

    original = module.segment_jpegs
    monkeypatch.setattr(module, "segment_jpegs", counted)
    ahead: list[int] = []

    def slow(request: Request, nth: int) -> str:
        time.sleep(0.05)
        ahead.append(len(decoded) - len(ahead))
        return saw(request)

    server.behave = slow
    job(concurrency=2).run()
    assert 2 < max(ahead) <= 2 * 2 + 1 + 1  # asked, queued, decoded, and one answer on its way back


# --- the command ------------------------------------------------------------------------------------------------------------


def test_the_estimate_counts_what_is_left_and_sends_nothing(server, job):
    code, out, _ = run_cli(job(), "--dry-run", "--prompt", "x" * 40, "--price-in", "2", "--price-out", "10")
    assert code == 0
    tokens_in, tokens_out = 12 * (4 * 3 + 10), 12 * 60  # 64 x 32 pixels are 3 tokens, 40 characters 10
    dollars = f"${(tokens_in * 2 + tokens_out * 10) / 1e6:.2f}"
    assert "12 segments to caption (0 are captioned): 12 requests with 48 pictures of 64x32" in out
    assert f"estimated: {tokens_in} tokens in, {tokens_out} out, {dollars}" in out
    assert server.requests == []
    assert not Path(job().out).exists()
    assert job(requests_per_minute=4).estimate().minutes == 3
    server.behave = lambda request, nth: saw(request) if request.segment < 9 else error(400, "no")
    job().run()
    left = job().estimate()
    assert (left.segments, left.captioned, left.pictures) == (3, 9, 12)


def test_a_price_is_asked_about_on_a_terminal(server, job):
    """On a real pseudo-terminal: no answer but yes starts it; --yes and no price do not ask."""
    import pty

    def dialogue(answer: str, *options: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode())
        with open(theirs, closefd=False) as terminal:
            old, sys.stdin = sys.stdin, terminal
            try:
                code, out, _ = run_cli(job(), *options)
            finally:
                sys.stdin = old
        os.close(ours)
        os.close(theirs)
        return code, out

    code, out = dialogue("\n", "--price-in", "1")
    assert (code, "Continue? [y/N] nothing was asked" in out, len(server.requests)) == (1, True, 0)
    code, out = dialogue("y\n", "--price-in", "1")
    assert (code, len(server.requests)) == (0, 12)
    assert (
        "12 segments captioned, 0 already stored, 0 failed; the server counted 1,200 tokens in, 120 out, $0.00" in out
    )
    code, out = dialogue("", "--price-in", "1", "--yes")
    assert (code, "Continue?" in out) == (0, False)
    code, out = dialogue("")
    assert (code, "Continue?" in out) == (0, False)


@pytest.mark.parametrize(
    "option",
    [
        ["--frames", "0"],
        ["--concurrency", "0"],
        ["--requests-per-minute", "0"],
        ["--timeout", "nan"],
        ["--price-in", "-1"],
    ],
)
def test_options_without_sense_are_refused(server, job, option):
    code, _, err = run_cli(job(), *option)
    assert code == 2
    assert option[0] in sentence(err)
    assert server.requests == []


def test_places_that_cannot_be_written_are_refused_before_anything_is_asked(server, job, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("captions.json", "file/captions.csv"):
        with pytest.raises(InputError, match=r"captions\.(json must end in \.csv|csv cannot be)"):
            CaptionJob(job().store, tmp_path / out, endpoint=server.url, model="m").run()
    assert server.requests == []


def test_it_runs_where_a_loop_is_running_as_in_a_notebook(server, job):
    async def cell() -> int:
        return job().run().captioned

    assert asyncio.run(cell()) == 12
    assert captions(job()) == EXPECTED


def test_it_can_be_interrupted_there_too(server, job):
    async def cell() -> None:
        job(concurrency=1).run()

    def interrupt(request: Request, nth: int) -> str:
        if request.segment == 5 and nth == 1:
            os.kill(os.getpid(), signal.SIGINT)
            server.stop.wait(1)
        return saw(request)

    server.behave = interrupt
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt, match="interrupted; 5 of 12 segments are captioned"):
        loop.run_until_complete(cell())
    loop.close()
    assert job().run().captioned == 7
    assert captions(job()) == EXPECTED


def test_the_file_is_what_its_columns_say(server, job):
    job(concurrency=1).run()
    with Path(job().out).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["video", "start", "end", "text"]
    assert rows[1] == ["film 0", "0.0", "2.0", "segment 0"]
    assert json.loads(Path(f"{job().out}.json").read_text())["model"] == "m"
