"""Any multimodal model of the library sentence-transformers, such as Qwen3-VL-Embedding.

Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, dim). A model that takes videos gets each segment
as one, all T frames and their times; one that takes only pictures gets the frames, and the mean of their normalised vectors is
the segment's. Resizing to S is the decoder's; what else happens to pixels, and the tokens, prompts and pooling, are the model's
own, by the library: segments are its documents, texts its queries.

Price: that of the model. Needs the extra `sentence-transformers`; the video processors of transformers also need torchvision.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lvmae.encoders.hub import (
    FILES,
    HubEncoder,
    Pixels,
    Snapshot,
    check_weights,
    fetch,
    one_of,
    quiet_transformers,
    whole_number,
)
from lvmae.errors import InputError, WorkError

_SIZE = 224  # pixels, where the model takes any; a multiple of the patches of CLIP-like and Qwen's vision towers


class SentenceTransformers(HubEncoder):
    """`image_size` and `framing` are the model's where its processor fixes them, 224 and "crop" where it takes any size.

    `seconds` is how long the model is told a segment lasts: some, Qwen's among them, see the time of each frame.
    """

    name = "sentence-transformers"

    def __init__(
        self,
        *,
        model: str = "Qwen/Qwen3-VL-Embedding-2B",
        revision: str | None = None,
        num_frames: int = 8,
        image_size: int | None = None,
        framing: str | None = None,
        seconds: float = 5.0,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool | str = "auto",
    ) -> None:
        frames = whole_number("num_frames", num_frames)
        self._seconds = _positive("seconds", seconds)
        snapshot = fetch(
            model,
            revision,
            files=(*FILES, "*.jinja"),
            weights=("*.safetensors",),
            pickled_weights=("*pytorch_model*.bin",),
        )
        super().__init__(snapshot, device=device, dtype=dtype, compile=compile)
        self._network = self._model = _load(snapshot, self.device)
        self.has_text = self._model.supports("text")
        self._takes_video = self._model.supports("video")
        if not self._takes_video and not self._model.supports("image"):
            raise InputError(
                f"{model} embeds {', '.join(map(str, self._model.modalities))}: neither videos nor pictures."
            )
        pixels = _pixels(self._model[0].processor, "video_processor" if self._takes_video else "image_processor")
        if image_size is not None or framing is not None:
            side = pixels.size if image_size is None else whole_number("image_size", image_size, most=4096)
            framing = one_of("framing", pixels.framing if framing is None else framing, ("crop", "stretch"))
            pixels = Pixels(side, interpolation=pixels.interpolation, framing=framing, scale=1.0)
        seen = f"video-of-{self._seconds:g}s" if self._takes_video else "mean-of-normalised-frames"
        self._describe(
            dim=int(self._model.get_embedding_dimension()),
            num_frames=frames,
            pixels=pixels,
            pooling=seen,
            options={
                "num_frames": frames,
                "image_size": pixels.size,
                "framing": pixels.framing,
                "seconds": self._seconds,
            },
        )

    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        clips = pixels.to(torch.uint8).cpu()  # as they came: the model's processor does the rest
        if self._takes_video:
            times = {"fps": self.num_frames / self._seconds, "duration": self._seconds}
            times |= {"total_num_frames": self.num_frames}
            videos = [
                {"array": clip, "video_metadata": times | {"frames_indices": [*range(self.num_frames)]}}
                for clip in clips
            ]
            return self._encode("document", videos, processing_kwargs={"video": {"do_sample_frames": False}})
        from PIL import Image

        pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in clips.flatten(0, 1)]
        vectors = nn.functional.normalize(self._encode("document", pictures).float(), dim=-1)
        return vectors.reshape(len(clips), self.num_frames, -1).mean(1)

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        return self._encode("query", texts) if self.has_text else super()._embed_text(texts)

    def _encode(self, kind: str, inputs: list[Any], **options: Any) -> torch.Tensor:
        encode = getattr(self._model, f"encode_{kind}")
        vectors: torch.Tensor = encode(
            inputs, batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False, **options
        )
        return vectors


def _load(snapshot: Snapshot, device: torch.device) -> Any:
    """The model with every weight found, no code of the repository run. InputError and WorkError if it cannot be."""
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise InputError(
            f"The encoder 'sentence-transformers' needs {error.name}: pip install 'lvmae[sentence-transformers]'."
        ) from None
    from safetensors import SafetensorError

    with quiet_transformers(), _reports() as reports:
        try:
            model = SentenceTransformer(
                str(snapshot.folder),
                device=str(device),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32},
            )
        except ImportError as error:  # transformers' own sentence, over several lines
            raise InputError(f"{snapshot.model} needs another package: {' '.join(str(error).split())[:300]}") from None
        except SafetensorError:
            raise WorkError(f"{snapshot.model}: its weights are damaged; download them again.") from None
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"{snapshot.model} cannot be loaded by sentence-transformers: {' '.join(str(error).split())[:300]}"
            ) from None
    check_weights(snapshot, missing=[key for report in reports for key in report["missing_keys"]])
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _reports() -> Iterator[list[dict[str, Any]]]:
    """What transformers says of the weights of each model loaded meanwhile; sentence-transformers does not pass it on."""
    from transformers import PreTrainedModel

    networks: Any = PreTrainedModel
    reports: list[dict[str, Any]] = []
    original = networks.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        network, report = original.__func__(cls, *args, **kwargs | {"output_loading_info": True})
        reports.append(report)
        return (network, report) if kwargs.get("output_loading_info") else network

    networks.from_pretrained = classmethod(from_pretrained)
    try:
        yield reports
    finally:
        networks.from_pretrained = original


def _pixels(processor: Any, kind: str) -> Pixels:
    """How frames are to reach the model's own processor: at the size it fixes, or 224 where it takes any; bytes as they are."""
    settings = getattr(processor, kind, processor).to_dict()
    size = settings.get("size")
    if isinstance(size, dict) and "longest_edge" in size:  # a budget of pixels, not a size
        return Pixels(_SIZE, scale=1.0)
    try:
        own = Pixels.of(settings)
    except InputError:
        return Pixels(_SIZE, scale=1.0)
    return Pixels(own.size, interpolation=own.interpolation, framing=own.framing, scale=1.0)


def _positive(name: str, value: Any) -> float:
    with contextlib.suppress(TypeError, ValueError):
        number = float(value)
        if math.isfinite(number) and number > 0:
            return number
    raise InputError(f"The encoder's option {name} must be a positive number, not {value!r}.")
