"""X-CLIP (Ni et al., "Expanding Language-Image Pretrained Models for General Video Recognition", arXiv 2208.02816).

Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, 512), 768 for the large models. T is the model's
own, 8, 16 or 32. Frames exchange a message token in every layer; a small transformer over them and a mean make the
segment's vector, which is `video_embeds` of transformers' `XCLIPModel`.

Texts are in the projection space, before the model's video-specific prompts: those add to a text something that
depends on the very video it is compared with, so a text would have no vector of its own. What they add starts at 1e-4 of
the text (`prompt_alpha`) and is trained from there; similarities here leave it out.

Price: a CLIP image tower on T frames, and little more.
"""

from __future__ import annotations

from typing import Any

import torch

from lvmae.encoders.hub import HubEncoder, Pixels, fetch, load_pretrained, load_tokenizer

# transformers' VideoMAE image processor, which X-CLIP's repositories name, where their files leave something out.
_PROCESSOR = {
    "do_center_crop": True,
    "size": {"shortest_edge": 224},
    "resample": 2,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}


class XCLIP(HubEncoder):
    """Any `XCLIPModel` of transformers. The number of frames is fixed by its weights."""

    name = "xclip"

    def __init__(
        self,
        *,
        model: str = "microsoft/xclip-base-patch32",
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        from transformers import XCLIPModel

        super().__init__(fetch(model, revision), device=device, dtype=dtype, compile=compile)
        self._network = load_pretrained(XCLIPModel, self.snapshot)
        self._network.to(self.device)
        self._tokenizer = load_tokenizer(self.snapshot)
        config = self._network.config
        self._describe(
            dim=config.projection_dim,
            num_frames=config.vision_config.num_frames,
            pixels=_pixels(self.snapshot.processor()),
            pooling="multiframe-integration",
        )

    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._network.get_video_features(pixel_values=pixels).pooler_output
        return features

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        tokens = self._tokens(texts)
        features: torch.Tensor = self._network.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return features


def _pixels(processor: dict[str, Any]) -> Pixels:
    """The released files say `"size": 224`: the short side. What is cut out of it is as large, unless they say otherwise."""
    processor = _PROCESSOR | processor
    if isinstance(processor["size"], int):
        processor["size"] = {"shortest_edge": processor["size"]}
    return Pixels.of({"crop_size": processor["size"]} | processor)
