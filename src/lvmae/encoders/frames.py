"""Image-text models on video, by averaging frames: CLIP (arXiv 2103.00020) and SigLIP 2 (arXiv 2502.14786).

Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, dim). A segment's vector is the mean of its frames'
normalised vectors, normalised again: each frame has the same say whatever its norm, and the similarity with a text is the
mean of the frames' similarities up to one factor a segment. (Averaging before normalising would let frames of large norm lead.)

Price: one image forward pass a frame; no notion of motion or order.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from lvmae.encoders.hub import (
    HubEncoder,
    Pixels,
    Snapshot,
    fetch,
    load_pretrained,
    load_tokenizer,
    whole_number,
)
from lvmae.errors import InputError


class _FrameAverage(HubEncoder):
    """What the two have in common; they differ in the network's class, its width, and in what its text tower was trained on."""

    default_model: ClassVar[str]

    def __init__(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        num_frames: int = 8,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        frames = whole_number("num_frames", num_frames)
        super().__init__(fetch(model or self.default_model, revision), device=device, dtype=dtype, compile=compile)
        pixels = Pixels.of(self.snapshot.processor())
        self._network, dim = self._load(self.snapshot)
        self._network.to(self.device)
        self._tokenizer = load_tokenizer(self.snapshot)
        self._describe(
            dim=dim,
            num_frames=frames,
            pixels=pixels,
            pooling="mean-of-normalised-frames",
            options={"num_frames": frames},
        )

    def _load(self, snapshot: Snapshot) -> tuple[Any, int]:
        """The network and the width of its embeddings."""
        raise NotImplementedError

    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self._network.get_image_features(pixel_values=pixels.flatten(0, 1)).pooler_output
        frames = nn.functional.normalize(features.float(), dim=-1)  # (B T, dim)
        return frames.reshape(*pixels.shape[:2], -1).mean(1)

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        # Both were trained with padding on the right; a Gemma tokeniser's own default is the left.
        return self._text_features(self._tokens(texts, padding_side="right"))

    def _text_features(self, tokens: Any) -> torch.Tensor:
        raise NotImplementedError


class CLIP(_FrameAverage):
    """Any `CLIPModel`: OpenAI's, LAION's, MetaCLIP, DFN. Texts are cut at the length of its text tower, 77 tokens."""

    name = "clip"
    default_model = "openai/clip-vit-base-patch32"
    licences = {"openai/clip-vit-base-patch32": "MIT", "openai/clip-vit-large-patch14": "MIT"}  # noqa: RUF012

    def _load(self, snapshot: Snapshot) -> tuple[Any, int]:
        from transformers import CLIPModel

        network = load_pretrained(CLIPModel, snapshot)
        return network, int(network.config.projection_dim)

    def _text_features(self, tokens: Any) -> torch.Tensor:
        features: torch.Tensor = self._network.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return features


class SigLIP2(_FrameAverage):
    """SigLIP and SigLIP 2 at a fixed resolution (`SiglipModel`), not NaFlex.

    Texts are lower-cased and padded to the text tower's whole length without an attention mask, as they were in training.
    """

    name = "siglip2"
    default_model = "google/siglip2-base-patch16-224"

    def _load(self, snapshot: Snapshot) -> tuple[Any, int]:
        from transformers import SiglipModel

        if snapshot.json("config.json").get("model_type") == "siglip2":
            raise InputError(
                f"{snapshot.model} is a NaFlex model, whose frames have no fixed size: give one of a fixed resolution, "
                f"such as {self.default_model}."
            )
        network = load_pretrained(SiglipModel, snapshot)
        return network, int(network.config.text_config.projection_size)

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        return super()._embed_text([text.lower() for text in texts])

    def _text_features(self, tokens: Any) -> torch.Tensor:
        features: torch.Tensor = self._network.get_text_features(input_ids=tokens["input_ids"]).pooler_output
        return features
