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
    "Ablation": "lvmae.ablation",
    "Caption": "lvmae.library.captions",
    "EmbedSummary": "lvmae.embedding",
    "EmbeddingStore": "lvmae.store",
    "ImportSummary": "lvmae.importing",
    "Interpretation": "lvmae.interpretation",
    "LVMAE": "lvmae.encoding",
    "LVMAEConfig": "lvmae.model",
    "LVMAEForPreTraining": "lvmae.model",
    "LVMAEModel": "lvmae.model",
    "Library": "lvmae.library",
    "Moment": "lvmae.library",
    "ProbeTable": "lvmae.evaluation",
    "SimilarVideo": "lvmae.library",
    "Task": "lvmae.evaluation",
    "Timeline": "lvmae.library.chapters",
    "ablate": "lvmae.ablation",
    "embed_videos": "lvmae.embedding",
    "import_embeddings": "lvmae.importing",
    "interpret": "lvmae.interpretation",
    "load_captions": "lvmae.library.captions",
    "load_encoder": "lvmae.encoders",
    "load_labels": "lvmae.evaluation",
    "load_task": "lvmae.evaluation",
    "pretrain": "lvmae.pretraining",
    "probe": "lvmae.evaluation",
    "represent": "lvmae.representations",
    "search": "lvmae.library",
    "similar_videos": "lvmae.library",
    "timeline": "lvmae.library.chapters",
    "trusting": "lvmae.trust",
}

__all__ = [
    "LVMAE",
    "Ablation",
    "Caption",
    "EmbedSummary",
    "EmbeddingStore",
    "ImportSummary",
    "Interpretation",
    "LVMAEConfig",
    "LVMAEForPreTraining",
    "LVMAEModel",
    "Library",
    "Moment",
    "ProbeTable",
    "SimilarVideo",
    "Task",
    "Timeline",
    "__version__",
    "ablate",
    "embed_videos",
    "import_embeddings",
    "interpret",
    "load_captions",
    "load_encoder",
    "load_labels",
    "load_task",
    "pretrain",
    "probe",
    "represent",
    "search",
    "similar_videos",
    "timeline",
    "trusting",
]

if TYPE_CHECKING:
    from lvmae.ablation import Ablation, ablate
    from lvmae.embedding import EmbedSummary, embed_videos
    from lvmae.encoders import load_encoder
    from lvmae.encoding import LVMAE
    from lvmae.evaluation import ProbeTable, Task, load_labels, load_task, probe
    from lvmae.importing import ImportSummary, import_embeddings
    from lvmae.interpretation import Interpretation, interpret
    from lvmae.library import Library, Moment, SimilarVideo, search, similar_videos
    from lvmae.library.captions import Caption, load_captions
    from lvmae.library.chapters import Timeline, timeline
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
