"""VideoPrism LvT, Google's video-text model (Zhao et al., arXiv 2402.13217), through transformers' `VideoPrismClipModel`.

Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, dim). LvT-B: 16 frames of 288 pixels, 768 wide;
LvT-L: 8 frames, 1024 wide. Frames are stretched to the square and scaled to [0, 1], with no mean or deviation, as the
model's own processor does. A segment's vector is the attention pooling of all its patches in space and time.

Price: attention over each frame's 256 patches, then over time in each patch; the layers cap their logits, so there is no
fused attention for it in transformers.
"""

from __future__ import annotations

import string

import torch

from lvmae.encoders.hub import HubEncoder, Pixels, fetch, load_pretrained, load_tokenizer, whole_number

_NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


class VideoPrism(HubEncoder):
    """`num_frames` other than the model's own is possible: its positions in time are interpolated then."""

    name = "videoprism"

    def __init__(
        self,
        *,
        model: str = "google/videoprism-lvt-base-f16r288",
        revision: str | None = None,
        num_frames: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        from transformers import VideoPrismClipModel

        frames = None if num_frames is None else whole_number("num_frames", num_frames)
        super().__init__(fetch(model, revision), device=device, dtype=dtype, compile=compile)
        self._network = load_pretrained(VideoPrismClipModel, self.snapshot)
        self._network.to(self.device)
        self._tokenizer = load_tokenizer(self.snapshot)
        vision = self._network.config.vision_config
        # The processor's class, not its file, decides size and normalisation (transformers' `VideoPrismProcessor.video_kwargs`).
        sides = {"height": vision.image_size, "width": vision.image_size}
        processor = self.snapshot.processor() | {"size": sides, "crop_size": None, "do_normalize": False}
        frames = frames or vision.num_frames
        self._describe(
            dim=vision.hidden_size,
            num_frames=frames,
            pixels=Pixels.of(processor),
            pooling="attention",
            options={"num_frames": frames},
        )

    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self._network.get_video_features(
            pixel_values_videos=pixels,
            interpolate_pos_encoding=self.num_frames != self._network.config.vision_config.num_frames,
        ).pooler_output
        return pooled[:, 0]  # (B, 1, dim): one query pools

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        tokens = self._tokens([canonical(text) for text in texts])
        features: torch.Tensor = self._network.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return features


def canonical(text: str) -> str:
    """A text as the model's authors give it to their tokeniser: lower case, no punctuation, single spaces, a period at the end.

    transformers' tokeniser leaves that to its caller.
    """
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split()) + "."
