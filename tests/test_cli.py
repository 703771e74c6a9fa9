"""The command line: help that answers at once, and one sentence with the right exit code for wrong input."""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lvmae.cli import main
from lvmae.cli.command import expand_home
from lvmae.store import Manifest, StoreWriter, VideoRecord

COMMANDS = [
    "embed",
    "import",
    "merge",
    "inspect",
    "verify",
    "remove",
    "migrate",
    "cache",
    "pretrain",
    "represent",
    "probe",
    "interpret",
    "search",
    "serve",
    "timeline",
    "demo",
]


@dataclass
class Done:
    """How a command ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def lvmae(*arguments: object) -> Done:
    """Runs a command in this process: the same code as in one of its own, without loading torch each time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def refused(code: int, *arguments: object) -> str:
    """Runs a command that must fail with `code` and one sentence; returns the sentence."""
    done = lvmae(*arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("lvmae ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def make_store(path: Path, dim: int = 8, videos: int = 12, space: str = "space-a", length: int = 6) -> Path:
    rng = np.random.default_rng(dim)
    with StoreWriter(path, Manifest(space, dim, {"kind": "fixed", "seconds": 5.0}, {"name": "imported"})) as writer:
        for number in range(videos):
            starts = np.arange(length) * 5.0
            values = rng.normal(size=(length, dim))
            writer.add(VideoRecord(f"v{number:02d}", f"v{number:02d}.mp4", length * 5.0, starts, starts + 5, values))
    return path


TINY = ["--recipe", "tiny", "--set", "epochs=1", "--set", "warmup_epochs=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 8-wide embeddings, trained for one epoch."""
    folder = tmp_path_factory.mktemp("run")
    done = lvmae("pretrain", make_store(folder / "store"), "--out", folder / "run", *TINY)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def reps(run: Path) -> Path:
    """Representations of the run's store."""
    done = lvmae("represent", run, run.parent / "store", "--out", run.parent / "reps")
    assert done.returncode == 0, done.stderr
    return run.parent / "reps"


def test_a_command_of_its_own_ends_with_the_right_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lvmae", "inspect", tmp_path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lvmae inspect: there is no store")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_goes_in_and_comes_out(command: str) -> None:
    done = lvmae(command, "--help")
    assert done.returncode == 0
    for word in ("in: ", "out: ", "example: lvmae " + command):
        assert word in done.stdout


def test_help_loads_nothing_heavy() -> None:
    """Under a second comes from importing nothing heavy, which can be asserted without a clock."""
    code = (
        "import sys, lvmae.cli\n"
        "try: lvmae.cli.main(['pretrain', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'av', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_auto_model_knows_a_run_after_import_lvmae(run: Path) -> None:
    code = (
        "import lvmae\nfrom transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(run)!r}, trust_remote_code=False)\n"
        "print(type(model).__name__, model.config.hidden_size, model.config.space_id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LVMAEModel 8 space-a"


def test_no_such_folder(tmp_path: Path) -> None:
    for command in (
        ["embed", tmp_path / "nowhere", "--out", tmp_path / "s"],
        ["import", tmp_path / "nowhere", "--out", tmp_path / "s", "--segment-seconds", 5, "--space", "x"],
        ["inspect", tmp_path / "nowhere"],
        ["pretrain", tmp_path / "nowhere", "--out", tmp_path / "r"],
        ["represent", tmp_path / "nowhere", tmp_path / "nowhere", "--out", tmp_path / "r"],
        ["probe", tmp_path / "nowhere", "--labels", tmp_path / "nowhere" / "labels.csv"],
        ["interpret", tmp_path / "nowhere", tmp_path / "nowhere", "--out", tmp_path / "r.html"],
    ):
        assert "nowhere" in refused(2, *command)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_videos(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "notes.txt").write_text("no film")
    assert "no video" in refused(2, "embed", tmp_path / "videos", "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_of_another_space(run: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", space="space-b")
    for arguments in (
        ["represent", run, other, "--out", tmp_path / "reps"],
        ["interpret", run, other, "--out", tmp_path / "report.html"],
    ):
        sentence = refused(2, *arguments)
        assert "space-a" in sentence
        assert "space-b" in sentence
    assert "space-b" in refused(2, "pretrain", run.parent / "store", other, "--out", tmp_path / "r", *TINY)


def test_unknown_encoders_and_settings(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    sentence = refused(2, "embed", tmp_path / "a.mp4", "--out", tmp_path / "s", "--encoder", "clippy")
    assert "clippy" in sentence
    assert "conse" in sentence
    store = make_store(tmp_path / "store")
    sentence = refused(2, "pretrain", store, "--out", tmp_path / "r", "--set", "epochz=2")
    assert "epochz" in sentence
    assert "epochs" in sentence
    assert "key=value" in refused(2, "pretrain", store, "--out", tmp_path / "r", "--set", "epochs")
    assert "huge" in refused(2, "pretrain", store, "--out", tmp_path / "r", "--recipe", "huge")


def test_a_width_that_the_heads_do_not_divide(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", dim=10)
    sentence = refused(2, "pretrain", store, "--out", tmp_path / "r", *TINY, "--set", "heads=4")
    assert "10" in sentence
    assert "4" in sentence
    assert not (tmp_path / "r" / "config.json").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["id,label", "v00,a", "nobody,b", "v01,b"], "nobody"),
        (["id,label", *(f"v{i:02d},same" for i in range(12))], "at least two classes"),
        (["name,label", "v00,a"], "id"),
        (["id,label"], "no"),
        (["id,label", "v00,a", "v00,b"], "v00"),
    ],
)
def test_label_files_that_make_no_sense(reps: Path, tmp_path: Path, rows: list[str], words: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows) + "\n")
    assert words in refused(2, "probe", reps, "--labels", labels)


def test_inspect_says_what_things_are(run: Path, reps: Path) -> None:
    for path, words in (
        (run.parent / "store", ["embeddings", "space-a", "videos", "12"]),
        (run, ["run", "space-a", "parameters", "tiny"]),
        (reps, ["representations", "space-a", "72"]),
    ):
        done = lvmae("inspect", path)
        assert done.returncode == 0, done.stderr
        for word in words:
            assert word in done.stdout
        assert lvmae("inspect", path, "--json").stdout.startswith("{")


def test_the_same_command_again_does_nothing_twice(run: Path, reps: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [*run.glob("*.safetensors"), *reps.glob("data/*")]}
    assert lvmae("pretrain", run.parent / "store", "--out", run, *TINY).returncode == 0
    assert lvmae("represent", run, run.parent / "store", "--out", reps).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(before) == 2


def test_imported_features_walk_the_whole_path(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "features").mkdir()
    for number in range(16):
        np.save(tmp_path / "features" / f"film{number:02d}.npy", rng.normal(size=(9, 12)).astype(np.float32))
    (tmp_path / "features" / "broken.npy").write_bytes(b"not an array")
    store, trained, features = tmp_path / "store", tmp_path / "run", tmp_path / "reps"
    done = lvmae("import", tmp_path / "features", "--out", store, "--segment-seconds", 10, "--space", "elsewhere")
    assert done.returncode == 1
    assert "broken" in done.stdout + done.stderr
    rows = ["id,label", *(f"film{number:02d},{'ab'[number % 2]}" for number in range(16))]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    for command in (
        ["pretrain", store, "--out", trained, *TINY],
        ["represent", trained, store, "--out", features],
        [
            "probe",
            features,
            "--labels",
            tmp_path / "labels.csv",
            "--raw",
            store,
            "--seeds",
            1,
            "--out",
            tmp_path / "p.json",
        ],
        ["interpret", trained, store, "--out", tmp_path / "report.html", "--probe-table", tmp_path / "p.json"],
    ):
        done = lvmae(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert "film03" in (tmp_path / "report.html").read_text()


def test_ids_and_files_may_begin_with_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = tmp_path / "features"
    features.mkdir()
    for number, name in enumerate(("-Ab3xYz01_k", "--b3xYz01_k", "-h3xYz01_kQ", "plain")):
        np.save(features / f"{name}.npy", np.random.default_rng(number).normal(size=(6, 8)).astype(np.float32))
    monkeypatch.chdir(features)
    options = ["--segment-seconds", "5", "--space", "-s"]
    assert lvmae("import", "-Ab3xYz01_k.npy", "--out", "-store", *options).returncode == 0
    store = str(tmp_path / "store")
    assert lvmae("import", features, "--out", store, *options).returncode == 0
    for name in ("-Ab3xYz01_k", "--b3xYz01_k", "-h3xYz01_kQ"):
        found = lvmae("search", store, "--video", name, "--top", "3").stdout.split()[2::3]
        assert sorted([*found, name]) == sorted(["-Ab3xYz01_k", "--b3xYz01_k", "-h3xYz01_kQ", "plain"])
        assert lvmae("timeline", store, name).returncode == 0
    for wrong in (["-top", "2"], ["--tpo", "2"], ["--segment-secs", "2"]):
        done = lvmae("search", store, "--video", "plain", *wrong)
        assert (done.returncode, "unrecognized arguments" in done.stderr) == (2, True)


def test_a_tilde_is_the_home_folder_in_the_paths_of_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    (home / "in").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(home / "in" / f"{name}.npy", rng.normal(size=(4, 6)))
    made = ("--segment-seconds", 5, "--space", "s")
    assert lvmae("import", "~/in", "--out=~/store", *made).returncode == 0
    assert lvmae("import", "~/in/a.npy", "--out", "~/other", *made).returncode == 0
    assert str(home / "store") in lvmae("verify", "~/store").stdout
    (home / "ids.txt").write_text("b\n")
    (home / "captions.csv").write_text("video,start,end,text\na,0,5,x\nb,0,5,y\n")
    assert lvmae("remove", "~/store", "--ids-from", "~/ids.txt", "--captions", "~/captions.csv").returncode == 0
    assert (home / "captions.csv").read_text() == "video,start,end,text\na,0,5,x\n"
    assert str(home / "nothing") in refused(2, "represent", "~/nothing", "~/store", "--out", "~/reps")
    assert str(home / "labels.csv") in refused(2, "probe", "~/store", "--labels", "~/labels.csv")
    assert {path.name for path in home.iterdir()} >= {"store", "other"}
    assert {path.name for path in tmp_path.iterdir()} == {"home"}  # no folder named ~


def test_only_a_path_at_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    words = ["~", "~/a b", "x=~/a", "~x", "a ~/b", "https://x/~/y", "a=b"]
    arguments = argparse.Namespace(one="~/s", many=words, number=3, none=None)
    expand_home(arguments)
    assert (arguments.one, arguments.number, arguments.none) == ("/h/s", 3, None)
    assert arguments.many == ["/h", "/h/a b", "x=/h/a", "~x", "a ~/b", "https://x/~/y", "a=b"]
