"""What all encoders with weights from a model hub share: finding the weights, pinning them, pixels, devices, the self-test.

Enters: a hub repository (`owner/name`) or a folder with the same files. Leaves: a snapshot on this disk whose commit, or whose
files' hash, names the embedding space; the network with every weight found in it; and `HubEncoder`, which an adapter subclasses
with its forward pass alone. Nothing here executes code from a repository, and no pickle is read but by `weights_only`.

Price: a repository is downloaded once into the hub's own cache (HF_HOME); a pinned commit that is there needs no network again.
A local folder is read once more to hash it, by each worker (0.7 GiB/s a core of a busy machine).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load(weights_only=True); nothing is unpickled here
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lvmae.devices import pick_device
from lvmae.encoders.half_precision import lower_precision, natural_dtype, repeated_blocks
from lvmae.encoders.photographs import photograph
from lvmae.encoders.transfer import Transfer
from lvmae.errors import InputError, LVMAEError, WorkError
from lvmae.process import say

# What a model consists of: configuration and tokenizer, weights, and, only if there are no such weights, pickled ones.
FILES = ("*.json", "*.txt", "*.model", "README.md")
WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model-?????-of-?????.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TEXT_BATCH = 64
_ALIKE = 0.9999  # cosine above which a palace and a flower, or their names, count as the same


# --- weights ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """A model's files on this disk. `model` and `revision` find them again; `identity` names them whatever their path."""

    folder: Path
    model: str  # `owner/name`, or the folder's absolute path
    revision: str | None  # the commit; None for a local folder
    identity: str  # `owner/name@commit`, or `local-` and the hash of the files

    def json(self, name: str) -> dict[str, Any]:
        """One of its JSON files; InputError if it is missing or is not a JSON object."""
        try:
            content = json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{self.model} has no {name}: give a model of the kind that this encoder is made for."
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.model}: {name} cannot be read ({error}); download the model again.") from None
        if not isinstance(content, dict):
            raise InputError(f"{self.model}: {name} is not a JSON object; download the model again.")
        return content

    def processor(self) -> dict[str, Any]:
        """The configuration of its video or image processor: transformers 5 keeps it in a part of processor_config.json, older
        versions in a file of its own. InputError if there is none."""
        if (self.folder / "processor_config.json").is_file():
            whole = self.json("processor_config.json")
            for kind in ("video_processor", "image_processor"):
                if isinstance(part := whole.get(kind), dict):
                    return part
        own = "video_preprocessor_config.json"
        return self.json(own if (self.folder / own).is_file() else "preprocessor_config.json")

    @property
    def licence(self) -> str | None:
        """What the model card's metadata say, if anything."""
        from huggingface_hub import ModelCard

        with contextlib.suppress(OSError, ValueError):
            data = ModelCard.load(self.folder / "README.md", ignore_metadata_errors=True).data
            name = data.license_name if data.license == "other" and data.license_name else data.license
            return ", ".join(name) if isinstance(name, list) else name
        return None


def fetch(
    model: str,
    revision: str | None = None,
    *,
    files: Sequence[str] = FILES,
    weights: Sequence[str] = WEIGHTS,
    pickled_weights: Sequence[str] = PICKLED_WEIGHTS,
) -> Snapshot:
    """The model's files: a folder as it is, else downloaded from the hub, or from its cache, at `revision` (default: the newest).

    The three kinds of files are glob patterns; pickled weights are fetched only if there are no others. Raises InputError, with
    what to do, where the model, its revision or the network is missing.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        if revision is not None:
            raise InputError(
                f"{model} is a folder on this machine, which has no revisions: leave out revision={revision!r}."
            )
        folder = folder.resolve()
        used = [f for f in _matching(folder, [*files, *weights]) if f.name != "README.md"]
        if not _matching(folder, weights):
            used += _matching(folder, pickled_weights)
        if not used:
            raise InputError(f"The folder {model} holds no model: it has none of {', '.join([*weights, *files])}.")
        return Snapshot(folder, str(folder), None, f"local-{_fingerprint(folder, used)}")
    if model.startswith(("/", "./", "../", "~")):
        raise InputError(f"There is no folder {model}.")
    found = _download(model, revision, [*files, *weights])
    if not _matching(found, weights) and pickled_weights:
        found = _download(model, found.name, [*files, *pickled_weights])
    return Snapshot(found, model, found.name, f"{model}@{found.name[:12]}")


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({f for pattern in patterns for f in folder.rglob(pattern) if f.is_file()})


def _fingerprint(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _download(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot's folder in the hub's cache, whose name is the commit."""
    from huggingface_hub import errors, snapshot_download

    what = model if revision is None else f"{model} at revision {revision}"
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns)))
    except errors.HFValidationError:
        raise InputError(
            f"{model!r} is neither a folder on this machine nor the name of a repository (owner/name)."
        ) from None
    except errors.GatedRepoError:
        raise InputError(
            f"{model} is gated: accept its terms on its page at the hub and run `hf auth login`, then try again."
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{model} has no revision {revision!r} at the hub.") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"There is no model {model!r} at the hub, or it is private: check the name, or run `hf auth login`."
        ) from None
    except (
        OSError
    ) as error:  # offline, no network, an incomplete cache, a full disk: the hub's errors are all of them OSErrors
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise WorkError(f"{what} cannot be downloaded: {error.strerror or error}.") from None
    except Exception as error:
        # The client's HTTP library changed its errors' types more than once; by name, so that none has to be imported.
        if not re.search("proxy|connect|timeout|network|protocol|request", type(error).__name__, re.IGNORECASE):
            raise
    raise InputError(
        f"{what} is not on this machine and the hub cannot be reached: run `hf download {model}` where there is a "
        "network and HF_HUB_OFFLINE is not set, point HF_HOME at a cache that has it, or give a folder as the option model."
    )


def load_pretrained(factory: Any, snapshot: Snapshot, *, unused: Sequence[str] = (), **options: Any) -> Any:
    """`factory.from_pretrained(...)` in float32 for inference: every weight found, none random, no code of the repository run.

    `unused` are regular expressions of weights in the files that this network has no place for, by intention. Raises WorkError
    if weights are missing, misshapen or left over, InputError if the files are not such a model at all.
    """
    snapshot.json("config.json")  # without it transformers would build a network of its default size
    from safetensors import SafetensorError

    options = {"dtype": torch.float32, "trust_remote_code": False, "local_files_only": True} | options
    options["ignore_mismatched_sizes"] = True  # they are refused below, with a sentence
    with quiet_transformers():
        try:
            network, info = factory.from_pretrained(snapshot.folder, output_loading_info=True, **options)
        except SafetensorError:
            raise WorkError(f"{snapshot.model}: its weights are damaged; download them again.") from None
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{snapshot.model} cannot be loaded as {factory.__name__}: {reason[:300]}") from None
    check_weights(
        snapshot,
        missing=info["missing_keys"],
        unexpected=[k for k in info["unexpected_keys"] if not any(re.search(p, k) for p in unused)],
        misshapen=[k[0] if isinstance(k, tuple) else k for k in info["mismatched_keys"]],
    )
    return network.eval().requires_grad_(False)


def load_tokenizer(snapshot: Snapshot, factory: Any = None) -> Any:
    """The model's tokenizer, of the class `factory` or whichever it is. InputError if its files are missing."""
    from transformers import AutoTokenizer

    # Without them transformers would make a tokenizer of nothing but marks, and every text would be the same.
    if not _matching(snapshot.folder, _TOKENIZERS):
        raise InputError(
            f"{snapshot.model} has no tokenizer: none of {', '.join(_TOKENIZERS)}; download it again, whole."
        )
    with quiet_transformers():
        try:
            return (factory or AutoTokenizer).from_pretrained(
                snapshot.folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{snapshot.model} has no tokenizer that can be loaded: {' '.join(str(error).split())[:300]}"
            ) from None


def read_weights(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Every tensor in the model's files by name, on the CPU, mapped from disk; for networks that transformers does not know.

    Safetensors, whole or in parts; if there are none, torch files, read with `weights_only`. WorkError if they are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = (sorted(snapshot.folder.glob(pattern)) for pattern in (*WEIGHTS, *PICKLED_WEIGHTS))
    files = next(filter(None, found), None)
    if files is None:
        raise InputError(f"{snapshot.model} holds no weights: neither {WEIGHTS[0]} nor {PICKLED_WEIGHTS[0]}.")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state |= load_file(file)
            else:
                state |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, EOFError, TypeError, SafetensorError, UnpicklingError):
            raise WorkError(
                f"{snapshot.model}: {file.name} is damaged or not a weights file; download it again."
            ) from None
    return state


def check_weights(
    snapshot: Snapshot, *, missing: Sequence[str], unexpected: Sequence[str] = (), misshapen: Sequence[str] = ()
) -> None:
    """Raises WorkError unless all three are empty: a network with a random part gives numbers that mean nothing."""
    problems = {"lacks": missing, "has another shape of": misshapen, "has no use for": unexpected}
    said = [f"{verb} {len(keys)} weights ({', '.join(sorted(keys)[:3])}...)" for verb, keys in problems.items() if keys]
    if said:
        raise WorkError(
            f"{snapshot.model} does not hold the weights of this encoder: it {'; it '.join(said)}. "
            "Download it again, or give the model that this encoder is made for."
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and warnings: what matters in them is checked, and raised, here."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


# --- pixels -----------------------------------------------------------------------------------------------------------------

_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Pixels:
    """What a model's own processor does to frames. The decoder resizes, to `size`; the rest is done here, deterministically.

    `crop` < `size` where the processor resizes to one size and then cuts out the centre.
    """

    size: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    framing: str = "crop"
    crop: int | None = None
    scale: float = 1 / 255

    @classmethod
    def of(cls, processor: dict[str, Any], *, default_size: int | None = None) -> Pixels:
        """From a processor's configuration, in the keys of transformers' image and video processors. InputError for other kinds."""
        size, crop = _sides(processor.get("size", default_size)), _sides(processor.get("crop_size"))
        cropped = bool(processor.get("do_center_crop", False)) and crop is not None
        if not processor.get("do_resize", True):
            size = crop or size
        if size is None or size[0] != size[1] or (crop is not None and crop[0] != crop[1]):
            raise InputError(
                f"The model's processor does not make square frames of one size: size={processor.get('size')}, "
                f"crop_size={processor.get('crop_size')}."
            )
        stated = processor.get("resample")
        resample = _RESAMPLING.get(3 if stated is None else int(stated))
        if resample is None:
            raise InputError(
                f"The model's processor resizes by a method that is not offered here: {processor['resample']}."
            )
        normalised = processor.get("do_normalize", True)
        if normalised and not (processor.get("image_mean") and processor.get("image_std")):
            raise InputError(
                "The model's processor normalises pixels and does not state by what: image_mean and image_std."
            )
        rescaled = processor.get("do_rescale", True)
        return cls(
            size=size[0],
            mean=_three(processor["image_mean"]) if normalised else cls.mean,
            std=_three(processor["image_std"]) if normalised else cls.std,
            interpolation=resample,
            framing="crop" if cropped or _keeps_aspect(processor.get("size", default_size)) else "stretch",
            crop=crop[0] if cropped and crop is not None and crop != size else None,
            scale=float(processor.get("rescale_factor", 1 / 255)) if rescaled else 1.0,
        )

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 (..., size, size, 3) -> float32 (..., 3, S, S), S = crop or size; on the device of `frames`."""
        if self.crop is not None:
            cut = (self.size - self.crop) // 2
            frames = frames[..., cut : cut + self.crop, cut : cut + self.crop, :]
        mean, std = (torch.tensor(v, device=frames.device) for v in (self.mean, self.std))
        return ((frames.float() * self.scale - mean) / std).movedim(-1, -3).contiguous()

    def __str__(self) -> str:
        cut = f"-centre{self.crop}" if self.crop else ""
        return f"{self.size}px-{self.interpolation}-{self.framing}{cut}"


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width of a processor's `size` or `crop_size`, in its several spellings."""
    if size is None:
        return None
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict):
        if size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
        if size.get("shortest_edge"):
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise InputError(f"The model's processor states a size that is not understood: {size!r}.")


def _keeps_aspect(size: Any) -> bool:
    return isinstance(size, dict) and bool(size.get("shortest_edge"))


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(v) for v in values)
    return first, second, third


# --- options ----------------------------------------------------------------------------------------------------------------


def whole_number(name: str, value: Any, *, least: int = 1, most: int = 1024) -> int:
    """An option as an integer; on the command line all options are text. InputError outside least..most."""
    with contextlib.suppress(TypeError, ValueError):
        number = int(value)
        if str(number) == str(value).strip() and least <= number <= most:
            return number
    raise InputError(f"The encoder's option {name} must be a whole number from {least} to {most}, not {value!r}.")


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """An option with few values. InputError for any other."""
    if value not in choices:
        raise InputError(f"The encoder's option {name} must be one of {', '.join(choices)}, not {value!r}.")
    return str(value)


def yes_or_no(name: str, value: Any) -> bool:
    """An option that is on or off: a bool, or true/false, yes/no, 1/0 in any case. InputError for anything else."""
    said = str(value).strip().lower()
    if said in ("true", "yes", "1"):
        return True
    if said in ("false", "no", "0"):
        return False
    raise InputError(f"The encoder's option {name} must be true or false, not {value!r}.")


# --- the encoder ------------------------------------------------------------------------------------------------------------


class HubEncoder(ABC):
    """An encoder around a pretrained network. A subclass's constructor fetches, loads, and calls `_describe` last.

    Every adapter takes, beside what is its own:
    `model`: a hub repository or a folder. `revision`: branch, tag or commit; what it stood for when first used goes into `options`,
    so a store's manifest pins the commit. `device`: `auto`, `cpu`, `cuda`, ...; not in `options`, because it does not change
    the space. `dtype`: `auto` (float32 on a CPU, bfloat16 elsewhere), `float32`, `bfloat16` or `float16`: that of weights and
    activations, while norms and softmax are computed in float32; it moves a vector slightly and does not make another space.
    `compile`: `auto` (on CUDA), `true` or `false`: whether an encoding process of a job compiles the network's layers; what fails
    to compile runs as it is.
    """

    name: str
    licences: ClassVar[dict[str, str]] = {}  # repository -> licence, where its card does not state it
    has_text = True

    dim: int
    num_frames: int
    image_size: int
    interpolation: str
    framing: str
    space_id: str
    licence: str
    options: dict[str, Any]
    _network: Any  # these two are the adapter's to set
    _tokenizer: Any

    def __init__(
        self, snapshot: Snapshot, *, device: str = "auto", dtype: str = "auto", compile: bool | str = "auto"
    ) -> None:
        self.snapshot = snapshot
        self.device = pick_device(device)
        self.on_accelerator = self.device.type != "cpu"
        self._dtype_option = one_of("dtype", dtype, tuple(_DTYPES))
        self._dtype = _DTYPES[dtype] or natural_dtype(self.device)
        self._compiles = self.device.type == "cuda" if compile == "auto" else yes_or_no("compile", compile)
        self._transfer = Transfer(self.device)
        self._most = sys.maxsize  # segments or texts at once that the device has memory for
        self._batch_size = 0  # that every batch is filled up to, so that shapes do not change

    def _describe(
        self, *, dim: int, num_frames: int, pixels: Pixels, pooling: str, options: dict[str, Any] | None = None
    ) -> None:
        """States the encoder's public attributes, and lowers its network to its type of numbers.

        `pooling` says how T frames become one vector, in a word for the `space_id`.

        `options` are the adapter's own; a pooling or option that changes the space must show in `pooling`.
        """
        self.dim, self.num_frames, self.pixels = dim, num_frames, pixels
        self.image_size, self.interpolation, self.framing = pixels.size, pixels.interpolation, pixels.framing
        stated = self.snapshot.licence or self.licences.get(self.snapshot.model)
        self.licence = stated or "not stated by the model's card"
        self.options = {"model": self.snapshot.model, "revision": self.snapshot.revision} | (options or {})
        self.options["dtype"] = self._dtype_option
        self.space_id = f"{self.name}-1/{self.snapshot.identity}/{num_frames}x{pixels}/{pooling}"
        if self._dtype != torch.float32:
            lower_precision(self._network, self._dtype)

    @abstractmethod
    def _embed_video(self, pixels: torch.Tensor) -> torch.Tensor:
        """Prepared frames (B, T, 3, S, S) -> (B, dim) on the same device; need not be normalised."""

    def _embed_text(self, texts: list[str]) -> torch.Tensor:
        """Texts -> (len(texts), dim), on any device; need not be normalised. At most 64 at a time come here."""
        raise InputError(
            f"The encoder {self.name!r} has no text side, so it can neither search by text nor read captions."
        )

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """uint8 RGB (B, T, S, S, 3) -> float32 (B, dim), L2-normalised; to rounding, a segment's is the same in any batch."""
        wanted = (self.num_frames, self.image_size, self.image_size, 3)
        if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[1:] != wanted:
            raise ValueError(
                f"frames must be uint8 (B, {', '.join(map(str, wanted))}), not {frames.dtype} {frames.shape}"
            )

        return self.encode_staged(self.stage([*frames])) if len(frames) else self._normalised([])

    def stage(self, segments: Sequence[np.ndarray]) -> Any:
        """Segments' frames, uint8 (T, S, S, 3) each, on their way to the device as bytes; `encode_staged` waits for them."""
        return self._transfer(segments, fill_to=self._batch_size), len(segments)

    def encode_staged(self, staged: Any) -> np.ndarray:
        """What `stage` gave -> float32 (B, dim), L2-normalised."""
        arriving, count = staged

        def embed(part: torch.Tensor) -> torch.Tensor:
            return self._embed_video(self.pixels(part))

        return self._normalised([*self._in_parts(embed, arriving())])[:count]

    def warm_up(self, batch_size: int) -> None:
        """Prepares for batches of one size: compiles, where that is wanted, and finds out how much memory they take."""
        blank = np.zeros((batch_size, self.num_frames, self.image_size, self.image_size, 3), np.uint8)
        if self._compiles:
            self._batch_size = batch_size
            blocks = repeated_blocks(self._network)
            for block in blocks:
                block.compile(dynamic=False)
            try:
                self.encode_video(blank)
            except LVMAEError:
                raise
            except Exception as error:  # no compiler, or what it cannot compile
                say(f"The encoder {self.name!r} runs uncompiled: {type(error).__name__}: {str(error).strip()[:200]}")
                for block in blocks:
                    block._compiled_call_impl = None
            else:
                return
        if self.on_accelerator:
            self._batch_size = batch_size
            self.encode_video(blank)

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Texts -> float32 (len(texts), dim), L2-normalised. Raises InputError if there is no text side."""
        parts = [texts[i : i + _TEXT_BATCH] for i in range(0, len(texts), _TEXT_BATCH)]
        return self._normalised([v for part in parts for v in self._in_parts(self._embed_text, part)])

    def _tokens(self, texts: list[str], **options: Any) -> Any:
        """Texts as the tokenizer has them, each padded or cut to the text tower's length, on the device."""
        length = self._network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt", **options
        )
        return tokens.to(self.device)

    def self_test(self) -> None:
        """Photographs of a palace and a flower, and those two words, must get different, finite vectors. Raises WorkError.

        That all weights are the trained ones is checked when they are loaded.
        """
        pictures = np.stack([photograph(n, self.image_size) for n in ("china.jpg", "flower.jpg")])
        kinds = {"pictures": self.encode_video(np.repeat(pictures[:, None], self.num_frames, axis=1))}
        if self.has_text:
            kinds["texts"] = self.encode_text(["a palace under a blue sky", "a red flower"])
        for kind, (one, other) in kinds.items():
            if not float(one @ other) < _ALIKE:  # NaN included
                raise WorkError(
                    f"The encoder {self.name!r} failed its self-test: its similarities of {kind} are all alike, so the weights in "
                    f"{self.snapshot.model} are damaged or are not this encoder's; download them again."
                )

    def _in_parts(self, embed: Callable[[Any], torch.Tensor], batch: Any) -> Iterator[torch.Tensor]:
        """embed(batch), or of its halves where the device has too little memory for all of it."""
        if not len(batch):
            return
        if len(batch) <= self._most:
            try:
                with (
                    torch.accelerator.device_index(self.device.index)
                    if self.on_accelerator
                    else contextlib.nullcontext(),
                    torch.inference_mode(),
                    torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32),
                ):
                    vectors = embed(batch).float().cpu()
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise WorkError(
                        f"{self.device} has too little memory for {self.snapshot.model}: free some, or use the option device=cpu."
                    ) from None
            else:
                yield vectors
                return
            # Outside the except clause, whose traceback would keep the failed attempt's tensors alive.
            self._most = math.ceil(len(batch) / 2)
        half = math.ceil(len(batch) / 2)
        yield from self._in_parts(embed, batch[:half])
        yield from self._in_parts(embed, batch[half:])

    def _normalised(self, parts: list[torch.Tensor]) -> np.ndarray:
        vectors = torch.cat(parts) if parts else torch.empty(0, self.dim)
        normalised: np.ndarray = nn.functional.normalize(vectors, dim=-1).numpy()
        return normalised
