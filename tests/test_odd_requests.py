"""Requests at the edge: one sentence, no traceback, the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lvmae.cli import main
from lvmae.errors import InputError, WorkError
from lvmae.files.tables import write_parquet_rows
from lvmae.inspection import inspect
from lvmae.interpretation import interpret
from lvmae.pretraining.hub import push_run
from lvmae.recipes import named
from lvmae.store import Manifest, StoreWriter, VideoRecord

SMALL = {"layers": 1, "decoder_width": 8, "decoder_layers": 1, "decoder_heads": 2, "epochs": 1, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd") / "store"
    generator = np.random.default_rng(0)
    with StoreWriter(path, Manifest("space", 8, {"kind": "fixed", "seconds": 5.0}, {"name": "imported"})) as writer:
        for number in range(8):
            starts = np.arange(6) * 5.0
            writer.add(VideoRecord(f"v{number}", "", 30.0, starts, starts + 5, generator.normal(size=(6, 8))))
    return path


@pytest.fixture(scope="module")
def run(store: Path) -> Path:
    from lvmae.pretraining import pretrain

    return pretrain(store, store.parent / "run", recipe="tiny", settings=SMALL)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("lr", "base_lr"), ("learning-rate", "base_lr"), ("grad_clip", "clip_norm"), ("objective", "loss")],
)
def test_settings_by_the_names_they_have_elsewhere(key: str, meant: str) -> None:
    with pytest.raises(InputError, match=rf"There is no setting '{key}'; did you mean {meant}\?"):
        named("tiny").with_settings({key: 1})


@pytest.mark.parametrize(
    "change", [{"seed": -1}, {"top_k": 0}, {"max_videos": 0}, {"pictures": -1}, {"batch_tokens": 0}]
)
def test_numbers_of_interpret(run: Path, store: Path, change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(change))}` is .*: it has to be [01] or more"):
        interpret(run, store, **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"mask ratio 1.5 is not between 0 and 1"):
        interpret(run, store, ratio=1.5)


def test_an_interrupted_run_and_an_ablation_are_inspected(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (begun / "checkpoints" / "step-00000003").mkdir(parents=True)
    for name in ("recipe.json", "metrics.jsonl"):
        (begun / name).write_bytes((run / name).read_bytes())
    found = inspect(begun)
    assert (found["kind"], found["checkpoints"]) == ("run, interrupted", ["step-00000003"])
    assert found["last figures"]["step"] == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    (tmp_path / "ablation").mkdir()
    rows = [{"cell": "a", "status": "finished", "probe": "linear"}, {"cell": "b", "status": "failed", "probe": None}]
    columns = {"cell": str, "status": str, "probe": str}
    write_parquet_rows(tmp_path / "ablation" / "results.parquet", rows, columns)
    found = inspect(tmp_path / "ablation")
    assert (found["kind"], found["cells"], found["failed"], found["probes"]) == ("ablation", 2, 1, ["linear"])


def test_a_hub_that_does_not_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(WorkError, match="the hub could not be reached"):
        push_run(run, "someone/model", token="hf_none", endpoint="http://127.0.0.1:9")


def test_a_tracker_without_a_login(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lvmae.pretraining import pretrain

    monkeypatch.setenv("HOME", str(tmp_path))
    pytest.importorskip("wandb").teardown()  # what an earlier test of this process told it
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"A tracker could not be started \(wandb: .*WANDB_MODE=offline"):
        pretrain(store, tmp_path / "run", recipe="tiny", settings={**SMALL, "trackers": "wandb"})


def test_a_demonstration_of_too_few_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--videos", "3", "--out", str(tmp_path / "d")]) == 2
    assert "needs 48 videos or more, not 3" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_a_store_of_another_segment_rule_is_refused(run: Path, store: Path, tmp_path: Path) -> None:
    from lvmae.representations import represent
    from lvmae.store import EmbeddingStore

    other = Manifest("space", 8, {"kind": "fixed", "seconds": 2.0}, {"name": "imported"})
    with StoreWriter(tmp_path / "other", other) as writer:
        writer.add(EmbeddingStore.open(store)[0])
    for call in (
        lambda: represent(run, tmp_path / "other", tmp_path / "reps"),
        lambda: interpret(run, tmp_path / "other"),
    ):
        with pytest.raises(
            InputError, match=r"another rule \(kind fixed, seconds 5.0\) .* \(kind fixed, seconds 2.0\)"
        ):
            call()
