"""Segment encoders: frozen models that put a segment of video, and a text, in one space. Here: the protocol and the registry.

An encoder is found by its name here, by an entry point of the group `lvmae.encoders`, or as `module:Class`. It is rebuilt from
a store's manifest, name and options, so everything that changes its space must be in `options` and show in `space_id`.
Importing this module imports no deep-learning library; an encoder's own module does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lvmae.devices import all_of_its_kind, pick_device
from lvmae.errors import InputError
from lvmae.process import own_state
from lvmae.trust import require_trust

if TYPE_CHECKING:
    from lvmae.store import Manifest

ENTRY_POINTS = "lvmae.encoders"


class _BuiltIn(NamedTuple):
    """Where an encoder lives, the extra that installs what it needs, and its options where this name stands for other defaults."""

    target: str
    extra: str | None = None
    defaults: Mapping[str, Any] = MappingProxyType({})


_BUILT_IN = {
    "conse": _BuiltIn("lvmae.encoders.conse:ConSE", "conse"),
    "clip": _BuiltIn("lvmae.encoders.frames:CLIP"),
    "siglip2": _BuiltIn("lvmae.encoders.frames:SigLIP2"),
    "languagebind-huge": _BuiltIn("lvmae.encoders.languagebind:LanguageBind"),
    "languagebind-base": _BuiltIn(
        "lvmae.encoders.languagebind:LanguageBind", None, {"model": "LanguageBind/LanguageBind_Video_FT"}
    ),
    "videoprism": _BuiltIn("lvmae.encoders.videoprism:VideoPrism"),
    "videoprism-large": _BuiltIn(
        "lvmae.encoders.videoprism:VideoPrism", None, {"model": "google/videoprism-lvt-large-f8r288"}
    ),
    "xclip": _BuiltIn("lvmae.encoders.xclip:XCLIP"),
    "pe-av": _BuiltIn("lvmae.encoders.pe_av:PEAV", "pe-av"),
    "internvideo2": _BuiltIn("lvmae.encoders.internvideo2:InternVideo2"),
    "sentence-transformers": _BuiltIn(
        "lvmae.encoders.sentence_transformers:SentenceTransformers", "sentence-transformers"
    ),
}


@runtime_checkable
class SegmentEncoder(Protocol):
    """What the engine asks of an encoder. Implementations may batch as they like; one result must not depend on its neighbours.

    One that also has `on_accelerator` set to True gets processes of its own, apart from those that decode. There it may have
    `stage(list of (T, H, W, 3)) -> Any` and `encode_staged(Any) -> float32 (B, dim)`: the first is called for the next batch while
    the second is at work on the one before; and `warm_up(batch_size)`, called before the first batch.
    """

    name: str
    dim: int
    num_frames: int  # T, frames a segment
    image_size: int  # H = W
    interpolation: str  # "bicubic" or "bilinear": how frames are resized for it
    framing: str  # "crop": short side resized, centre kept; "stretch": the whole picture, its aspect given up
    space_id: str  # names the space: model, weights, frames, preprocessing, pooling
    licence: str
    options: dict[str, Any]  # load_encoder(name, **options) builds the same space again
    has_text: bool

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """uint8 RGB (B, T, H, W, 3) -> float32 (B, dim), L2-normalised."""

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Texts -> float32 (len(texts), dim), L2-normalised. Raises InputError if there is no text side."""

    def self_test(self) -> None:
        """Raises WorkError when the weights are missing or similarities are all alike."""


@own_state(environment=False)  # an encoder hands permissions to its child processes through it
def load_encoder(name: str, **options: Any) -> SegmentEncoder:
    """Builds an encoder by name: built-in, from an entry point of `lvmae.encoders`, or `module:Class`.

    Raises InputError for an unknown name, a missing extra, or options that the encoder does not take.
    """
    factory, defaults = _factory(name)
    options = {**defaults, **options}
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        takes = ", ".join(p for p in inspect.signature(factory).parameters)
        raise InputError(
            f"The encoder {name!r} cannot be built: {error}; its options are: {takes or 'none'}."
        ) from None
    encoder = factory(**options)
    if not isinstance(encoder, SegmentEncoder):
        wanted = {n for n in (*SegmentEncoder.__annotations__, *vars(SegmentEncoder)) if not n.startswith("_")}
        lacks = sorted(n for n in wanted if not hasattr(encoder, n))
        raise InputError(f"{name!r} is not a segment encoder: it lacks {', '.join(lacks)}.")
    return encoder


def load_placed(
    name: str, options: Mapping[str, Any], devices: str | Iterable[str] | None
) -> tuple[SegmentEncoder, tuple[str, ...]]:
    """An encoder, and the devices for copies of it, a process each; "" where it has no option `device`.

    `devices` are names of torch's, in one text with commas or in several. None: every accelerator of the kind that the encoder
    chose; no device at all for an encoder on the CPU. Raises InputError for a device that is not here or not for this encoder.
    """
    given = [d.strip() for d in (devices.split(",") if isinstance(devices, str) else devices or ())]
    choosable = "device" in inspect.signature(_factory(name)[0]).parameters
    if given:
        kinds = {pick_device(device).type for device in given}
        if choosable:
            return load_encoder(name, **{**options, "device": given[0]}), tuple(given)
        if kinds != {"cpu"}:
            raise InputError(f"The encoder {name!r} has no option `device`: it runs on the CPU or chooses by itself.")
        return load_encoder(name, **options), ("",) * len(given)
    encoder = load_encoder(name, **options)
    if not getattr(encoder, "on_accelerator", False):
        return encoder, ()
    if not choosable:
        return encoder, ("",)
    stated = options.get("device", "auto")
    return encoder, all_of_its_kind(pick_device(stated)) if stated == "auto" else (str(stated),)


def encoder_of(manifest: Manifest) -> SegmentEncoder:
    """The encoder that made a store. Raises InputError if what is installed now has another space than the store.

    A store comes from anybody: an encoder that it names as `module:Class` is loaded only where its code is trusted.
    """
    name = manifest.encoder.get("name")
    if not name or name == "imported":
        raise InputError(
            "This store does not say which encoder made it (it was imported), so there is no text side to use with it."
        )
    if name not in _BUILT_IN and name not in {point.name for point in entry_points(group=ENTRY_POINTS)}:
        require_trust(str(name), "The store")
    options = dict(manifest.encoder.get("options", {}))
    options.pop("trust_remote_code", None)  # a store comes from anybody; permission to run code, from the user alone
    encoder = load_encoder(name, **options)
    if encoder.space_id != manifest.space_id:
        raise InputError(
            f"The store's space is {manifest.space_id!r}, but the encoder {name!r} installed here makes {encoder.space_id!r}: "
            "install the version that made the store, or embed the videos again."
        )
    return encoder


def _factory(name: str) -> tuple[Any, Mapping[str, Any]]:
    """The class or function that makes the encoder, and the options that its name stands for."""
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in _BUILT_IN:
        target, extra, defaults = _BUILT_IN[name]
    elif name in plugins:
        target, extra, defaults = _BuiltIn(plugins[name].value)
    elif ":" in name:
        target, extra, defaults = _BuiltIn(name)
    else:
        known = ", ".join(sorted({*_BUILT_IN, *plugins}))
        raise InputError(f"There is no encoder {name!r}. Known: {known}; a class of your own is given as module:Class.")
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if extra:
            raise InputError(f"The encoder {name!r} needs {error.name}: pip install 'lvmae[{extra}]'.") from None
        raise InputError(f"The encoder {name!r} cannot be imported: {error}.") from None
    except (ImportError, AttributeError) as error:
        raise InputError(f"The encoder {name!r} cannot be imported: {error}.") from None
    # A name may come from somebody else's store: nothing is called that is not an encoder's class.
    if target == name and not (isinstance(found, type) and hasattr(found, "encode_video")):
        raise InputError(f"{name!r} is not a segment encoder: it is no class with a method encode_video.")
    return found, defaults
