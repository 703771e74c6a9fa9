"""A checkpoint of the authors' code becomes a run and a run becomes such a checkpoint, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lvmae.cli import main
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.representations import represent
from lvmae.runs import load_run_autoencoder
from lvmae.store import Manifest, StoreWriter, VideoRecord

SIZES = {f"{part}{name}": size for part in ("", "decoder_") for name, size in
         (("hidden_size", 8), ("num_hidden_layers", 1), ("num_attention_heads", 2), ("intermediate_size", 16))}  # fmt: skip


def _model(**changes: object) -> LVMAEForPreTraining:
    torch.manual_seed(0)
    return LVMAEForPreTraining(LVMAEConfig(**SIZES, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"embedding_scale": 3.0}, {"center": "video"}, {"layer_norm_eps": 1e-5}, {"loss": "contrastive"},
     {"long_sequences": "interpolate"}],
)  # fmt: skip
def test_what_the_layout_cannot_hold_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} is .*, which the authors' layout cannot hold"):
        _model(**changes).to_official_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _model(loss="cosine").save_pretrained(tmp_path / "run")
    assert main(["export-checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "x.pth")]) == 0
    starts = 5.0 * np.arange(4)
    with StoreWriter(
        tmp_path / "store", Manifest("toy", 8, {"kind": "fixed", "seconds": 5.0}, {"name": "toy"})
    ) as writer:
        writer.add(VideoRecord("v", "", 20.0, starts, starts + 5, np.random.default_rng(0).normal(size=(4, 8))))
    asked = ["import-checkpoint", str(tmp_path / "x.pth"), "--out", str(tmp_path / "back")]
    assert main([*asked, "--store", str(tmp_path / "store")]) == 0
    one, other = load_run_autoencoder(tmp_path / "run"), load_run_autoencoder(tmp_path / "back")
    assert other.config.loss == "cosine"
    assert other.config.space_id == "toy"
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    first, second = (represent(tmp_path / run, tmp_path / "store", tmp_path / f"reps-{run}") for run in ("run", "back"))
    np.testing.assert_array_equal(first.mean_features, second.mean_features)
    capsys.readouterr()
    for wrong, says in (
        (asked, "holds something already"),
        (["import-checkpoint", str(tmp_path / "none.pth"), "--out", str(tmp_path / "b")], "there is no checkpoint"),
        (["export-checkpoint", str(tmp_path / "store"), "--out", str(tmp_path / "b.pth")], "is not a run"),
    ):
        assert main(wrong) == 2
        assert says in capsys.readouterr().err
    _model(embedding_scale=2.0).save_pretrained(tmp_path / "scaled")
    assert main(["export-checkpoint", str(tmp_path / "scaled"), "--out", str(tmp_path / "b.pth")]) == 2
    assert "embedding_scale is 2.0, which the authors' layout cannot hold" in capsys.readouterr().err
    assert not (tmp_path / "b.pth").exists()
