"""`import lvmae` is enough for the Auto classes, and harms no import of transformers, whatever is imported from it first."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import CLIPModel",  # reaches the Auto classes from the middle of transformers.modeling_layers
        "import lvmae.model",
    ],
)
def test_registered_whatever_comes_first(first: str) -> None:
    code = f"import lvmae\n{first}\nfrom transformers import AutoConfig, AutoModel\n"
    code += "print(type(AutoModel.from_config(AutoConfig.for_model('lvmae', hidden_size=32, num_hidden_layers=1))).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["LVMAEModel"], done.stderr[-2000:]


def test_nothing_heavy_is_imported() -> None:
    code = "import lvmae, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
