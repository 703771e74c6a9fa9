"""Captions asked for at a real HTTP server on loopback, which fails, stalls and answers badly in the ways such servers do.

The film's grey tells the time: picture k of the film is k grey levels above black, so a test reads from the JPEGs which
seconds of which segment the server was shown, and the server's caption says what it saw.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from lvmae.captioning import CaptionJob, endpoint
from lvmae.captioning.endpoint import Pace
from lvmae.captions import Caption, load_captions
from lvmae.cli import main
from lvmae.errors import InputError, WorkError
from lvmae.store import Manifest, StoreWriter, VideoRecord

KEY = "sk-very-secret-0123456789"
SEGMENT_SECONDS, FPS, STEP = 2.0, 10, 4  # the grey grows by STEP a second of film
FRAMES = 4


@dataclass
class Request:
    """What arrived: the grey of each picture, the picture's size, the prompt, the body and the headers."""

    greys: list[float]
    sizes: set[tuple[int, int]]
    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def segment(self) -> int:
        """Which segment, counted over the films of `make_store`: the second film begins where the first one ends."""
        return int(np.mean(self.greys) / STEP // SEGMENT_SECONDS)


Answer = tuple[int, dict[str, str], bytes]
DRIP = b"x" * 1000  # a body that comes a byte at a time and never ends
Behaviour = Callable[[Request, int], "Answer | str | None"]


def chat(text: object, **choice: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message, **choice}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    ).encode()


def error(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    body = json.dumps({"error": {"message": message, "type": "x", "code": code}}).encode()
    return status, {"Content-Type": "application/json", **headers}, body


def saw(request: Request) -> str:
    return f"segment {request.segment}"


@dataclass
class Server:
    """`behave(request, nth time this segment is asked about)` -> a caption, a whole answer, or None: hang up mid-body."""

    behave: Behaviour = lambda request, nth: saw(request)
    requests: list[Request] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    problems: list[BaseException | None] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self) -> Counter[int]:
        return Counter(request.segment for request in self.requests)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            sent = self.rfile.read(length)
            if len(sent) < length:  # the client has been stopped
                self.close_connection = True
                return
            body = json.loads(sent)
            content = body["messages"][0]["content"]
            pictures = [
                Image.open(
                    io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,")))
                )
                for part in content
                if part["type"] == "image_url"
            ]
            assert {picture.format for picture in pictures} == {"JPEG"}
            assert self.path == "/v1/chat/completions"
            request = Request(
                [float(np.asarray(picture).mean()) for picture in pictures],
                {picture.size for picture in pictures},
                content[0]["text"],
                body,
                {name.lower(): value for name, value in self.headers.items()},
            )
            with state.lock:
                state.requests.append(request)
                nth = state.asked()[request.segment]
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                done = state.behave(request, nth)
            finally:
                with state.lock:
                    state.at_once -= 1
            if done is None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST, not FIN
                self.close_connection = True
                return
            status, headers, payload = (
                (200, {"Content-Type": "application/json"}, chat(done)) if isinstance(done, str) else done
            )
            with contextlib.suppress(OSError):  # the client has given up
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                if payload is DRIP:
                    while not state.stop.wait(0.05):
                        self.wfile.write(b" ")
                self.wfile.write(payload)

    class Web(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(problem := sys.exc_info()[1], ConnectionError):  # clients may hang up
                state.problems.append(problem)

    web = Web(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{web.server_address[1]}/v1"
    yield state
    state.stop.set()
    web.shutdown()
    web.server_close()
    assert state.problems == []


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "LVMAE_API_KEY",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)


def write_film(path: Path, seconds: float, first_second: float) -> None:
    """64 x 32 pixels, grey: STEP levels for each second, from `first_second` on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "1", "g": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(int(seconds * FPS)):
            grey = round((first_second + number / FPS) * STEP)
            picture = np.full((32, 64, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    for number in range(2):
        write_film(folder / f"{number}.mp4", 12, 12.0 * number)
    return [folder / f"{number}.mp4" for number in range(2)]


def make_store(path: Path, sources: list[Path], segments: int = 6) -> Path:
    with StoreWriter(path, Manifest("space", 4, {"kind": "fixed", "seconds": 2.0}, {"name": "imported"})) as writer:
        for number, source in enumerate(sources):
            starts = np.arange(segments) * SEGMENT_SECONDS
            ends = starts + SEGMENT_SECONDS
            writer.add(VideoRecord(f"film {number}", str(source), ends[-1], starts, ends, np.ones((segments, 4))))
    return path


EXPECTED = {
    Caption(f"film {video}", place * 2.0, place * 2.0 + 2, f"segment {video * 6 + place}")
    for video in range(2)
    for place in range(6)
}


@pytest.fixture
def job(tmp_path: Path, films: list[Path], server: Server) -> Callable[..., CaptionJob]:
    store = make_store(tmp_path / "store", films)

    def make(**options: Any) -> CaptionJob:
        given = {"endpoint": server.url, "model": "m", "frames": FRAMES, "frame_height": 32, "timeout": 10.0, **options}
        return CaptionJob(store, tmp_path / "out" / "captions.csv", **given)

    return make


def captions(job: CaptionJob) -> set[Caption]:
    found = load_captions(job.out)
    assert len(found) == len(set(found))
    return set(found)


def written(job: CaptionJob) -> str:
    """Everything that the job left on the disk."""
    return "".join(
        path.read_text(errors="replace")
        for path in Path(job.out).parent.rglob("*")
        if path.is_file() and path.stat().st_size
    )


# --- what is asked, and what comes of it ------------------------------------------------------------------------------------


def test_each_segment_has_its_own_caption_whatever_order_the_answers_come_in(server, job):
    def later_ones_first(request: Request, nth: int) -> str:
        # Of two neighbours that are asked at once, the first waits until the second one's caption is in the file.
        deadline = time.monotonic() + 5
        while request.segment % 2 == 0 and f"segment {request.segment + 1}\n" not in Path(job().out).read_text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return saw(request)

    server.behave = later_ones_first
    summary = job(concurrency=4).run()
    assert captions(job()) == EXPECTED
    assert server.asked() == dict.fromkeys(range(12), 1)
    assert (summary.captioned, summary.before, summary.failures) == (12, 0, [])
    assert (summary.tokens_in, summary.tokens_out) == (1200, 120)
    order = [int(caption.text.split()[1]) for caption in load_captions(job().out)]
    assert all(order.index(number + 1) < order.index(number) for number in range(0, 12, 2))


def test_the_pictures_are_n_whole_jpegs_of_the_segment_in_order_of_time(server, job):
    job(prompt="What is it?", max_tokens=77).run()
    for request in server.requests:
        first = request.segment * SEGMENT_SECONDS
        times = first + (np.arange(FRAMES) + 0.5) / FRAMES * SEGMENT_SECONDS
        np.testing.assert_allclose(np.array(request.greys) / STEP, times, atol=0.3)
        assert request.greys == sorted(request.greys)
        assert request.sizes == {(64, 32)}
        assert request.prompt == "What is it?"
        assert (request.body["model"], request.body["max_tokens"]) == ("m", 77)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_allowed(server, job, concurrency):
    def slow(request: Request, nth: int) -> str:
        time.sleep(0.03)
        return saw(request)

    server.behave = slow
    job(concurrency=concurrency).run()
    assert server.most_at_once == concurrency
    assert captions(job()) == EXPECTED


def test_a_request_starts_when_its_turn_comes():
    now, starts = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def ask() -> None:
        pace = Pace(30, clock=lambda: now, sleep=sleep)
        for number in range(6):
            if number == 3:
                pace.hold(100)
            await pace.turn()
            starts.append(now)

    asyncio.run(ask())
    assert starts == [0, 2, 4, 104, 106, 108]


def test_retries_count_against_the_rate_limit(server, job):
    server.behave = lambda request, nth: error(500, "oops") if nth == 1 else saw(request)
    began = time.monotonic()
    job(requests_per_minute=60 * 50, concurrency=8).run()
    assert len(server.requests) == 24
    assert time.monotonic() - began >= 23 / 50


# --- servers that fail ------------------------------------------------------------------------------------------------------


def body(payload: bytes, kind: str = "application/json") -> Answer:
    return 200, {"Content-Type": kind}, payload


BAD_ONCE = {
    "500": error(500, "out of memory"),
    "503 while the model loads": error(503, "Loading model"),
    "502 with a page": (502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>"),
    "429": error(429, "slow down"),
    "429, zero seconds": error(429, "slow down", **{"Retry-After": "0"}),
    "429, a date": error(429, "slow down", **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "429, nonsense": error(429, "slow down", **{"Retry-After": "soon"}),
    "reset in the middle of the body": None,
    "no choices": body(b'{"id": "x", "choices": []}'),
    "choices are null": body(b'{"choices": null}'),
    "an error in a 200": body(b'{"error": {"message": "upstream died"}}'),
    "null content": body(chat(None)),
    "empty content": body(chat(" \n ")),
    "a number as content": body(chat(7)),
    "only thoughts": body(chat("<think>what could this be", finish_reason="length")),
    "truncated JSON": body(chat("half")[:60]),
    "a page": body(b"<!doctype html><title>Welcome</title>", "text/html"),
    "a list": body(b"[1, 2]"),
    "nothing": body(b""),
    "no UTF-8": body(b"\xff\xfe\x00"),
    "a book": body(chat("word " * 10_000)),
}


@pytest.mark.parametrize("first", [0, len(BAD_ONCE) - 12])
def test_what_went_wrong_once_is_asked_again(server, job, first):
    """Each of twelve segments meets another of the ways first, and its caption the second time."""
    ways = list(BAD_ONCE.values())[first:][:12]
    server.behave = lambda request, nth: ways[request.segment] if nth == 1 else saw(request)
    assert job().run().failures == []
    assert captions(job()) == EXPECTED
    assert server.asked() == dict.fromkeys(range(12), 2)


def test_a_stall_is_cut_off_and_asked_again(server, job):
    def stall(request: Request, nth: int) -> Answer | str:
        if nth == 1 and request.segment == 2:
            server.stop.wait(20)
        if nth == 1 and request.segment == 9:
            return body(DRIP)
        return saw(request)

    server.behave = stall
    assert job(timeout=0.7).run().failures == []
    assert captions(job()) == EXPECTED
    assert server.asked() == {n: 1 + (n in (2, 9)) for n in range(12)}


def test_a_slow_start_is_waited_for(server, job):
    began = time.monotonic()

    def loading(request: Request, nth: int) -> Answer | str:
        return saw(request) if time.monotonic() - began > 0.5 else error(503, "Loading model", **{"Retry-After": "1"})

    server.behave = loading
    assert job().run().failures == []
    assert captions(job()) == EXPECTED


def test_retry_after_is_honoured_by_all_requests(server, job):
    told: list[float] = []
    arrived: list[float] = []

    def limited(request: Request, nth: int) -> Answer | str:
        arrived.append(time.monotonic())
        if not told:
            told.append(time.monotonic())
            return error(429, "slow down", **{"Retry-After": "1"})
        return saw(request)

    server.behave = limited
    job(concurrency=2).run()
    # At most what the other asker had under way when the server spoke came before its time.
    early = [moment for moment in arrived[1:] if moment - told[0] < 0.95]
    assert len(early) <= 2
    assert len(arrived) == 13
    assert captions(job()) == EXPECTED


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_that_wants_an_hour_of_peace_gets_it(server, job, as_date):
    def limited(request: Request, nth: int) -> Answer:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=3601), usegmt=True)
        return error(429, "daily limit", **{"Retry-After": date if as_date else "3600"})

    server.behave = limited
    with pytest.raises(WorkError, match=r"left alone for 60 minutes \(the server said 429: daily limit\)"):
        job().run()
    assert len(server.requests) <= 4


def test_failures_are_listed_and_tried_again_by_the_same_command(server, job):
    answers = {
        1: error(500, "out of memory"),
        3: body(chat(None, finish_reason="content_filter")),
        5: error(400, "The response was filtered", "content_filter"),
        6: error(413, "too large"),
        8: None,
        10: body(chat("", message={"role": "assistant", "content": None, "refusal": "I cannot help with that"})),
    }
    server.behave = lambda request, nth: answers.get(request.segment, saw(request))
    summary = job(retries=2).run()
    reasons = {f.reason.partition(" (")[0]: (f.video, f.start, f.end) for f in summary.failures}
    assert reasons == {
        "the server said 500: out of memory, 3 times": ("film 0", 2.0, 4.0),
        "the content was refused: content_filter": ("film 0", 6.0, 8.0),
        "the content was refused": ("film 0", 10.0, 12.0),
        "the server said 413: too large": ("film 1", 0.0, 2.0),
        "the connection broke": ("film 1", 4.0, 6.0),
        "the content was refused: I cannot help with that": ("film 1", 8.0, 10.0),
    }
    assert server.asked() == {n: 3 if n in (1, 8) else 1 for n in range(12)}
    assert captions(job()) == {c for c in EXPECTED if int(c.text.split()[1]) not in answers}
    answers.clear()
    again = job().run()
    assert (again.captioned, again.before, again.failures) == (6, 6, [])
    assert captions(job()) == EXPECTED
    assert job().run().captioned == 0
    assert server.asked() == {n: {1: 4, 8: 4}.get(n, 2 if n in (3, 5, 6, 10) else 1) for n in range(12)}


def test_backoff_grows_and_jitters(server, job, monkeypatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 8.0)
    monkeypatch.setattr(endpoint.asyncio, "sleep", sleep)
    server.behave = lambda request, nth: error(500, "no") if request.segment == 0 and nth < 6 else saw(request)
    assert job().run().failures == []
    for wait, whole in zip(slept, [8, 16, 32, 60, 60], strict=True):
        assert whole / 2 <= wait <= whole
    assert len({wait / whole for wait, whole in zip(slept, [8, 16, 32, 60, 60], strict=True)}) == 5


def test_a_server_that_only_fails_is_left_alone(server, tmp_path, films):
    store = make_store(tmp_path / "store", films * 5)
    server.behave = lambda request, nth: error(400, "this model takes no images")
    job = CaptionJob(store, tmp_path / "c.csv", endpoint=server.url, model="m", frames=1, frame_height=32)
    with pytest.raises(WorkError, match=r"failed on 16 segments in a row, the last time because .* takes no images"):
        job.run()
    assert len(server.requests) < 16 + 4


def test_failures_between_answers_do_not_end_a_run(server, tmp_path, films):
    store = make_store(tmp_path / "store", films * 4)
    server.behave = lambda request, nth: error(400, "no") if request.segment % 4 else saw(request)
    job = CaptionJob(store, tmp_path / "c.csv", endpoint=server.url, model="m", frames=1, frame_height=32)
    assert len(job.run().failures) == 36


def test_refusals_do_not_end_a_run(server, tmp_path, films):
    store = make_store(tmp_path / "store", films * 2)
    server.behave = lambda request, nth: body(chat(None, refusal="x", finish_reason="content_filter"))
    job = CaptionJob(store, tmp_path / "c.csv", endpoint=server.url, model="m", frames=1, frame_height=32)
    assert len(job.run().failures) == 24


# --- endpoints that are wrong -----------------------------------------------------------------------------------------------


def run_cli(job: CaptionJob, *options: str, url: str | None = None) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    arguments = [
        "caption",
        str(job.store),
        "--out",
        str(job.out),
        "--endpoint",
        url or job.endpoint,
        "--model",
        job.model,
    ]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments, "--frames", "4", "--frame-height", "32", *options])
    return code, out.getvalue(), err.getvalue()


def sentence(err: str) -> str:
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("lvmae ")]
    return line


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (error(401, "Incorrect API key provided"), 2, "wants a key; set LVMAE_API_KEY or OPENAI_API_KEY"),
        (error(403, "not in your country"), 2, "does not permit this (the server said 403: not in your country)"),
        (error(404, "model 'm' not found, try pulling it first"), 2, "knows no model 'm'"),
        ((404, {"Content-Type": "text/plain"}, b"404 page not found"), 2, "or is no OpenAI-compatible endpoint"),
        (error(429, "You exceeded your quota", "insufficient_quota"), 1, "is used up"),
        (error(402, "Insufficient credits"), 1, "is used up"),
    ],
)
def test_what_no_retry_can_help_is_one_sentence_at_once(server, job, answer, code, says):
    server.behave = lambda request, nth: answer
    done, _, err = run_cli(job())
    assert done == code
    assert says in sentence(err)
    assert len(server.requests) <= 4


def test_an_endpoint_where_nothing_is_is_one_sentence_at_once(job):
    for url in (f"http://127.0.0.1:{free_port()}/v1", "http://nowhere.invalid/v1"):
        began = time.monotonic()
        code, _, err = run_cli(job(), url=url)
        assert (code, "nothing answers at" in sentence(err)) == (2, True)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("url", ["localhost:11434/v1", "ftp://x/v1", "", "http://", "http://[::1", "http://h:99999/v1"])
def test_what_is_no_address_is_refused(job, url):
    with pytest.raises(InputError, match="address like http") as caught:
        job(endpoint=url).run()
    assert KEY not in str(caught.value)


def test_a_server_that_goes_away_is_asked_again(server, job, monkeypatch):
    """After an answer, nothing listening is a restart, not a wrong address."""
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.001)
    tries: list[int] = []

    def judged(self: Any, response: Any, limit: Any) -> Exception:
        # The server says goodbye; from then on its address leads nowhere.
        tries.append(1)
        self._client.base_url = f"http://127.0.0.1:{free_port()}/v1"
        return endpoint._Again("restarting")

    monkeypatch.setattr(endpoint.Endpoint, "_judged", judged)
    server.behave = lambda request, nth: saw(request) if request.segment < 5 else error(503, "restarting")
    summary = job(concurrency=1).run()
    assert summary.captioned == 5
    assert len(tries) == 1
    assert all("the connection broke" in failure.reason for failure in summary.failures)


def test_the_limit_of_tokens_has_two_names(server, job):
    def modern(request: Request, nth: int) -> Answer | str:
        if "max_tokens" in request.body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        assert request.body["max_completion_tokens"] == 300
        return body(chat(saw(request), finish_reason="length"))

    server.behave = modern
    summary = job().run()
    assert captions(job()) == EXPECTED
    assert summary.cut == 12
    assert "12 captions were cut" in summary.to_text("x")
    assert len(server.requests) <= 12 + 4


# --- the key ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), 2),
        (error(403, f"key {KEY} may not"), 2),
        (error(404, f"no model for {KEY}"), 2),
        (error(429, f"{KEY} has no quota", "insufficient_quota"), 1),
        (error(500, "x" * 190 + KEY), 1),
        (error(400, f"bad header Bearer {KEY}"), 1),
        ((500, {}, f"<p>{KEY}".encode()), 1),
        (body(chat(f"the key {KEY} on a table")), 0),
        (body(chat(None, message={"content": None, "refusal": f"not for {KEY}"})), 1),
        (body(json.dumps({"error": {"message": KEY}}).encode()), 1),
    ],
)
def test_the_key_is_sent_and_written_nowhere(server, job, monkeypatch, answer, expected, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    server.behave = lambda request, nth: answer
    caplog.set_level("DEBUG", "openai")
    code, out, err = run_cli(job(), "--retries", "0")
    assert code == expected
    for place in (out, err, written(job()), caplog.text):
        assert KEY[:12] not in place
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_our_own_variable_goes_first(server, job, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("LVMAE_API_KEY", KEY)
    job().run()
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("key", ["two words and more", "a\nb-0123456789", "schlüssel-0123456789"])
def test_a_key_that_no_request_can_carry_is_refused_unseen(server, job, monkeypatch, key):
    monkeypatch.setenv("LVMAE_API_KEY", key)
    code, out, err = run_cli(job())
    assert code == 2
    assert "LVMAE_API_KEY holds characters that no key has" in sentence(err)
    assert key not in out + err
    assert server.requests == []


def test_a_word_that_stands_for_no_key_stays_in_captions(server, job, monkeypatch):
    monkeypatch.setenv("LVMAE_API_KEY", "EMPTY")
    server.behave = lambda request, nth: f"An EMPTY street, {saw(request)}"
    job().run()
    assert {c.text for c in captions(job())} == {f"An EMPTY street, segment {n}" for n in range(12)}


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
        with pytest.raises(WorkError, match="make room and run the same command again"):
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
        assert "the same command goes on" in err
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
    assert (code, "Go on? [y/N] nothing was asked" in out, len(server.requests)) == (1, True, 0)
    code, out = dialogue("y\n", "--price-in", "1")
    assert (code, len(server.requests)) == (0, 12)
    assert "12 segments captioned, 0 there before, 0 failed; the server counted 1,200 tokens in, 120 out, $0.00" in out
    code, out = dialogue("", "--price-in", "1", "--yes")
    assert (code, "Go on?" in out) == (0, False)
    code, out = dialogue("")
    assert (code, "Go on?" in out) == (0, False)


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
