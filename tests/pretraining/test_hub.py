"""A run goes to a hub and comes back the same: the real client against a small stand-in on loopback."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lvmae.errors import InputError, WorkError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.pretraining.hub import push_run

COMMIT = "c" * 40
REPO = "someone/long-videos"


class Hub(http.server.ThreadingHTTPServer):
    """Keeps what is committed, and serves it: the calls that the client makes for a small model."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tokens: list[str | None] = []
        self.refuses = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def _answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.refuses:
            self._answer(self.server.refuses)
            return
        answer: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"{self.server.url}/{REPO}"}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{self.server.url}/{REPO}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        self._answer(200, json.dumps(answer).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        content = self.server.files.get(name) if "/resolve/" in self.path else None
        if content is None:
            self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        else:
            self._answer(200, content, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    config = LVMAEConfig(hidden_size=8, decoder_hidden_size=8, decoder_num_attention_heads=2, space_id="s", **sizes)
    LVMAEForPreTraining(config).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("---\nlibrary_name: lvmae\n---\n# card\n")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    (tmp_path / "run" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-1" / "model.safetensors").write_bytes(b"large")
    (tmp_path / "run" / ".lock").write_text("")
    return tmp_path / "run"


def test_what_comes_back_is_what_went(hub: Hub, run: Path, tmp_path: Path) -> None:
    assert push_run(run, REPO, token="hf_secret", endpoint=hub.url).endswith(COMMIT)
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors", "recipe.json"}
    assert hub.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert set(hub.tokens) == {"Bearer hf_secret"}

    code = (
        "import lvmae\nfrom transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({REPO!r}, trust_remote_code=False)\n"
        "print(model.config.space_id, float(model.blocks[0].mlp.fc1.weight.double().abs().sum()))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weight = LVMAEForPreTraining.from_pretrained(run).lvmae.blocks[0].mlp.fc1.weight.detach()
    space, total = done.stdout.split()[-2:]
    assert space == "s"
    assert float(total) == float(weight.double().abs().sum())


def test_refusals_are_one_sentence(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.refuses = 403
    with pytest.raises(InputError, match="check the token"):
        push_run(run, REPO, token="hf_secret", endpoint=hub.url)
    hub.refuses = 400
    with pytest.raises(WorkError, match="status 400"):
        push_run(run, REPO, token="hf_secret", endpoint=hub.url)
    with pytest.raises(InputError, match=r"is not a run|no finished run"):
        push_run(tmp_path, REPO, token="hf_secret", endpoint=hub.url)
    with pytest.raises(InputError, match="not the name"):
        push_run(run, "a/b/c", token="hf_secret", endpoint=hub.url)
    assert hub.files == {}
