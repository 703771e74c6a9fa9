"""InternVideo2 (Wang et al., arXiv 2403.15377), by the code in its own repository, which runs only where its user says so.

Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, dim). Frames are stretched to 224 pixels and
normalised with ImageNet's mean and deviation, as the authors' `frames2tensor` does; T is 4 for the models whose names end in f4.

No library has this model, so its repository's Python files are its implementation: `AutoModel.from_pretrained(...,
trust_remote_code=True)` with `get_vid_feat(frames (B, T, 3, S, S))` and, for texts, `get_txt_feat(text)`. Code from a repository
can do anything its user can. So it is run only with the option `trust_remote_code=true`, or where the environment variable
LVMAE_TRUST_REMOTE_CODE is the model's name, which the option sets for this process and those that it starts. The permission is
never written into a store: a store from somebody else must not bring code along. The commit is, as for every model.
Without it, embeddings made elsewhere come in by `lvmae import`.

Price: that of the model, 1 to 6 billion parameters; texts go through one by one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lvmae.encoders.hub import (
    FILES,
    HubEncoder,
    Pixels,
    fetch,
    load_pretrained,
    whole_number,
    yes_or_no,
)
from lvmae.errors import InputError

_PERMISSION = "LVMAE_TRUST_REMOTE_CODE"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class InternVideo2(HubEncoder):
    """A repository whose code has InternVideo2's methods."""

    name = "internvideo2"

    def __init__(
        self,
        *,
        model: str = "OpenGVLab/InternVideo2-Stage2_6B",
        revision: str | None = None,
        trust_remote_code: bool | str = False,
        num_frames: int = 4,
        image_size: int = 224,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        frames, size = whole_number("num_frames", num_frames), whole_number("image_size", image_size)
        _require_permission(model, yes_or_no("trust_remote_code", trust_remote_code))
        super().__init__(fetch(model, revision, files=(*FILES, "*.py")), device=device, dtype=dtype, compile=compile)
        self._network = self._load().to(self.device)
        self.has_text = hasattr(self._network, "get_txt_feat")
        self._describe(
            dim=self._width(frames, size),
            num_frames=frames,
            pixels=Pixels(size=size, interpolation="bilinear", framing="stretch", mean=_MEAN, std=_STD),
            pooling="remote-code",
            options={"num_frames": frames, "image_size": size},
        )

    def _load(self) -> Any:
        from transformers import AutoModel

        try:
            # What else the file holds (other heads, a text decoder) is the repository's affair; what is missing is not.
            network = load_pretrained(AutoModel, self.snapshot, unused=(".*",), trust_remote_code=True)
        except ImportError as error:
            raise InputError(
                f"The code of {self.snapshot.model} needs other packages: {' '.join(str(error).split())}"
            ) from None
        if not hasattr(network, "get_vid_feat"):
            raise InputError(
                f"The code of {self.snapshot.model} has no get_vid_feat, so it is not InternVideo2's: embed with it elsewhere and "
                "take the embeddings in with `lvmae import`."
            )
        network.config.device = str(self.device)  # where its own code puts the tokens of a text
        return network

    @torch.inference_mode()
    def _width(self, frames: int, size: int) -> int:
        """The width of the space: that of a text, or of one blank clip if there are no texts."""
        if self.has_text:
            return int(self._embed_text(["a"]).shape[-1])
        return int(self._embed_video(torch.zeros(1, frames, 3, size, size, device=self.device)).shape[-1])

    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._network.get_vid_feat(pixels)  # (B, dim) or (B, 1, dim)
        return features.reshape(len(pixels), -1)

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        if not self.has_text:
            return super()._embed_text(texts)
        return torch.cat([self._network.get_txt_feat(text).reshape(1, -1) for text in texts])


def _require_permission(model: str, given: bool) -> None:
    """Raises InputError unless the user allows this model's code: by the option, or in the environment."""
    folder = Path(model).expanduser()
    model = str(folder.resolve()) if folder.is_dir() else model  # as a store's manifest has it
    if not given and os.environ.get(_PERMISSION) != model:
        raise InputError(
            f"InternVideo2 runs Python code out of {model}: if you trust it, give the option trust_remote_code=true (or, to "
            f"commands that only read a store, {_PERMISSION}={model} in the environment); without it, embed elsewhere and use "
            "`lvmae import`."
        )
