"""Where weights come from: the real hub client against a small stand-in on loopback, its cache, folders, and damaged files."""

from __future__ import annotations

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
from urllib.parse import unquote, urlparse

import pytest
import torch
from safetensors.torch import save_file

from lvmae.encoders.hub import fetch, read_weights
from lvmae.errors import InputError, WorkError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = b"---\nlicense: mit\n---\n# A model\n"
REPOSITORIES = {
    "someone/pickled": {"config.json": b"{}", "README.md": CARD, "pytorch_model.bin": b"weights", "notes.pt": b"-"},
    "someone/both": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"the same again",
        "model.fp16.safetensors": b"the same again",
    },
    "someone/gated": {"config.json": b"{}"},
}


class Hub(http.server.ThreadingHTTPServer):
    """Serves the repositories above, each at one commit, and notes which files were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.served: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").removeprefix("api/models/").split("/")
        repository, kind, rest = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", parts[3:]
        files = REPOSITORIES.get(repository)
        if files is None:
            self._answer(404, b"", X_Error_Code="RepoNotFound")
        elif repository == "someone/gated":
            self._answer(403, b"", X_Error_Code="GatedRepo")
        elif rest and rest[0] not in ("main", COMMIT):
            self._answer(404, b"", X_Error_Code="RevisionNotFound")
        elif kind == "resolve":
            content = files["/".join(rest[1:])]
            self.server.served.append(f"{repository}/{rest[1]}")
            self._answer(200, content, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(content).hexdigest()}"')
        elif kind == "tree":
            entries = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files.items()]
            self._answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        else:
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            self._answer(200, json.dumps(info).encode(), Content_Type="application/json")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys
from huggingface_hub import constants
from lvmae.encoders.hub import fetch
from lvmae.errors import LVMAEError

def outcome(*arguments):
    try:
        found = fetch(*arguments)
        files = sorted(p.name for p in found.folder.iterdir())
        return {"files": files, "revision": found.revision, "identity": found.identity, "licence": found.licence}
    except LVMAEError as error:
        return f"{type(error).__name__}: {error}"

asked = json.loads(sys.argv[1])
outcomes = [outcome(*arguments) for arguments in asked["online"]]
constants.ENDPOINT = "http://127.0.0.1:9"  # where nobody answers
outcomes += [outcome(*arguments) for arguments in asked["cut off"]]
constants.HF_HUB_OFFLINE = True
print(json.dumps(outcomes + [outcome(*arguments) for arguments in asked["offline"]]))
"""


def outcomes(url: str, home: Path, **asked: list[Any]) -> list[Any]:
    """What fetch returns or raises, in a process of its own: the client reads the hub's address when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        json.dumps({name.replace("_", " "): value for name, value in asked.items()}),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_repository_is_pinned_to_its_commit_and_needs_no_network_again(hub: Hub, tmp_path: Path) -> None:
    first, both, *refused, cut_off, without, pinned, newest, absent = outcomes(
        hub.url,
        tmp_path,
        online=[["someone/pickled"], ["someone/both"], ["someone/gated"], ["someone/none"], ["someone/both", "v2"]],
        cut_off=[["someone/pickled", COMMIT], ["someone/other"]],
        offline=[["someone/pickled", COMMIT], ["someone/pickled"], ["someone/other"]],
    )
    assert first == {
        "files": ["README.md", "config.json", "pytorch_model.bin"],
        "revision": COMMIT,
        "identity": f"someone/pickled@{COMMIT[:12]}",
        "licence": "mit",
    }
    assert both["files"] == ["config.json", "model.safetensors"]  # each weight once
    assert both["licence"] is None
    assert "someone/both/pytorch_model.bin" not in hub.served
    assert cut_off == pinned == newest == first
    gated, unknown, revision = refused
    assert gated.startswith("InputError: someone/gated is gated: accept its terms")
    assert unknown.startswith("InputError: There is no model 'someone/none' at the hub")
    assert revision == "InputError: someone/both has no revision 'v2' at the hub."
    assert (
        without == absent == "InputError: someone/other is not on this machine and the hub cannot be reached: run "
        "`hf download someone/other` where there is a network and HF_HUB_OFFLINE is not set, point HF_HOME at a cache that has it, "
        "or give a folder as the option model."
    )


def a_folder(path: Path, **tensors: torch.Tensor) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    save_file(tensors or {"w": torch.ones(3)}, path / "model.safetensors")
    return path


def test_a_folder_is_named_by_what_it_holds_wherever_it_lies(tmp_path: Path) -> None:
    one, other = a_folder(tmp_path / "one"), a_folder(tmp_path / "a" / "b")
    assert fetch(str(one)).identity == fetch(str(other)).identity
    assert fetch(str(one)).model == str(one)
    (other / "README.md").write_text("# says nothing about the space")
    (other / "training.log").write_text("nor does this")
    assert fetch(str(one)).identity == fetch(str(other)).identity
    (other / "config.json").write_text('{"a": 1}')
    assert fetch(str(one)).identity != fetch(str(other)).identity
    changed = a_folder(tmp_path / "changed", w=torch.ones(3) * 2)
    assert fetch(str(one)).identity != fetch(str(changed)).identity


def test_relative_folders_are_found_again_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_folder(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    assert fetch("models/mine").model == str(tmp_path / "models" / "mine")


@pytest.mark.parametrize(
    ("model", "revision", "says"),
    [
        ("./nothing-here", None, "no folder"),
        ("a b/c", None, "neither a folder on this machine nor the name of a repository"),
        ("", None, "neither a folder"),
        (".", None, "holds no model"),
        (".", "main", "has no revisions"),
    ],
)
def test_wrong_names(
    model: str, revision: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        fetch(model, revision)


def test_weights_are_read_whole_in_parts_and_from_torch_files(tmp_path: Path) -> None:
    one, two = torch.arange(3.0), torch.arange(4.0)
    (tmp_path / "parts").mkdir()
    save_file({"one": one}, tmp_path / "parts" / "model-00001-of-00002.safetensors")
    save_file({"two": two}, tmp_path / "parts" / "model-00002-of-00002.safetensors")
    (tmp_path / "torch").mkdir()
    torch.save({"one": one, "two": two}, tmp_path / "torch" / "pytorch_model.bin")
    for kind in ("parts", "torch"):
        weights = read_weights(fetch(str(tmp_path / kind)))
        assert sorted(weights) == ["one", "two"]
        assert torch.equal(weights["two"], two)


class Mischief:
    """What unpickling must never run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def test_damaged_weights_are_refused_and_pickled_code_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = a_folder(tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(WorkError, match=r"model.safetensors is damaged"):
        read_weights(fetch(str(folder)))
    (tmp_path / "mischief").mkdir()
    torch.save({"w": Mischief()}, tmp_path / "mischief" / "pytorch_model.bin")
    with pytest.raises(WorkError, match=r"pytorch_model.bin is damaged or not a weights file"):
        read_weights(fetch(str(tmp_path / "mischief")))
    assert not (tmp_path / "ran").exists()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(fetch(str(folder)))
