"""What other programs ask the server, and what it lets nobody take: the API, the official OpenAI client, limits, tags, measures."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_serving import TOPICS, film
from test_serving import TopicEncoder as Topics

from lvmae import trusting
from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.library import Library
from lvmae.library.filters import read_labels
from lvmae.serving import guarded, limits, read_token
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

DIM = 12


class ShadeEncoder(Topics):
    """Reads the shade of a picture as a topic, and counts the calls of its text side."""

    calls = 0

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        shades = frames.reshape(len(frames), -1).mean(1)
        return np.eye(DIM, dtype=np.float32)[np.clip((shades / 40).astype(int), 0, len(TOPICS) - 1)]

    def encode_text(self, texts: list[str]) -> np.ndarray:
        type(self).calls += 1
        return super().encode_text(texts)


class Running:
    """A server in a thread of this process."""

    def __init__(self, library: Library, token: str | None) -> None:
        import uvicorn

        from lvmae.serving.application import Application

        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.app = Application(library)
        app = guarded(self.app, token=token, own_names=True, port=self.port)
        self.server = uvicorn.Server(
            uvicorn.Config(app, http=limits.LimitedProtocol, log_level="critical", lifespan="off", ws="none")
        )
        self.token = token
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            given.setdefault("Authorization", f"Bearer {self.token}")
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def json(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        status, _, answer = self.ask(path, method, data, Content_Type="application/json")
        assert status == 200, answer
        return json.loads(answer)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listener.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    folder = tmp_path_factory.mktemp("programs")
    shown = {"news/a": [0, 1, 2, 3], "news/b": [2, 2, 5, 3], "sport/c": [1, 1, 4, 0, 0, 0], "gone": [3]}
    encoder = {"name": f"{__name__}:ShadeEncoder", "licence": "none"}
    (folder / "notes.mp4").write_text("no video at all")
    with StoreWriter(folder / "store", Manifest("topics/1", DIM, {"kind": "fixed", "seconds": 5.0}, encoder)) as writer:
        for number, (name, topics) in enumerate(shown.items()):
            path = folder / (f"{number}.mp4" if name != "gone" else "nowhere.mp4")
            if name != "gone":
                film(path, [40 * topic + 20 for topic in topics])
            starts = np.arange(len(topics)) * 5.0
            rows = np.eye(DIM)[topics] + 0.02
            writer.add(VideoRecord(name, str(path), len(topics) * 5.0, starts, starts + 5, rows))
        rows = np.eye(DIM)[[4]] + 0.02
        writer.add(VideoRecord("notes", str(folder / "notes.mp4"), 5.0, np.zeros(1), np.full(1, 5.0), rows))
    return EmbeddingStore.open(folder / "store")


@contextlib.contextmanager
def running(store: EmbeddingStore, token: str | None = None) -> Iterator[Running]:
    with trusting():
        library = Library(store)
        assert library.encoder.has_text
    server = Running(library, token)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def server(store: EmbeddingStore) -> Iterator[Running]:
    with running(store) as found:
        yield found


def test_search_over_http_is_search(server: Running, store: EmbeddingStore) -> None:
    library = server.app.library
    for asked, vector in (
        ("q=a%20fire", library.vector_of("a fire")),
        ("q=a%20fire&minus=snow", library.vector_of("a fire", "snow")),
        ("video=news/b&at=11", l2_normalize(store.embeddings(store.index("news/b"))[2].astype(np.float32))),
    ):
        found = server.json(f"/search?{asked}&top=3")["moments"]
        expected = library.moments(vector, 3)
        assert [(m["video"], m["segment"]) for m in found] == [(m.video, m.segment) for m in expected]
        assert [m["score"] for m in found] == pytest.approx([m.score for m in expected], abs=1e-5)
    only = server.json("/search?q=rain&folder=news&min_seconds=15&group=video")["moments"]
    assert {m["video"] for m in only} == {"news/a", "news/b"}
    status, headers, body = server.ask("/search?q=rain&format=m3u")
    assert (status, headers["content-type"]) == (200, "audio/x-mpegurl")
    assert body.startswith(b"#EXTM3U\n")
    for wrong in (
        "top=0",
        "top=1e9",
        "top=x",
        "group=film",
        "after=soon",
        "min_seconds=-1",
        "format=exe",
    ):
        assert server.ask(f"/search?q=rain&{wrong}")[0] == 400, wrong
    assert server.ask("/search?video=nobody&at=1")[0] == 400


def test_a_picture_finds_moments(server: Running) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (220, 220, 220)).save(buffer, "PNG")
    status, _, body = server.ask("/search?top=1", "POST", buffer.getvalue())
    assert status == 200
    assert (json.loads(body)["moments"][0]["video"], json.loads(body)["moments"][0]["start"]) == ("news/b", 10.0)
    assert server.ask("/search", "POST", b"#EXTM3U\nfile:///etc/passwd")[0] == 400  # no playlist reaches a decoder


def test_waiting_searches_share_a_call(server: Running) -> None:
    """Every query is a different text; far fewer calls of the encoder than queries, and each gets its own answer."""
    before = ShadeEncoder.calls
    texts = [f"{topic} number {number}" for number in range(10) for topic in TOPICS]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda text: server.json(f"/search?q={text.replace(' ', '%20')}&top=1"), texts))
    shown = {"cat": 0, "dog": 1, "rain": 2, "sea": 3, "snow": 4, "fire": 5}
    for text, answer in zip(texts, answers, strict=True):
        expected = server.app.library.moments(np.eye(DIM)[shown[text.split()[0]]] + 0.01, 1)[0]
        assert answer["moments"][0]["video"] == expected.video
    assert ShadeEncoder.calls - before < len(texts) * 0.8
    assert len(server.app.searcher._vectors) <= 1024


def test_the_official_client_talks_to_it(store: EmbeddingStore) -> None:
    openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")
    with running(store, "a long enough token") as server:
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="a long enough token", max_retries=0
        )
        assert [model.id for model in client.models.list()] == ["topics"]
        found = client.embeddings.create(model="topics", input=["a cat", "the sea"])  # base64, its default
        expected = l2_normalize(Topics().encode_text(["a cat", "the sea"]))
        np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-6)
        plain = client.embeddings.create(model="topics", input="a cat", encoding_format="float")
        np.testing.assert_allclose(plain.data[0].embedding, expected[0], atol=1e-6)
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="topics", input="")
        wrong = openai.OpenAI(base_url=client.base_url, api_key="another token", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.embeddings.create(model="topics", input="a cat")
        assert server.ask("/healthz", Authorization="none")[0] == 200
        assert server.ask("/metrics", Authorization="none")[0] == 401


def test_videos_come_as_data_and_as_ids_and_from_nowhere_else(server: Running, store: EmbeddingStore) -> None:
    def of(url: str) -> tuple[int, Any]:
        part = {"type": "video_url", "video_url": {"url": url}}
        body = json.dumps({"model": "topics", "messages": [{"role": "user", "content": [part]}]}).encode()
        status, _, answer = server.ask("/v1/embeddings", "POST", body)
        return status, json.loads(answer)

    place = store.index("news/a")
    expected = l2_normalize(l2_normalize(store.embeddings(place)).mean(axis=0))
    status, answer = of("lvmae:news/a")
    assert status == 200
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected, atol=1e-5)
    content = base64.b64encode(Path(store[place].source).read_bytes()).decode()
    status, answer = of(f"data:video/mp4;base64,{content}")
    assert status == 200
    assert np.dot(answer["data"][0]["embedding"], expected) > 0.95
    for url in (
        "lvmae:nobody",
        store[place].source,
        f"file://{store[place].source}",
        "http://127.0.0.1:9/film.mp4",
        "http://169.254.169.254/latest/meta-data",
        "data:text/html;base64,PGI+",
        "data:video/mp4;base64,***",
    ):
        assert of(url)[0] == 400, url
    assert of(f"data:video/mp4;base64,{base64.b64encode(b'no video').decode()}")[0] == 422
    for body in (b"", b"[1]", b"{", b'{"input": 3}', b'{"input": []}', b'{"input": [[1, 2]]}', b"[" * 100_000):
        assert server.ask("/v1/embeddings", "POST", body)[0] == 400, body[:20]


def test_tags_are_saved_beside_the_store_and_filter(server: Running, store: EmbeddingStore) -> None:
    path = Path(store.path) / "tags.csv"
    assert server.json("/api/tags", "POST", {"video": "news/b", "label": " =1+1  indoors "})["tags"] == ["=1+1 indoors"]
    assert server.json("/api/tags", "POST", {"video": "news/b", "label": "outdoors"})["tags"] == [
        "=1+1 indoors",
        "outdoors",
    ]
    assert server.json("/api/tags", "POST", {"video": "news/b", "label": "=1+1 indoors", "remove": True})["tags"] == [
        "outdoors"
    ]
    assert read_labels(path) == {"news/b": {"outdoors"}}
    found = server.json("/search?q=rain&label=outdoors")["moments"]
    assert {m["video"] for m in found} == {"news/b"}
    assert server.json("/api/videos/0?q=b")["videos"][0]["tags"] == ["outdoors"]
    for wrong in (
        {"video": "nobody", "label": "x"},
        {"video": "news/b", "label": ""},
        {"video": "news/b", "label": "x" * 101},
    ):
        assert server.ask("/api/tags", "POST", json.dumps(wrong).encode(), Content_Type="application/json")[0] == 400
    right = json.dumps({"video": "news/b", "label": "x"}).encode()
    assert server.ask("/api/tags", "POST", right, Content_Type="text/plain")[0] == 415
    assert (
        server.ask("/api/tags", "POST", right, Content_Type="application/json", Sec_Fetch_Site="cross-site")[0] == 403
    )
    assert read_labels(path) == {"news/b": {"outdoors"}}


def test_videos_are_played_in_parts_and_nothing_else_is(server: Running, store: EmbeddingStore) -> None:
    place = store.index("news/a")
    whole = Path(store[place].source).read_bytes()
    status, headers, body = server.ask(f"/video/{place}", Range="bytes=10-19")
    assert (status, headers["content-type"], body) == (206, "video/mp4", whole[10:20])
    assert server.ask(f"/video/{store.index('notes')}")[0] == 404  # named like one, and none
    assert server.ask(f"/video/{store.index('gone')}")[0] == 404
    assert server.ask("/video/999999999")[0] == 404
    assert "nowhere.mp4" in server.json(f"/api/missing/{store.index('gone')}/0")["why"]
    assert "cannot be read" in server.json(f"/api/missing/{store.index('notes')}/0")["why"]
    assert server.json(f"/api/missing/{place}/0")["why"] == ""


def test_the_map_has_a_place_for_each_segment(server: Running, store: EmbeddingStore) -> None:
    places = np.frombuffer(server.ask("/api/map")[2], "<i2").reshape(-1, 2)
    assert len(places) == store.lengths.sum()
    assert np.abs(places.astype(int)).max() == 32767
    assert server.json("/api/map/videos")["segments"] == store.lengths.tolist()


def test_measures_and_the_manual(server: Running) -> None:
    server.json("/search?q=rain")
    text = server.ask("/metrics")[2].decode()
    counted = [
        line for line in text.splitlines() if line.startswith('lvmae_requests_total{handler="search",status="200"}')
    ]
    assert float(counted[0].split()[-1]) >= 1
    assert 'lvmae_request_seconds_bucket{handler="search",le="10.0"}' in text
    assert "lvmae_segments 16.0" in text
    manual = server.json("/openapi.json")
    assert manual["openapi"] == "3.1.0"
    assert {"/search", "/v1/embeddings", "/healthz"} <= set(manual["paths"])
    assert b"/v1/embeddings" in server.ask("/docs")[2]


def test_long_numbers_headers_and_bodies_are_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/thumbnail/0/" + "9" * 5000, "/api/moment/" + "1" * 10 + "/0", "/video/" + "8" * 4400):
        assert server.ask(path)[0] == 404
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000)
        assert b"400" in connection.recv(100)
    assert server.ask("/api/tags", "POST", b"x" * 5000, Content_Type="application/json")[0] == 413
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\nContent-Type: application/json\r\n\r\n{"
        )
        assert b"408" in connection.recv(100)


def test_connections_that_say_nothing_are_closed_and_capped(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(limits.LimitedProtocol, "most", 8)
    with running(store) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(30)]
        silent[0].sendall(b"GET / HT")  # half of a request line
        for one in silent:  # closed at once, or when their time is over
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(10) == b""
            one.close()
        assert server.ask("/healthz")[0] == 200
        # A connection that is kept may not begin a second request and never end it.
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as kept:
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in kept.recv(2000)
            kept.sendall(b"GET /heal")
            while kept.recv(2000):
                pass


def test_a_log_is_spared() -> None:
    import logging

    filtered = limits.Sparing()
    lines = [filtered.filter(logging.LogRecord("x", 30, "", 0, "bad", (), None)) for _ in range(1000)]
    assert sum(lines) == 20
    filtered._since -= 61
    record = logging.LogRecord("x", 30, "", 0, "bad", (), None)
    assert filtered.filter(record)
    assert record.getMessage() == "bad (980 other lines were held back)"


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: EmbeddingStore) -> None:
    monkeypatch.delenv("LVMAE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("LVMAE_TOKEN", "from the environment")
    assert read_token(None) == "from the environment"
    (tmp_path / "token").write_text("from a file\n")
    assert read_token(tmp_path / "token") == "from a file"
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="no token"):
        read_token(tmp_path / "empty")
    assert main(["serve", store.path, "--token", "0123456789012", "--token-file", str(tmp_path / "token")]) == 2
    assert main(["serve", store.path, "--token-file", str(tmp_path / "nowhere")]) == 2
