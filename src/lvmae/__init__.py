"""Long-video masked-embedding autoencoders (LV-MAE): learn from, represent, search and understand long videos.

Importing this package imports nothing heavy: each name below is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.2.0"

_WHERE = {
    "EmbeddingStore": "lvmae.store",
    "LVMAEConfig": "lvmae.model",
    "LVMAEForPreTraining": "lvmae.model",
    "LVMAEModel": "lvmae.model",
    "embed_videos": "lvmae.embedding",
    "interpret": "lvmae.interpretation",
    "load_encoder": "lvmae.encoders",
    "pretrain": "lvmae.pretraining",
    "probe": "lvmae.evaluation",
    "represent": "lvmae.representations",
    "trusting": "lvmae.trust",
}

__all__ = [
    "EmbeddingStore",
    "LVMAEConfig",
    "LVMAEForPreTraining",
    "LVMAEModel",
    "__version__",
    "embed_videos",
    "interpret",
    "load_encoder",
    "pretrain",
    "probe",
    "represent",
    "trusting",
]

if TYPE_CHECKING:
    from lvmae.embedding import embed_videos
    from lvmae.encoders import load_encoder
    from lvmae.evaluation import probe
    from lvmae.interpretation import interpret
    from lvmae.model import LVMAEConfig, LVMAEForPreTraining, LVMAEModel
    from lvmae.pretraining import pretrain
    from lvmae.representations import represent
    from lvmae.store import EmbeddingStore
    from lvmae.trust import trusting


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lvmae' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# `modeling_layers` imports the Auto classes half-way through itself, and the model needs it whole: whichever is done last
# registers.
_AUTO, _LAYERS = "transformers.models.auto.modeling_auto", "transformers.modeling_layers"


def _register(_: object) -> None:
    """Makes `AutoModel.from_pretrained(run)` know the model, when and only when the Auto classes are used."""
    layers = sys.modules.get(_LAYERS)
    if _AUTO in sys.modules and (layers is None or hasattr(layers, "GradientCheckpointingLayer")):
        import_module("lvmae.model")


wrapt.register_post_import_hook(_register, _AUTO)
wrapt.register_post_import_hook(_register, _LAYERS)
