"""For small models with random weights, saved with real tokeniser files, and what every adapter of a video model must hold.

Nothing comes from a network: photographs are scikit-learn's, tokenisers have the 256 bytes for a vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lvmae.encoders import SegmentEncoder, load_encoder
from lvmae.encoders.half_precision import is_norm
from lvmae.errors import WorkError
from lvmae.video.decoding import decode_segments

TEXTS = ["a red flower", "An old Chinese temple, seen from afar!", "", "word " * 200]


@cache
def photograph(name: str) -> np.ndarray:
    """uint8 RGB (427, 640, 3)."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    with av.open(str(Path(spec.origin).parent / "datasets" / "images" / name)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def clips(num_frames: int, size: int) -> np.ndarray:
    """Three segments of photographs that a camera pans over: uint8 RGB (3, T, size, size, 3)."""
    starts = [("china.jpg", 40, 10), ("flower.jpg", 10, 60), ("china.jpg", 5, 200)]
    return np.stack(
        [
            np.stack([photograph(n)[y + 3 * t :, x + 7 * t :][:size, :size] for t in range(num_frames)])
            for n, y, x in starts
        ]
    )


def panned(num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """A camera over a photograph: uint8 RGB (T, H, W, 3) for a size (width, height)."""
    width, height = size
    return np.stack([photograph("china.jpg")[t : t + height, 4 * t : 4 * t + width] for t in range(num_frames)])


def recorded(name: str) -> torch.Tensor:
    """What a processor that needs torchvision made of `clips` or `panned`; tests/golden/make_processors.py recorded it."""
    return load_file(Path(__file__).parents[1] / "golden" / "processors.safetensors")[name]


def film_frames(path: Path, size: tuple[int, int], encoder: SegmentEncoder) -> tuple[np.ndarray, np.ndarray]:
    """One second of `panned` as a film: its frames (T, H, W, 3) as they are, and as the decoder prepares them for an encoder."""
    (width, height), pictures = size, panned(encoder.num_frames, size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=encoder.num_frames, options={"qp": "0", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for t in range(encoder.num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[t], format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert container.streams.video[0].average_rate == Fraction(encoder.num_frames)
    prepared = next(
        iter(
            decode_segments(
                path,
                [0.0],
                [1.0],
                num_frames=encoder.num_frames,
                image_size=encoder.image_size,
                interpolation=encoder.interpolation,
                framing=encoder.framing,
            )
        )
    )
    return whole, np.asarray(prepared)


def byte_vocabulary(*special: str) -> dict[str, int]:
    """A byte-level BPE vocabulary without merges: the special tokens, each byte, and each byte at a word's end, as CLIP has it."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return {token: i for i, token in enumerate([*special, *letters, *(f"{letter}</w>" for letter in letters)])}


def clip_tokenizer(length: int) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=byte_vocabulary("<|startoftext|>", "<|endoftext|>"), merges=[], model_max_length=length)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@contextmanager
def edited_weights(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The weights in a saved model, to change in place; they are as before afterwards."""
    path = folder / "model.safetensors"
    before = path.read_bytes()
    state = load_file(path)
    try:
        yield state
    finally:
        path.write_bytes(before)


def randomised(network: Any, seed: int = 0) -> Any:
    """A network in which no weight is zero or one by its initialisation, so that every part of it shows in what it computes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def holds_the_contract(encoder: SegmentEncoder, name: str, *, in_time: bool = True) -> None:
    """What every adapter promises: shapes, unit lengths, repeatability, batch invariance, rebuilding, the self-test."""
    assert isinstance(encoder, SegmentEncoder)
    frames = clips(encoder.num_frames, encoder.image_size)
    vectors = encoder.encode_video(frames)
    assert vectors.shape == (3, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode_video(frames), vectors)
    alone = np.concatenate([encoder.encode_video(frames[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, vectors, atol=2e-6)
    reverse = encoder.encode_video(frames[:, ::-1].copy())
    assert (np.abs(reverse - vectors).max() > 1e-4) == in_time  # a video model sees which frame came first
    assert encoder.encode_video(frames[:0]).shape == (0, encoder.dim)
    with pytest.raises(ValueError, match="frames must be uint8"):
        encoder.encode_video(frames[:, :, 1:])

    if encoder.has_text:
        texts = encoder.encode_text(TEXTS)
        assert texts.shape == (len(TEXTS), encoder.dim)
        assert texts.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
        alone = np.concatenate([encoder.encode_text([text]) for text in TEXTS])
        np.testing.assert_allclose(alone, texts, atol=2e-6)
        assert np.abs(texts[0] - texts[1]).max() > 1e-3
    encoder.self_test()

    half: Any = load_encoder(name, **(encoder.options | {"dtype": "bfloat16"}), device="cpu")
    assert (half.encode_video(frames) * vectors).sum(1).min() > 0.999
    if encoder.has_text:
        assert (half.encode_text(TEXTS) * encoder.encode_text(TEXTS)).sum(1).min() > 0.998
    kinds: dict[bool, set[torch.dtype]] = {}
    for module in half._network.modules():
        kinds.setdefault(is_norm(module), set()).update(p.dtype for p in module.parameters(recurse=False))
    assert kinds.pop(True, {torch.float32}) == {torch.float32}
    assert kinds == {False: {torch.bfloat16}}

    again = load_encoder(name, **encoder.options)
    assert again.space_id == encoder.space_id
    assert again.options == encoder.options
    np.testing.assert_array_equal(again.encode_video(frames), vectors)


def refuses_other_weights(folder: Path, name: str, weight: str, *, strangers: bool = True, **options: Any) -> None:
    """A model that lacks a weight, or (where `strangers` matter) has one too many, or that is cut short, is refused."""
    path = folder / "model.safetensors"
    with edited_weights(folder) as state:
        whole = dict(state)
        tensor = state.pop(weight)
        save_file(state, path, {"format": "pt"})
        with pytest.raises(WorkError, match="lacks 1 weights"):
            load_encoder(name, model=str(folder), **options)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(WorkError, match="damaged"):
            load_encoder(name, model=str(folder), **options)
        save_file(whole | {"stranger": tensor.clone()}, path, {"format": "pt"})
        if not strangers:
            load_encoder(name, model=str(folder), **options)
            return
        with pytest.raises(WorkError, match=r"no use for 1 weights \(stranger"):
            load_encoder(name, model=str(folder), **options)
