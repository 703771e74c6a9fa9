"""The search page: a real server on loopback, asked by hand for what it must not give, and used in a browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lvmae.errors import InputError
from lvmae.serving import guarded, is_loopback, serve
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

DIM = 12
TOPICS = ["cat", "dog", "rain", "sea", "snow", "fire"]
SCRIPT = "<script>alert(1)</script>"
PLANTED = (2, 9)  # the place of the video with one segment of fire (videos are sorted by id), and that segment


class TopicEncoder:
    """A text is the sum of the topics it names, each an axis of its own."""

    name, dim, num_frames, image_size, interpolation, framing = "topics", DIM, 1, 64, "bicubic", "crop"
    space_id, licence, has_text = "topics/1", "none", True

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> np.ndarray:
        rows = [[float(topic in text) for topic in TOPICS] + [0.01] * (DIM - len(TOPICS)) for text in texts]
        return l2_normalize(np.array(rows))

    def self_test(self) -> None:
        pass


def film(path: Path, shades: list[int]) -> None:
    """Five seconds of each shade of grey, at 2 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        for shade in np.repeat(shades, 10):
            frame = av.VideoFrame.from_ndarray(np.full((72, 128, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def bait() -> Iterator[socket.socket]:
    """A server that no one should ever ask."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        yield listener


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, bait: socket.socket) -> EmbeddingStore:
    """Three videos: one on another server, one with a planted fire, one whose id is a script; and a secret beside them."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "secret.txt").write_text("the secret")
    generator = np.random.default_rng(0)
    shown = {"away": [0] * 20, "b/fire": [2] * 9 + [5] + [3] * 30, SCRIPT: [1, 1, 4, 4, 0, 0]}
    encoder = {"name": f"{__name__}:TopicEncoder", "licence": "none"}
    with StoreWriter(
        folder / "library", Manifest("topics/1", DIM, {"kind": "fixed", "seconds": 5.0}, encoder)
    ) as writer:
        for number, (name, topics) in enumerate(shown.items()):
            source = str(folder / f"{number}.mp4")
            if name == "away":
                source = f"http://127.0.0.1:{bait.getsockname()[1]}/away.mp4"
            else:
                film(Path(source), [40 * topic + 20 for topic in topics])
            starts = np.arange(len(topics)) * 5.0
            rows = np.eye(DIM)[topics] + 0.05 * generator.normal(size=(len(topics), DIM))
            writer.add(VideoRecord(name, source, len(topics) * 5.0, starts, starts + 5, rows))
    return EmbeddingStore.open(folder / "library")


class Server:
    """`lvmae serve` in a process of its own, and the address it prints."""

    def __init__(self, store: EmbeddingStore, *arguments: str) -> None:
        # -c and not -m: as a script's folder is, the working directory must not be where modules are found.
        command = [
            sys.executable,
            "-c",
            "import sys; from lvmae.cli import main; sys.exit(main())",
            "serve",
            store.path,
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        found = re.fullmatch(r"http://(.+):(\d+)/(?:\?token=(.*))?", self.address)
        assert found, (self.address, self.process.stderr and self.process.stderr.read())
        self.host, self.port, self.token = found[1], int(found[2]), found[3]

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Asks for a path exactly as it is written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    def json(self, path: str) -> Any:
        status, _, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def server(store: EmbeddingStore) -> Iterator[Server]:
    running = Server(store)
    yield running
    assert running.stop() == (0, "")  # Ctrl-C is how it ends, and whatever was asked left nothing in the log


@pytest.fixture(scope="module")
def open_server(store: EmbeddingStore) -> Iterator[Server]:
    """One that other machines can reach."""
    running = Server(store, "--host", "0.0.0.0")
    yield running
    assert running.stop() == (0, "")


def test_the_address_is_this_machines_own(server: Server) -> None:
    assert (server.host, server.token) == ("127.0.0.1", None)
    with pytest.raises(OSError):  # not even another of its own: one address is listened at
        socket.create_connection(("127.0.0.2", server.port), timeout=2)


def test_moments_of_any_text(server: Server) -> None:
    found = server.json("/api/search?q=a%20fire")["moments"]
    assert (found[0]["index"], found[0]["segment"], found[0]["video"]) == (*PLANTED, "b/fire")
    assert (found[0]["start"], found[0]["end"]) == (45.0, 50.0)
    assert server.json("/api/search?q=%20")["moments"] == []
    opened = server.json("/api/moment/2/9?q=fire")
    assert opened["video"] == "b/fire"
    assert int(np.argmax(opened["scores"])) == 9
    assert int(np.argmax(opened["novelty"])) in (9, 10)
    assert all(moment["segment"] != 9 for moment in opened["alike"])
    assert server.json("/api/library")["videos"] == 3


def test_pictures_are_of_the_segments_and_of_files_alone(server: Server, bait: socket.socket) -> None:
    import io

    from PIL import Image

    for segment, topic in ((0, 2), (9, 5), (12, 3)):
        status, headers, body = server.ask(f"/thumbnail/2/{segment}")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(body)) as picture:
            assert picture.size == (320, 180)
            assert np.asarray(picture.convert("L")).mean() == pytest.approx(40 * topic + 20, abs=6)
    assert server.ask("/thumbnail/1/0")[0] == 404
    with pytest.raises(TimeoutError):  # what a store names as a source is not fetched from anywhere
        bait.accept()


SECRETS = [
    "/../secret.txt",
    "/assets/../../secret.txt",
    "/assets/..%2f..%2fsecret.txt",
    "/assets/%2e%2e/%2e%2e/secret.txt",
    "/assets/%252e%252e%252fsecret.txt",
    "/assets/..\\..\\secret.txt",
    "/assets//etc/passwd",
    "/assets/%2fetc%2fpasswd",
    "//etc/passwd",
    "/etc/passwd",
    "/assets/serve.js/../../../errors.py",
    "/assets/",
    "/thumbnail/../secret.txt",
    "/thumbnail/%2e%2e/secret.txt",
    "/thumbnail/2/..%2f..%2fsecret.txt",
    "/thumbnail//etc/passwd",
    "/thumbnail/2/%2fetc%2fpasswd",
    "/thumbnail/file:%2f%2f%2fetc%2fpasswd/0",
    "/thumbnail/2/9.jpg",
    "/thumbnail/-1/0",
    "/thumbnail/2/-1",
    "/thumbnail/2/40",
    "/thumbnail/3/0",
    "/thumbnail/99999999999999999999999999/0",
    "/thumbnail/2/%D9%A3",
    "/manifest.json",
    "/data/part-00000000.parquet",
    "/api/moment/2/99",
    "/api/moment/../../secret.txt",
]


@pytest.mark.parametrize("path", SECRETS)
def test_no_path_leads_anywhere(server: Server, store: EmbeddingStore, path: str) -> None:
    for asked in (path, path.replace("secret.txt", str(Path(store.path).parent / "secret.txt"))):
        status, _, body = server.ask(asked)
        assert status == 404
        assert len(body) < 60
        assert b"secret" not in body
        assert b"root:" not in body


def test_every_answer_forbids_what_the_page_does_not_need(server: Server) -> None:
    for path in ("/", "/assets/serve.js", "/api/library", "/thumbnail/2/9", "/nothing"):
        _, headers, _ = server.ask(path)
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; "
        )
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
    assert server.ask("/", "POST")[0] == 405
    assert not re.search(rb"https?://", server.ask("/")[2])


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.0.7", "", "[::2]:80"]
)
def test_a_foreign_name_for_this_machine_is_refused(server: Server, name: str) -> None:
    assert server.ask("/", Host=name)[0] == 421
    assert server.ask("/thumbnail/2/9", Host=name)[0] == 421


def test_own_names_are_answered_and_other_sites_are_not(server: Server) -> None:
    for name in ("localhost", f"LOCALHOST:{server.port}", "127.0.0.1", "[::1]:8000"):
        assert server.ask("/api/library", Host=name)[0] == 200
    for site in ("cross-site", "same-site"):
        assert server.ask("/thumbnail/2/9", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")[0] == 403
        assert server.ask("/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0] == 200  # a link may lead here
    assert server.ask("/thumbnail/2/9", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="no-cors")[0] == 200


def test_another_machine_needs_the_token_for_everything(open_server: Server) -> None:
    token = open_server.token
    assert len(token) >= 32
    everything = [
        "/",
        "/assets/serve.js",
        "/api/library",
        "/api/search?q=fire",
        "/api/moment/2/9",
        "/thumbnail/2/9",
        "/x",
    ]
    cookie = f"lvmae-{open_server.port}"
    wrong = [
        {},
        {"Cookie": f"{cookie}={token[:-1]}"},
        {"Cookie": f"{cookie}={token}x"},
        {"Cookie": f"other={token}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {token[1:]}"},
        {"Authorization": "Bearer \xff"},
    ]
    for path in everything:
        for headers in wrong:
            status, _, body = open_server.ask(path, **headers)
            assert (status, len(body) < 80) == (401, True), (path, headers)
        known = 404 if path == "/x" else 200
        assert open_server.ask(path, Cookie=f"a=b; {cookie}={token}")[0] == known
        assert open_server.ask(path, Authorization=f"Bearer {token}")[0] == known
    assert open_server.ask("/?token=wrong")[0] == 401
    assert open_server.ask("/?token=")[0] == 401
    assert (
        open_server.ask(f"/thumbnail/2/9?token={token}")[0] == 401
    )  # only the page's own address takes it, and hides it
    status, headers, _ = open_server.ask(f"/?token={token}", Host="library.example")
    assert (status, headers["location"]) == (303, "/")
    assert re.fullmatch(rf"{cookie}={token}; HttpOnly; Path=/; SameSite=lax", headers["set-cookie"])


def test_what_cannot_be_served_is_one_sentence(store: EmbeddingStore, tmp_path: Path, server: Server) -> None:
    with pytest.raises(InputError, match="can be guessed"):
        serve(store, token="short")
    with pytest.raises(InputError, match=r"cannot listen at 127\.0\.0\.1 port \d+ .*another `port`"):
        serve(store, port=server.port)
    with pytest.raises(InputError, match="0 to 65535"):
        serve(store, port=70000)
    with pytest.raises(InputError, match="cannot listen at no\\.such\\.host\\.invalid"):
        serve(store, host="no.such.host.invalid", port=0)
    with StoreWriter(tmp_path / "imported", Manifest("x", DIM, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        writer.add(VideoRecord("v", "", 5.0, np.zeros(1), np.full(1, 5.0), np.ones((1, DIM))))
    with pytest.raises(InputError, match="no text side"):
        serve(tmp_path / "imported")


def test_which_addresses_are_this_machines_own() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "127.8.9.1", "::1", "localhost")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "192.168.0.2", "example.org", "", "localhost.example")] == [
        False
    ] * 6
    assert callable(guarded(None, token=None, own_names=True, port=1))


# ---- in a browser ------------------------------------------------------------------------------------------------------


class Visit:
    """The page in a browser, with all it said and asked for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#hits .tile")

    def search(self, text: str) -> None:
        with self.page.expect_response(lambda answer: "/api/search" in answer.url):
            self.page.fill("#query", text)
        self.page.locator("#said", has_text="best moments").wait_for()

    def close(self) -> None:
        self.page.context.close()
        # The video that is away has no pictures, and the browser remarks on each; there is nothing else to say.
        assert [line for line in self.said if "404 (Not Found)" not in line] == []


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Visit]:
    opened = Visit(browser, server.address)
    yield opened
    opened.close()
    assert [url for url in opened.asked if not url.startswith((server.address, "data:"))] == []


def is_drawn(picture: Any) -> None:
    """Waits for it by asking again: waiting in the page takes an eval, which the page's own policy forbids."""
    from playwright.sync_api import expect

    expect(picture).to_have_js_property("naturalWidth", 320, timeout=30_000)


def test_typing_finds_the_planted_moment_and_a_click_shows_what_is_around_it(visit: Visit) -> None:
    page = visit.page
    assert page.locator("#hits .tile").count() == 3  # a look into each video
    visit.search("a fire")
    first = page.locator("#hits .tile").first
    assert first.inner_text().split("\n")[:2] == ["b/fire", "0:45 – 0:50"]
    is_drawn(first.locator("img"))
    first.click()
    page.wait_for_selector("#strip .cell")
    assert page.inner_text("#title") == "b/fire, 0:45 – 0:50"
    assert page.locator("#strip .cell").count() == 40  # thirty to each side, as far as the video goes
    assert page.locator("#strip .cell.matches").evaluate_all("cells => cells.map(cell => cell.id)") == ["segment-9"]
    assert page.locator("#hits .tile[aria-current]").count() == 1
    assert page.locator("#overview .o-rebuilt").count() == 1
    assert "#q=a%20fire&v=2&s=9" in page.url


def test_the_keyboard_alone_does_it(visit: Visit) -> None:
    page = visit.page
    visit.search("fire")
    page.focus("#query")
    page.keyboard.press("Enter")  # to the first moment
    page.keyboard.press("Enter")
    page.wait_for_selector("#strip .cell")
    page.locator("#strip:focus").wait_for()
    for key, at in (("ArrowRight", 10), ("ArrowLeft", 9), ("End", 39), ("Home", 0), ("PageDown", 10)):
        page.keyboard.press(key)
        assert page.get_attribute("#strip", "aria-activedescendant") == f"segment-{at}"
        assert page.locator("#strip [aria-selected=true]").count() == 1
    page.keyboard.press("Escape")
    assert page.is_hidden("#moment")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"


def test_a_script_in_a_name_or_a_query_stays_text(visit: Visit) -> None:
    visit.search(f"{SCRIPT} dog")
    assert visit.page.locator("#hits .tile").first.locator("b").inner_text() == SCRIPT
    assert visit.page.locator("main script").count() == 0
    visit.page.locator("#hits .tile").first.click()
    visit.page.locator("#title", has_text=SCRIPT).wait_for()


def test_what_is_seen_can_be_linked_to(browser: Any, server: Server) -> None:
    opened = Visit(browser, f"{server.address}#q=fire&v=2&s=9")
    opened.page.locator("#title", has_text="b/fire, 0:45").wait_for()
    assert opened.page.input_value("#query") == "fire"
    opened.close()


def test_the_printed_address_opens_the_page_and_hides_its_token(browser: Any, open_server: Server) -> None:
    opened = Visit(browser, open_server.address.replace("0.0.0.0", "127.0.0.1"))
    assert "token" not in opened.page.url
    opened.search("fire")
    is_drawn(opened.page.locator("#hits .tile img").first)
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_does_not_scroll_sideways(browser: Any, server: Server, scheme: str) -> None:
    opened = Visit(browser, server.address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    opened.search("sea")
    opened.page.locator("#hits .tile").first.click()
    opened.page.wait_for_selector("#strip .cell")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    background = opened.page.eval_on_selector("body", "node => getComputedStyle(node).backgroundColor")
    assert background == ("rgb(251, 250, 247)" if scheme == "light" else "rgb(20, 20, 18)")
    opened.close()


def test_the_library_the_map_and_tags(browser: Any, server: Server) -> None:
    opened = Visit(browser, server.address)
    page = opened.page
    page.click("#tab-library")
    page.locator("#videos .video").nth(2).wait_for()
    page.fill("#name-like", "fire")
    page.locator("#videos-said", has_text="1 of 1 videos").wait_for()
    page.locator("#videos .video").click()
    page.locator("#title", has_text="b/fire, 0:00").wait_for()
    page.fill("#tag", "<b>warm</b>")
    page.keyboard.press("Enter")
    page.locator("#tags li", has_text="<b>warm</b>").wait_for()  # as text
    assert page.locator("#overview .o-chapter").count() >= 1
    page.click("#play")
    page.locator("#player:not([hidden])").wait_for()
    assert page.get_attribute("#player", "src") == "/video/2"
    page.keyboard.press("Escape")
    page.click("#tab-map")
    page.locator("#map-said", has_text="66 segments").wait_for()
    page.select_option("#colour", "tag")
    page.locator("#map-said", has_text="by tag: <b>warm</b>").wait_for()
    page.focus("#map")
    for key in ("+", "ArrowLeft", "0", "Enter"):
        page.keyboard.press(key)
    assert (
        "&view=map" in page.url or page.url.endswith("view=map") or opened.page.locator("#moment:not([hidden])").count()
    )
    page.context.close()
    assert [line for line in opened.said if "404 (Not Found)" not in line and "ERR_" not in line] == []


def test_a_picture_that_is_missing_says_why(browser: Any, server: Server) -> None:
    opened = Visit(browser, server.address)
    opened.page.locator(".frame.none small", has_text="on another server").first.wait_for()
    opened.close()
