"""Records what transformers' video processors make of frames, for tests where they cannot run: they need torchvision.

    python tests/golden/make_processors.py        # torch 2.13.0, torchvision 0.28.0, transformers 5.24.0

Writes tests/golden/processors.safetensors: for VideoPrism and PE-AV, the pixels (T, 3, S, S) of the first of `clips`, whose
frames are of the model's size, and of `panned` frames of two other sizes, which the processor resizes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlavaOnevisionVideoProcessor, PeVideoVideoProcessor, VideoPrismProcessor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "encoders"))

from small_models import clips, panned  # noqa: E402

SIZES = ((120, 80), (64, 112))


def main() -> None:
    recorded: dict[str, torch.Tensor] = {}
    # The processor of VideoPrism passes these on in every call, whatever its file says; here with another size than 288.
    settings = VideoPrismProcessor.video_kwargs | {"size": {"height": 36, "width": 36}, "do_sample_frames": False}
    video_prism = LlavaOnevisionVideoProcessor(resample=3)
    half, steps = [0.5] * 3, {"do_resize": True, "do_rescale": True, "do_normalize": True}
    pe_av = PeVideoVideoProcessor(
        size={"height": 28, "width": 28}, resample=2, image_mean=half, image_std=half, **steps
    )
    for name, processor, frames, size, options in (
        ("videoprism", video_prism, 4, 36, settings),
        ("pe-av", pe_av, 5, 28, {}),
    ):
        inputs = {"same": clips(frames, size)[0]} | {f"{w}x{h}": panned(frames, (w, h)) for w, h in SIZES}
        for kind, pictures in inputs.items():
            pixels = processor([pictures], return_tensors="pt", **options)["pixel_values_videos"]
            recorded[f"{name}.{kind}"] = pixels[0].contiguous()
    save_file(recorded, HERE / "processors.safetensors")


if __name__ == "__main__":
    main()
