"""The server on loopback, films, and a job that captions them."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import DRIP, FRAMES, Request, Server, chat, make_store, write_film
from PIL import Image

from lvmae.captioning import CaptionJob, endpoint


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


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    for number in range(2):
        write_film(folder / f"{number}.mp4", 12, 12.0 * number)
    return [folder / f"{number}.mp4" for number in range(2)]


@pytest.fixture
def job(tmp_path: Path, films: list[Path], server: Server) -> Callable[..., CaptionJob]:
    store = make_store(tmp_path / "store", films)

    def make(**options: Any) -> CaptionJob:
        given = {"endpoint": server.url, "model": "m", "frames": FRAMES, "frame_height": 32, "timeout": 10.0, **options}
        return CaptionJob(store, tmp_path / "out" / "captions.csv", **given)

    return make
