"""Perception Encoder Audio-Visual, its video and text sides (Vyas et al., arXiv 2512.19687), through transformers' `PeVideoModel`.

Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, 1024). A Perception Encoder image tower (a timm
model) looks at each frame; a transformer over the frames, with a class token in front, makes the segment's vector. The
`-16-frame` models were trained on 16 frames evenly spaced, the others take any number.

The repositories hold one model for audio, video and both; the audio side's weights are left in the file.
transformers 5.24 still defines `get_video_features` inside the model's `__init__`, out of reach, so the heads are called here.

Price: a ViT of 336 pixels on each frame. Needs the extra `pe-av` (timm, which brings torchvision).
"""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec
from typing import Any

import torch

from lvmae.encoders.hub import (
    HubEncoder,
    Pixels,
    Snapshot,
    fetch,
    load_pretrained,
    load_tokenizer,
    quiet_transformers,
    whole_number,
)
from lvmae.errors import InputError

_FRAMES = 16  # where the model leaves the number open
# Parts of `PeAudioVideoModel` that listen: their weights have no place in the video model.
_AUDIO = (r"^audio_", r"^text_audio_", r"^video_plus_text_")


class PEAV(HubEncoder):
    """Any `PeAudioVideoModel` or `PeVideoModel` of transformers."""

    name = "pe-av"

    def __init__(
        self,
        *,
        model: str = "facebook/pe-av-large",
        revision: str | None = None,
        num_frames: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        if find_spec("timm") is None:
            raise InputError("The encoder 'pe-av' needs timm: pip install 'lvmae[pe-av]'.")
        frames = None if num_frames is None else whole_number("num_frames", num_frames)
        super().__init__(fetch(model, revision), device=device, dtype=dtype, compile=compile)
        processor = self.snapshot.processor()
        frames = frames or processor.get("num_frames") or _FRAMES
        self._network = _load(self.snapshot)
        self._network.to(self.device)
        self._tokenizer = load_tokenizer(self.snapshot)
        self._describe(
            dim=self._network.config.text_config.hidden_size,
            num_frames=frames,
            pixels=Pixels.of(processor),
            pooling="class-token",
            options={"num_frames": frames},
        )

    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = self._network.video_encoder(pixel_values_videos=pixels).pooler_output
        features: torch.Tensor = self._network.video_head(pooled)
        return features

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        limit = self._network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=min(limit, self._tokenizer.model_max_length),
            return_tensors="pt",
        ).to(self.device)
        outputs = self._network.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
        )
        features: torch.Tensor = self._network.text_video_head(outputs.hidden_states[-1][:, 0])
        return features


def _load(snapshot: Snapshot) -> Any:
    """The `PeVideoModel` in a repository of either kind. InputError if it is neither."""
    from transformers import AutoConfig, PeVideoModel

    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(snapshot.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{snapshot.model} has no configuration that can be read: {error}") from None
    if config.model_type not in ("pe_audio_video", "pe_video"):
        raise InputError(f"{snapshot.model} is a {config.model_type or 'nameless'} model, not a PE-AV one.")
    whole = config.model_type == "pe_audio_video"
    # The constructor prints about its own documentation.
    with contextlib.redirect_stdout(io.StringIO()):
        return load_pretrained(
            PeVideoModel, snapshot, config=config.video_config if whole else config, unused=_AUDIO if whole else ()
        )
