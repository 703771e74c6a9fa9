"""The sizes of an LV-MAE model and what it was trained on; the defaults are the paper's (about 430 M parameters)."""

from __future__ import annotations

import difflib
from typing import Any

from transformers import PreTrainedConfig

from .centering import CENTERS
from .claims import check_choices
from .objectives import check_objective

LONG_SEQUENCES = ("windows", "extrapolate", "interpolate")

_POSITIVE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "max_segments",
)


class LVMAEConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The configuration of a model: all that is needed to rebuild it.

    Args:
        hidden_size: width of the encoder; it is the width D of the segment embeddings, for there is no input
            projection.
        num_hidden_layers: blocks of the encoder.
        num_attention_heads: heads of the encoder; they divide `hidden_size`.
        intermediate_size: width of the encoder's MLPs; 0, the default, is four times `hidden_size`.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size: of the
            decoder.
        max_segments: the longest sequence seen in training, in segments.
        embedding_scale: the L2-normalised embeddings are multiplied by it before their positions are added. 1 is the
            paper's, where a position is sqrt(D / 2) times as long as what it is added to; sqrt(D) gives both entries of
            order 1, and a small model learns from content several times as fast. Targets are not scaled.
        center: what is taken off the embeddings, inputs and targets alike, before they are scaled. "none" (the paper's);
            "video": the mean of the sequence's visible segments, of all where nothing is masked; "store": the mean of the
            training segments, which is kept in the weights. `reconstruction` has it added back.
        layer_norm_eps: of every LayerNorm.
        initializer_range: standard deviation of the [CLS] and mask tokens at the start.
        loss: the objective, see `lvmae.model.objectives`: a name of `OBJECTIVES` ("mse" is the paper's), of an installed
            plugin, or module:Class.
        loss_options: its options.
        long_sequences: what is done beyond `max_segments`. "windows": overlapping windows of `max_segments`,
            cross-faded tokens, averaged [CLS]; "extrapolate": the sin-cos positions continue; "interpolate": they are
            squeezed into the trained range.
        space_id, segments, encoder: the embedding space, segment rule and segment encoder of the data it was trained
            on.

    Raises:
        ValueError: one sentence, where the settings cannot make a model.
    """

    model_type = "lvmae"

    hidden_size: int = 1024
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    intermediate_size: int = 0
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 0
    max_segments: int = 256
    embedding_scale: float = 1.0
    center: str = "none"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    loss: str = "mse"
    loss_options: dict[str, Any] | None = None
    long_sequences: str = "windows"
    space_id: str | None = None
    segments: dict[str, Any] | None = None
    encoder: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_choices(kwargs)
        # The base class keeps any key it does not know, so a misspelt one would be a silent default.
        for key in kwargs:
            if close := difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0.8):
                raise ValueError(f"unknown setting {key!r}; did you mean {close[0]!r}?")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.intermediate_size = self.intermediate_size or 4 * self.hidden_size
        self.decoder_intermediate_size = self.decoder_intermediate_size or 4 * self.decoder_hidden_size
        for name in _POSITIVE:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; choose a whole number of at least 1")
        for width_name, heads_name in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            width, heads = getattr(self, width_name), getattr(self, heads_name)
            if width % 2:
                raise ValueError(f"{width_name} {width} is odd; the sin-cos positions need an even width")
            if width % heads:
                fitting = max(h for h in range(1, min(heads, width) + 1) if width % h == 0)
                raise ValueError(
                    f"{width_name} {width} is not divisible by {heads_name} {heads}; "
                    f"choose a number of heads that divides it, such as {fitting}"
                )
        for name in ("embedding_scale", "layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise ValueError(f"{name} is {value!r}; choose a number above 0")
        for name, known in (("center", CENTERS), ("long_sequences", LONG_SEQUENCES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        try:
            check_objective(str(self.loss))
        except ValueError as error:
            raise ValueError(f"loss is {self.loss!r}; {error}") from None


_FIELDS = tuple(name for name in LVMAEConfig.__annotations__)
