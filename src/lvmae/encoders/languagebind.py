"""LanguageBind Video (Zhu et al., ICLR 2024, arXiv 2310.01852): the encoder of the LV-MAE paper.

CLIP whose vision tower sees T frames at once: in front of each layer's attention over a frame's patches, every patch attends to
itself in the other frames. Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, dim): the projected
mean of the frames' [CLS]. `languagebind-huge` is V1.5 FT on ViT-H/14 (dim 1024), `languagebind-base` FT on ViT-L/14 (dim 768).

Built on transformers' CLIP parts, weights found by their names in the repository's files; low-rank updates (LoRA), where a
repository holds some, are added into the weights. The numbers are those of the package `languagebind`, which needs
transformers below 5 (tests/golden/make_languagebind.py). Pixels differ from the package's in two ways, chosen here: frames
are never flipped, and the decoder resizes bilinearly with antialiasing, where the package's resizing has none.

Price: T forward passes of the vision tower and, of it, about a third more for the attention over time.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d, scaled_dot_product_attention
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from lvmae.encoders.hub import (
    HubEncoder,
    Pixels,
    Snapshot,
    check_weights,
    fetch,
    load_tokenizer,
    quiet_transformers,
    read_weights,
)
from lvmae.errors import InputError

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI CLIP's


class LanguageBind(HubEncoder):
    """LanguageBind's video and text towers, of any size. The number of frames is the one that the weights were trained with, 8."""

    name = "languagebind"
    licences = {  # noqa: RUF012
        "LanguageBind/LanguageBind_Video_Huge_V1.5_FT": "MIT",
        "LanguageBind/LanguageBind_Video_V1.5_FT": "MIT",
        "LanguageBind/LanguageBind_Video_FT": "MIT",
    }

    def __init__(
        self,
        *,
        model: str = "LanguageBind/LanguageBind_Video_Huge_V1.5_FT",
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        super().__init__(fetch(model, revision), device=device, dtype=dtype, compile=compile)
        config = _configuration(self.snapshot)
        self._network = _load(self.snapshot, config).to(self.device)
        self._tokenizer = load_tokenizer(self.snapshot, CLIPTokenizer)
        self._describe(
            dim=config.projection_dim,
            num_frames=config.vision_config.num_frames,
            pixels=Pixels(config.vision_config.image_size, _MEAN, _STD, "bilinear", "crop"),
            pooling="mean-of-cls",
        )

    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._network.visual_projection(self._network.vision_model(pixels))
        return features

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        tokens = self._tokens(texts)
        features: torch.Tensor = self._network.get_text_features(**tokens).pooler_output
        return features


# --- the network ------------------------------------------------------------------------------------------------------------


class _VideoCLIP(CLIPModel):  # type: ignore[no-untyped-call]
    """CLIP with LanguageBind's vision tower; the same names of weights as theirs."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.vision_model: Any = _VideoTower(config.vision_config)
        self.post_init()  # type: ignore[no-untyped-call]


class _VideoTower(nn.Module):
    """Frames (B, T, 3, S, S) -> the mean over frames of their [CLS] (B, width)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = _FrameEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # spelt as in CLIP's weights
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels))  # (B, T, 1 + patches, width)
        for layer in self.encoder["layers"].children():
            x = layer(x)
        pooled: torch.Tensor = self.post_layernorm(x[:, :, 0]).mean(1)
        return pooled


class _FrameEmbeddings(nn.Module):
    """Frames (B, T, 3, S, S) -> [CLS] and patches with their places (B, T, 1 + patches, width).

    V1.5 (`clip_type` "vl_new") has a [CLS] of its own for each frame, and its patch embedding is stored as a 3-D convolution one
    frame deep; the first version has one [CLS] for all.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        newer = getattr(config, "clip_type", "vl") == "vl_new"
        self.class_embedding = nn.Parameter(torch.zeros(config.num_frames, width) if newer else torch.zeros(width))
        convolution: Any = nn.Conv3d if newer else nn.Conv2d
        kernel = (1, patch, patch) if newer else (patch, patch)
        self.patch_embedding = convolution(config.num_channels, width, kernel, stride=kernel, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        batch, frames = pixels.shape[:2]
        weight = self.patch_embedding.weight  # one frame deep where it has a depth: frames are embedded one by one
        patches = conv2d(
            pixels.flatten(0, 1), weight.reshape(*weight.shape[:2], *weight.shape[-2:]), stride=weight.shape[-1]
        )
        patches = patches.flatten(2).transpose(1, 2).reshape(batch, frames, -1, len(weight))
        first = self.class_embedding.expand(batch, frames, -1)[:, :, None]
        return torch.cat([first, patches], dim=2) + self.position_embedding.weight


class _Layer(CLIPEncoderLayer):  # type: ignore[no-untyped-call]
    """One layer, (B, T, N, width) -> the same: attention over time at each place, then CLIP's own layer in each frame."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))
        self.temporal_attn = CLIPAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if x.shape[1] > 1:
            x = x + self.temporal_embedding[:, :, None]
        x = x + self._over_time(self.temporal_layer_norm1(x))
        each_frame: torch.Tensor = super().forward(x.flatten(0, 1), attention_mask=None)  # type: ignore[arg-type]
        return each_frame.reshape(x.shape)

    def _over_time(self, x: torch.Tensor) -> torch.Tensor:
        """Each place attends to itself in the other frames, (B, T, N, width) -> the same.

        Places are to the attention what its heads are, side by side in memory: one call for all of them, and nothing is copied.
        """
        batch, frames, places, width = x.shape
        own = self.temporal_attn
        query, key, value = (
            projection(x).view(batch, frames, places * own.num_heads, own.head_dim).transpose(1, 2)
            for projection in (own.q_proj, own.k_proj, own.v_proj)
        )
        mixed = scaled_dot_product_attention(query, key, value, scale=own.scale)  # (B, N heads, T, head width)
        attended: torch.Tensor = own.out_proj(mixed.transpose(1, 2).reshape(batch, frames, places, width))
        return attended


# --- loading ----------------------------------------------------------------------------------------------------------------


def _configuration(snapshot: Snapshot) -> Any:
    """The repository's config.json as a `CLIPConfig` with the video tower's additions in `vision_config`."""
    stated = snapshot.json("config.json")
    vision = stated.get("vision_config") or {}
    if not (vision.get("add_time_attn") and vision.get("num_frames")):
        raise InputError(
            f"{snapshot.model} is not a LanguageBind video model: its vision_config has no add_time_attn and num_frames."
        )
    if vision.get("tube_size", 1) != 1:
        raise InputError(f"{snapshot.model} joins frames in tubes of {vision['tube_size']}, which is not offered here.")
    # Two generations of CLIP configurations disagree on which token ends a text; 2 stands for "the highest", as here.
    text = {**(stated.get("text_config") or {}), "eos_token_id": 2}
    try:
        with quiet_transformers():
            return CLIPConfig(text_config=text, vision_config=vision, projection_dim=int(stated["projection_dim"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{snapshot.model}: config.json is not a LanguageBind configuration ({error}).") from None


def _load(snapshot: Snapshot, config: Any) -> Any:
    rank = getattr(config.vision_config, "lora_r", 2)  # the package's defaults
    scale = getattr(config.vision_config, "lora_alpha", 16) / rank if rank else 0.0
    state = merge_lora(read_weights(snapshot), scale)
    with quiet_transformers():
        loaded: Any = _VideoCLIP.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, with a sentence
        )
    network, info = loaded
    check_weights(
        snapshot,
        missing=info["missing_keys"],
        unexpected=info["unexpected_keys"],
        misshapen=[k[0] for k in info["mismatched_keys"]],
    )
    return network.eval().requires_grad_(False)


def merge_lora(state: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Weights as the `peft` library saves them -> plain ones: W + scale B A, under the names that W had before."""
    plain = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        merged, stem = tensor, name.removesuffix(".weight").removesuffix(".base_layer")
        down, up = (state.get(f"{stem}.lora_{side}.default.weight") for side in "AB")
        if name.endswith(".weight") and down is not None and up is not None:
            merged = tensor + scale * (up @ down)
        plain[re.sub(r"\.base_model\.model\.|\.base_layer\.", ".", name)] = merged
    return plain
