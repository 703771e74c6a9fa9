"""The offline encoder on real photographs of installed packages, and the registry."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from films import Filmer
from lvmae.embedding import embed_videos
from lvmae.encoders import SegmentEncoder, encoder_of, load_encoder
from lvmae.encoders.conse import ConSE, _read_weights, _unpacked_sentence_encoder, build_classifier
from lvmae.errors import InputError, WorkError
from lvmae.files.cache import cache_folder
from lvmae.store import EmbeddingStore, Manifest
from lvmae.video.decoding import still_picture

# package, file, and what a person calls it (the class's name; ImageNet has no motorcycle, its word for this one is moped)
PHOTOGRAPHS = [
    ("skimage", "data/camera.png", "tripod"),
    ("skimage", "data/chelsea.png", "tabby cat"),
    ("skimage", "data/coffee.png", "espresso"),
    ("skimage", "data/motorcycle_left.png", "moped"),
    ("skimage", "data/rocket.jpg", "missile"),
    ("sklearn", "datasets/images/china.jpg", "palace"),
    ("sklearn", "datasets/images/flower.jpg", "daisy"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "military uniform"),
]
SENTENCES = [
    "a man looking through his camera",
    "a cat",
    "a cup of coffee",
    "a motorbike in a garage",
    "a rocket being launched",
]
SENTENCES += ["an old Chinese temple", "a flower", "a woman of the navy in uniform"]


@pytest.fixture(scope="module")
def encoder() -> ConSE:
    torch.set_num_threads(1)
    return ConSE()


@pytest.fixture(scope="module")
def pictures(encoder: ConSE) -> np.ndarray:
    """(8, 1, S, S, 3): each photograph as a segment of one frame."""
    folders = {name: Path(str(find_spec(name).origin)).parent for name in ("skimage", "sklearn", "matplotlib")}  # type: ignore[union-attr]
    return np.stack([still_picture(folders[package] / file, encoder.image_size) for package, file, _ in PHOTOGRAPHS])[
        :, None
    ]


def test_photographs_are_found_by_their_class_names(encoder: ConSE, pictures: np.ndarray) -> None:
    assert len(encoder.vocabulary) == 998  # 1,000 classes, of which two pairs share a name
    similarity = encoder.encode_video(pictures) @ encoder.encode_text(encoder.vocabulary).T
    names = [name for _, _, name in PHOTOGRAPHS]
    ranks = [
        int((row > row[encoder.vocabulary.index(name)]).sum()) + 1 for row, name in zip(similarity, names, strict=True)
    ]
    assert max(ranks) <= 5, dict(zip(names, ranks, strict=True))
    assert abs(float(similarity.mean())) < 0.05  # centred: what all names share is gone
    assert float(similarity.std()) > 0.08


def test_photographs_are_found_by_sentences(encoder: ConSE, pictures: np.ndarray) -> None:
    similarity = encoder.encode_text(SENTENCES) @ encoder.encode_video(pictures).T
    assert similarity.argmax(axis=1).tolist() == list(range(len(PHOTOGRAPHS)))


def test_outputs(encoder: ConSE, pictures: np.ndarray) -> None:
    vectors = encoder.encode_video(pictures)
    assert vectors.shape == (8, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_text(["a", "b c " * 500]), axis=1), 1, atol=1e-6)
    # what a segment gets does not depend on its neighbours, to the bit; it depends on all of its frames
    np.testing.assert_array_equal(encoder.encode_video(pictures[3:4])[0], vectors[3])
    both = np.concatenate([pictures[:1], pictures[1:2]], axis=1)
    mixed = encoder.encode_video(both)[0]
    assert mixed @ vectors[0] > 0.5
    assert mixed @ vectors[1] > 0.5
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode_video(pictures.astype(np.float32))


def test_folding_changes_nothing_but_rounding(pictures: np.ndarray) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    size = pictures.shape[2]
    plain = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    plain.load_state_dict(_read_weights())
    pixels = (torch.from_numpy(pictures[:4, 0]).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = plain.eval()(pixels).softmax(-1)
        got = build_classifier(_read_weights(), size)(pixels).softmax(-1)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_self_test_passes_with_the_weights_and_fails_without(encoder: ConSE) -> None:
    encoder.self_test()
    spoiled = ConSE()
    for seed in range(3):
        torch.manual_seed(seed)
        spoiled.classifier = build_classifier(None, spoiled.image_size)
        with pytest.raises(WorkError, match="self-test"):
            spoiled.self_test()


class _Flat(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 1000)


def test_self_test_fails_when_similarities_are_all_alike() -> None:
    alike = ConSE(top=1000)
    alike.classifier = _Flat()
    with pytest.raises(WorkError, match="all alike"):
        alike.self_test()


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmae.encoders.conse._WEIGHTS", "gone.pth")
    with pytest.raises(WorkError, match=r"gone\.pth are missing"):
        ConSE()


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmae.encoders.conse.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lvmae\[conse\]'"):
        load_encoder("conse")


# --- the registry ---------------------------------------------------------------------------------------------------------


class Brightness:
    """A third party's encoder: the mean colour."""

    name, dim, num_frames, image_size, interpolation, framing = "brightness", 3, 2, 32, "bilinear", "crop"
    licence, has_text = "CC0", False

    def __init__(self, gain: float = 1.0) -> None:
        self.options: dict[str, Any] = {"gain": gain}
        self.space_id = f"brightness/{gain}"

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        return frames.mean(axis=(1, 2, 3)).astype(np.float32) * self.options["gain"]

    def encode_text(self, texts: list[str]) -> np.ndarray:
        raise InputError("The encoder 'brightness' has no text side.")

    def self_test(self) -> None:
        pass


def _manifest(encoder: SegmentEncoder, name: str) -> Manifest:
    return Manifest(
        space_id=encoder.space_id,
        dim=encoder.dim,
        segments={},
        encoder={"name": name, "options": encoder.options, "licence": ""},
    )


def test_an_encoder_of_ones_own() -> None:
    name = f"{__name__}:Brightness"
    encoder = load_encoder(name, gain=2.0)
    assert encoder.space_id == "brightness/2.0"
    manifest = _manifest(encoder, name)
    assert encoder_of(manifest).options == {"gain": 2.0}
    with pytest.raises(InputError, match="The store's space is 'other'"):
        encoder_of(dataclasses.replace(manifest, space_id="other"))
    with pytest.raises(InputError, match="imported"):
        encoder_of(dataclasses.replace(manifest, encoder={}))


class Placed(Brightness):
    """It runs somewhere, which its space does not depend on; here the vectors say where, to be seen."""

    def __init__(self, device: str = "nowhere") -> None:
        super().__init__()
        self.options, self.space_id, self.device = {}, "placed", device

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        return np.full((len(frames), 3), len(self.device), np.float32)


def test_the_device_reaches_the_workers_and_is_not_stored(film: Filmer, tmp_path: Path) -> None:
    path = film("film.mp4", range(0, 1000, 40))
    embed_videos(path, tmp_path / "store", encoder=f"{__name__}:Placed", encoder_options={"device": "here"}, workers=1)
    store = EmbeddingStore.open(tmp_path / "store")
    assert store[0].embeddings.tolist() == [[4.0, 4.0, 4.0]]
    assert store.manifest.encoder["options"] == {}


def test_options_are_part_of_the_space() -> None:
    spaces = {ConSE(**options).space_id for options in ({}, {"num_frames": 2}, {"image_size": 224}, {"top": 5})}
    assert len(spaces) == 4
    rebuilt = encoder_of(_manifest(ConSE(num_frames=2), "conse"))
    assert rebuilt.num_frames == 2


class Half:
    """An encoder's one method, and nothing else of it."""

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        return frames


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("nonsense", {}, "Known: clip, conse"),
        ("conse", {"frames": 3}, "its options are: num_frames, image_size, top"),
        ("conse", {"num_frames": 0}, "num_frames of at least 1"),
        ("no.such.module:Encoder", {}, "cannot be imported"),
        ("json:JSONDecoder", {}, "no class with a method encode_video"),
        ("os:system", {"command": "exit 1"}, "no class with a method encode_video"),
        (f"{__name__}:Half", {}, "lacks dim"),
        ("json:Nothing", {}, "cannot be imported"),
    ],
)
def test_wrong_requests(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_encoder(name, **options)


def test_changed_copies_in_the_cache_are_noticed(encoder: ConSE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class vectors in another order, which the self-test does not see, and a tokenizer that was tampered with."""
    rows = encoder._class_vectors[0]
    (file,) = (cache_folder() / "conse").glob("classes-*.npy")
    kept = np.load(file)
    times = file.stat()
    np.save(file, kept[::-1])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    made: list[Path] = []
    monkeypatch.setattr(ConSE, "_write_class_vectors", lambda self, path: (made.append(path), np.save(path, kept)))
    np.testing.assert_array_equal(ConSE()._class_vectors[0], rows)
    assert len(made) == 1
    np.testing.assert_array_equal(ConSE()._class_vectors[0], rows)
    assert len(made) == 1
    tokenizer = _unpacked_sentence_encoder() / "tokenizer.json"
    right = tokenizer.read_bytes()
    tokenizer.write_bytes(right.replace(b"palace", b"flower", 1))
    assert (_unpacked_sentence_encoder() / "tokenizer.json").read_bytes() == right
