"""What `import lvmae` offers: every name loads, is documented, and says what is wrong in Python's words."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import lvmae
from lvmae.cli.command import in_options
from lvmae.errors import InputError
from lvmae.evaluation.settings import ProbeSettings
from lvmae.store import Manifest, StoreWriter, VideoRecord

CALLS = (
    "embed_videos", "import_embeddings", "pretrain", "represent", "probe", "ablate", "interpret", "search", "timeline",
    "load_labels", "load_captions", "similar_videos", "load_encoder", "load_task",
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "store"
    generator = np.random.default_rng(0)
    with StoreWriter(path, Manifest("space", 8, {"kind": "fixed", "seconds": 5.0}, {"name": "imported"})) as writer:
        for number in range(20):
            starts = np.arange(6) * 5.0
            writer.add(VideoRecord(f"v{number}", "", 30.0, starts, starts + 5, generator.normal(size=(6, 8))))
    return path


@pytest.mark.parametrize("name", lvmae.__all__)
def test_every_name_loads_and_is_documented(name: str) -> None:
    value = getattr(lvmae, name)
    if name != "__version__":
        assert inspect.getdoc(value)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_returns_what_it_says(name: str) -> None:
    assert inspect.signature(getattr(lvmae, name)).return_annotation not in (inspect.Signature.empty, "Any", "None")


def test_the_library_never_speaks_of_flags() -> None:
    """In every message of the library, outside the commands: an option is named as Python's parameter."""
    package = Path(lvmae.__file__).parent
    spoken = []
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in ("cli", "demo", "quickstart.py", "estimation"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code = re.sub(r"`lvmae [^`]*`", "", line.split("  # ")[0])  # a whole command is one
            if (
                not code.strip().startswith('"""')
                and re.search(r"""f?["'][^"']*(?<![\w-])--[a-z][a-z-]+""", code)
                and "pip install" not in code
            ):
                spoken.append(f"{path.name}:{number}: {line.strip()}")
    assert spoken == []


def test_the_command_line_speaks_of_options() -> None:
    arguments = argparse.Namespace(segment_seconds=0.0, key=None)
    sentence = "give its length as `segment_seconds`, or `raw`; `lvmae embed` makes one, and `key` names it"
    assert in_options(sentence, arguments) == (
        "give its length as --segment-seconds, or `raw`; `lvmae embed` makes one, and --key names it"
    )


def test_search_by_a_vector(store: Path) -> None:
    record = lvmae.EmbeddingStore.open(store)[3]
    wanted = record.embeddings[2].astype(np.float32)
    found = lvmae.search(store, wanted, 3)
    assert (found[0].video, found[0].segment, len(found)) == (record.id, 2, 3)
    assert found[0].score == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(InputError, match=r"has the shape \(3,\).* vectors of 8 finite numbers"):
        lvmae.search(store, np.zeros(3))
    with pytest.raises(InputError, match=r"has no text side|does not say which encoder"):
        lvmae.search(store, "a dog")


def test_settings_of_probes_are_changes_by_name() -> None:
    settings = ProbeSettings.of({"linear_epochs": 3}, "standard", device="cpu")
    assert (settings.linear_epochs, settings.device, settings.batch_size) == (3, "cpu", 16)
    assert ProbeSettings.of(settings, "paper") == settings
    assert ProbeSettings.of(None, "paper") == ProbeSettings.paper()
    with pytest.raises(InputError, match="probes have no setting 'linear_epoch'; did you mean linear_epochs"):
        ProbeSettings.of({"linear_epoch": 3}, "standard")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"batch_size": 0}, "a whole number of 1 or more"),
        ({"linear_lr": 0}, "more than 0"),
        ({"baseline_layers": 1.5}, "a whole number of 1 or more"),
        ({"bootstrap": -1}, "a whole number of 0 or more"),
        ({"attentive_decay": float("nan")}, "needs a number"),
        ({"linear_epochs": "3"}, "needs a number"),
    ],
)
def test_settings_of_probes_at_their_edges(change: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        ProbeSettings.of(change, "standard")
