"""What the tests of captioning share: a film that tells its time, a store, and what the server on loopback may do."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from lvmae.captioning import CaptionJob
from lvmae.cli import main
from lvmae.library.captions import Caption, load_captions
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


def body(payload: bytes, kind: str = "application/json") -> Answer:
    return 200, {"Content-Type": kind}, payload


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
