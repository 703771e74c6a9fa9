"""Checks the sizes in a configuration against its weights, before a model is built from it.

A folder may come from anybody: 100,000 layers in its config.json would fill all memory before the weights are looked at.
Only headers of files are read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

# What transformers would load more than numbers for: kernels from a hub, code beside the weights, other libraries.
_LOADS_MORE = re.compile(
    r"_?(attn|attention|experts|kernel)\w*_implementation\w*|use_kernels|kernel_config|quantization_config"
)
_BLOCK = re.compile(r"^(.*?)blocks\.(\d+)\.")


def check_choices(settings: dict[str, Any]) -> None:
    """Raises ValueError if a configuration chooses code to run: an attention kernel of a hub, or a quantisation."""
    for key, value in settings.items():
        chosen = isinstance(value, dict) or (isinstance(value, str) and re.search(r"[/:\\]", value)) or value is True
        if chosen and _LOADS_MORE.fullmatch(key):
            raise ValueError(
                f"{key} is {value!r}, which loads code that is not this package's: remove it from config.json"
            )


def check_claims(folder: str | Path) -> None:
    """Raises ValueError if the config.json of a folder claims what its weights do not hold; nothing where it is no folder."""
    config, weights = Path(folder) / "config.json", sorted(Path(folder).glob("model*.safetensors"))
    if not config.is_file() or not weights:
        return
    try:
        claimed = json.loads(config.read_text(encoding="utf-8"))
        shapes = {name: shape for path in weights for name, shape in _shapes(path).items()}
    except (OSError, ValueError, RecursionError, SafetensorError):
        return  # whoever loads it says what is wrong
    if not isinstance(claimed, dict):
        return
    check_choices(claimed)
    for decoder in (False, True):
        mine = {name: shape for name, shape in shapes.items() if name.startswith("decoder.") == decoder}
        if not mine:
            continue
        mark = "decoder_" if decoder else ""
        blocks = [int(match[2]) for name in mine if (match := _BLOCK.match(name))]
        token = next((shape for name, shape in mine.items() if name.endswith(("cls_token", "mask_token"))), None)
        hidden = next((shape for name, shape in mine.items() if name.endswith("mlp.fc1.weight")), None)
        for key, held in (
            (f"{mark}num_hidden_layers", max(blocks) + 1 if blocks else None),
            (f"{mark}hidden_size", token[-1] if token else None),
            (f"{mark}intermediate_size", hidden[0] if hidden else None),
        ):
            says = claimed.get(key)
            if held is not None and isinstance(says, int) and says not in (0, held):
                raise ValueError(f"config.json claims {key}={says}, and the weights hold {held}")


def _shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
