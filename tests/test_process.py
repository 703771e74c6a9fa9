"""A call is a guest: what the caller has set does not change its figures, and afterwards everything is as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from lvmae.process import handling_signals, is_terminal, own_state, say

# What a process has for all: taken before and after.
_STATE = """
import hashlib, json, logging, os, random, signal, sys, warnings
import numpy as np, torch, accelerate, matplotlib
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
import lvmae, lvmae.pretraining, lvmae.evaluation, lvmae.representations, lvmae.interpretation

def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]

def state():
    return {
        "dtype": str(torch.get_default_dtype()), "device": str(torch.get_default_device()), "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(), "torch": digest(torch.get_rng_state().tolist()), "random": digest(random.getstate()),
        "numpy": digest(np.random.get_state()), "errors": np.geterr(), "filters": digest(warnings.filters),
        "environment": digest(sorted(os.environ.items())), "folder": os.getcwd(), "path": digest(sys.path),
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "root": [logging.root.level, len(logging.root.handlers)], "lvmae": len(logging.getLogger("lvmae").handlers),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "autocast": torch.is_autocast_enabled("cpu"),
        "pictures": digest(dict(matplotlib.rcParams)), "hook": sys.excepthook is sys.__excepthook__,
        "precision": mine.mixed_precision if mine else None, "accumulation": mine.gradient_accumulation_steps if mine else None,
        "accelerate": [digest(sorted(map(str, kind._shared_state.items()))) for kind in (AcceleratorState, PartialState)],
    }

SETTINGS = dict(layers=1, decoder_width=8, decoder_layers=1, decoder_heads=2, epochs=2, warmup_epochs=1, batch_size=5, loss="mse",
                base_lr=0.5, val_fraction=0.2, num_workers=0)

def calls(name):
    lvmae.pretrain("s", name, recipe="tiny", settings=SETTINGS)
    reps = lvmae.represent(name, "s", name + "-reps")
    table = lvmae.probe(reps.path, "l.csv", raw="s", probes=["linear"], seeds=1)
    read = lvmae.interpret(name, "s")
    last = json.loads(open(name + "/metrics.jsonl").read().splitlines()[-1])
    return [last["loss"], last["val_loss"], float(np.abs(reps.mean_features).sum()), [row.mean for row in table.rows],
            read.metrics["cosine"]]
"""

_GUEST = (
    _STATE
    + """
plain = calls("plain")
mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
torch.manual_seed(7), np.random.seed(7), random.seed(7)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(2)
np.seterr(all="raise")
warnings.simplefilter("always", FutureWarning)
matplotlib.rcParams["text.usetex"] = True
before = state()
async def in_a_notebook():  # with a running event loop, without gradients, in autocast and on another default device
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        return calls("guest")
import asyncio
sys.stderr = None
sys.stdin = None
try:
    found = asyncio.run(in_a_notebook())
except BaseException as error:
    sys.stderr = sys.__stderr__
    raise
print(json.dumps([plain, found, before, state()]))
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lvmae.store import Manifest, StoreWriter, VideoRecord

    path = tmp_path_factory.mktemp("guest")
    generator = np.random.default_rng(0)
    with StoreWriter(
        path / "s", Manifest("space", 16, {"kind": "fixed", "seconds": 5.0}, {"name": "imported"})
    ) as writer:
        for number in range(12):
            starts = np.arange(8) * 5.0
            embeddings = generator.normal(size=(8, 16))
            writer.add(VideoRecord(f"v{number:02d}", "", 40.0, starts, starts + 5, embeddings))
    (path / "l.csv").write_text("id,label\n" + "".join(f"v{n:02d},{'ab'[n % 2]}\n" for n in range(12)))
    return path


def _python(code: str, folder: Path) -> list[object]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return list(json.loads(found.stdout.splitlines()[-1]))


def test_a_call_depends_on_nothing_that_the_caller_set_and_leaves_it(folder: Path) -> None:
    plain, guest, before, after = _python(_GUEST, folder)
    assert guest == plain
    assert after == before


def test_own_state_is_undone_after_an_error() -> None:
    before = np.geterr(), np.random.get_state()[1].tolist(), dict(os.environ)

    @own_state()
    def fails() -> None:
        os.environ["LVMAE_OF_A_TEST"] = "1"
        np.random.seed(3)
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    assert (np.geterr(), np.random.get_state()[1].tolist(), dict(os.environ)) == before


def test_signals_are_handled_within_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[int] = []
    with handling_signals({signal.SIGTERM: lambda number, _: seen.append(number)}) as give_back:
        signal.raise_signal(signal.SIGTERM)
        give_back(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
    assert seen == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_are_left_alone_elsewhere_than_in_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def other() -> None:
        with handling_signals({signal.SIGTERM: lambda *_: None}):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]


class _Bare:
    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None: ...


def test_streams_that_are_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lvmae.progress import progress

    monkeypatch.setattr(sys, "stderr", None)
    say("nobody reads this")
    assert list(progress(range(3), desc="d", unit="u")) == [0, 1, 2]
    bare = _Bare()
    monkeypatch.setattr(sys, "stderr", bare)
    say("somebody does")
    assert list(progress(range(3), desc="d", unit="u")) == [0, 1, 2]
    assert bare.written.startswith("somebody does\n")
    assert not any(is_terminal(stream) for stream in (None, bare, 3))
    assert capsys.readouterr().out == ""  # what is for standard error is not for standard output


@pytest.mark.parametrize("encoding", ["ascii", "cp866", "utf-8"])
def test_every_console_takes_every_sentence(encoding: str) -> None:
    code = """
    from lvmae.cli.console import console, print_json
    with console():
        print("50.0 ± 1.0 × 2 \\u4e2d \\udcff")
        print_json({"id": "\\u4e2d \\udcff"})
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    line, *rest = found.stdout.decode(encoding).split("\n")
    wanted = "50.0 ± 1.0 × 2 中 \\udcff" if encoding == "utf-8" else "50.0 +- 1.0 x 2 \\u4e2d \\udcff"
    assert line == wanted
    assert json.loads("\n".join(rest)) == {"id": "中 \udcff"}


def test_work_is_done_to_its_end_where_nobody_reads(tmp_path: Path) -> None:
    """The reader of standard output has gone: all that is printed before the result does not keep it from being written."""
    code = """
    import sys
    from pathlib import Path
    from lvmae.cli.console import console
    with console():
        for _ in range(20000):
            print("a line of the table")
        Path(sys.argv[1]).write_text("result")
    """
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, b"")
    assert (tmp_path / "out").read_text() == "result"
