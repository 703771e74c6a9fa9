"""A mask and an objective of an installed package have names like ours, and need nobody's permission."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lvmae.errors import InputError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.model.objectives import is_per_row, objective_names
from lvmae.recipes import named
from lvmae.sequences import mask_names, mask_segments

MODULE = """
import numpy as np
from lvmae.model.objectives.mse import MSE

def first_half(embeddings, ratio, generator, *, temperature=None):
    masked = np.arange(len(embeddings)) < len(embeddings) // 2
    return ~masked if temperature else masked

class Double(MSE):
    def loss(self, predicted, targets, weights):
        return 2 * super().loss(predicted, targets, weights)
"""
ENTRIES = """
[lvmae.masks]
first-half = strangers_package:first_half
random = strangers_package:first_half

[lvmae.objectives]
double = strangers_package:Double
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strangers_package.py").write_text(MODULE)
    described = tmp_path / "strangers_package-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers-package\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_names_of_plugins() -> None:
    assert mask_names() == ["random", "semantic", "redundant", "blocks", "first-half"]
    assert objective_names()[-1] == "double"
    rows, rng = np.eye(4), np.random.default_rng(0)
    assert mask_segments("first-half", rows, 0.5, rng).tolist() == [True, True, False, False]
    assert mask_segments("first-half", rows, 0.5, rng, temperature=1.0).tolist() == [False, False, True, True]
    assert mask_segments("random", rows, 0.25, rng).sum() == 1  # a name of ours is ours, whatever else is installed
    recipe = named("tiny").with_settings({"mask": "first-half", "temperature": 1, "loss": "double"})
    assert (recipe.mask, recipe.loss) == ("first-half", "double")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    config = LVMAEConfig(**sizes, decoder_hidden_size=8, decoder_num_attention_heads=2, loss="double")
    assert type(LVMAEForPreTraining(config).objective).__name__ == "Double"
    assert is_per_row("double")


def test_without_it_they_are_unknown_and_the_answer_lists_those_there_are() -> None:
    with pytest.raises(
        InputError, match="mask is 'first-half': choose random, semantic, redundant, blocks, or module:function"
    ):
        named("tiny").with_settings({"mask": "first-half"})
    with pytest.raises(
        InputError, match="loss is 'double': choose one of mse, cosine, contrastive, clusters, latent, residual, or"
    ):
        named("tiny").with_settings({"loss": "double"})
    with pytest.raises(InputError, match="only mask=semantic takes a temperature"):
        named("tiny").with_settings({"mask": "blocks", "temperature": 1})
