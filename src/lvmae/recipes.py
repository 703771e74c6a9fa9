"""Named, complete run configurations, and the settings that change them.

A `Recipe` holds every number of a pre-training run but the data: written to `recipe.json`, it is enough to repeat the run.
`paper` is Sec. 4 and the supplement of Naiman et al. (ICCV 2025); what the paper does not say (clipping, the share of
videos held out, checkpoints) is marked below as ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from lvmae.errors import InputError
from lvmae.files.json_files import read_object
from lvmae.model.centering import CENTERS
from lvmae.model.objectives import check_objective, read_options
from lvmae.sequences.masks import STRATEGIES, is_mask, mask_names, takes_temperature
from lvmae.trust import require_trust

# These change a run's speed and what is logged, never what it computes: a run may be resumed with other values of them.
FREE = frozenset(
    {"checkpoint_every", "checkpoint_minutes", "compile", "data", "keep", "log_every", "num_workers", "trackers"}
)

# What runs did before there was a setting, where that is not the default of today. A setting that an old recipe.json does not
# hold has this value, or else the default of its field: so a run from before a setting can be resumed and repeated. Whoever
# adds a setting with another default than the old behaviour names the old behaviour here.
BEFORE_IT_EXISTED: dict[str, Any] = {"order": "shuffled", "compile": False, "data": "host"}

_NOTHING = frozenset({"none", "null", ""})

# Settings added after ablations had named their cells by a digest of all settings: at the value of before they do not count.
ADDED = frozenset({"best_by", "center", "loss_options", "order", "patience", "watch_every"})

# Settings that counted in that digest before they were free, and what almost all recipes had.
_COUNTED = {"compile": False}

# What settings are called elsewhere: their names here are not near in spelling.
_OTHER_NAMES = {
    "lr": "base_lr", "learning_rate": "base_lr", "max_lr": "base_lr", "bs": "batch_size", "batch": "batch_size",
    "wd": "weight_decay", "depth": "layers", "num_layers": "layers", "num_hidden_layers": "layers", "n_layers": "layers",
    "num_heads": "heads", "width": "decoder_width", "ratio": "mask_ratio", "masking_ratio": "mask_ratio", "masking": "mask",
    "gradient_clipping": "clip_norm", "grad_clip": "clip_norm", "max_grad_norm": "clip_norm", "max_norm": "clip_norm",
    "gradient_accumulation_steps": "accumulation", "grad_accum": "accumulation", "num_epochs": "epochs", "steps": "epochs",
    "warmup": "warmup_epochs", "warmup_steps": "warmup_epochs", "dtype": "precision", "amp": "precision",
    "mixed_precision": "precision", "workers": "num_workers", "objective": "loss", "val_split": "val_fraction",
    "seq_len": "max_segments", "max_length": "max_segments", "random_seed": "seed", "logger": "trackers", "tracker": "trackers",
}  # fmt: skip

_LARGEST = 2**31 - 1  # of whole numbers: what counts videos, steps, layers and bytes on 32 bits still holds it

_CHOICES = {
    "center": CENTERS,
    "precision": ("fp32", "bf16", "fp16"),
    "order": ("dealt", "shuffled"),
    "data": ("auto", "device", "host"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run. The defaults are the paper's where it gives one. `ranges` are checked when it is made."""

    name: str = "paper"

    # Model (Sec. 3). The width is not here: it is the dimension of the store's embeddings.
    layers: int = 32
    heads: int | None = 16  # None: the number that gives heads nearest to 64 wide
    mlp_ratio: float = 4.0
    decoder_width: int = 512
    decoder_layers: int = 8
    decoder_heads: int = 16
    max_segments: int = 256  # the longest window in training
    embedding_scale: float | None = 1.0  # embeddings times this, then positions; None: the square root of the width
    center: str = "none"  # taken off the embeddings first: none, video (the mean of its visible segments) or store
    loss: str = "mse"  # the objective: a name of `lvmae.model.objectives`, of a plugin, or module:Class
    loss_options: tuple[str, ...] = ()  # the objective's own, NAME=VALUE each

    # What is hidden (Sec. 3.2)
    mask: str = "semantic"  # a name of `lvmae.sequences.masking`, of a plugin, or module:function
    mask_ratio: float = 0.5
    temperature: float | None = None  # semantic: draw by dissimilarity, so that epochs differ; None is the paper

    # Windows: a duration drawn uniformly from [min_seconds, max_segments x the segment length]
    min_seconds: float = 10.0
    max_seconds: float | None = None  # a lower cap on a window's length; None: max_segments alone limits it
    mixture: tuple[float, ...] = ()  # a weight for each store; (): each video counts the same

    # Optimisation: AdamW, lr = base_lr x batch_size / 256
    epochs: int = 150
    warmup_epochs: float = 40.0
    batch_size: int = 128  # over all processes and accumulated micro-batches
    base_lr: float = 1.5e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    clip_norm: float | None = None
    precision: str = "bf16"
    accumulation: int = 1  # micro-batches a step and process
    order: str = "dealt"  # batches of an epoch by length, so that all have nearly the same size; or "shuffled", as runs before it
    compile: bool | None = (
        None  # the blocks; None ("auto"): on a GPU, where the whole step is one CUDA graph if it can be
    )
    data: str = "auto"  # the embeddings on the "device" or the "host"; auto: on a GPU with room for them
    seed: int = 0

    # Watching it (ours)
    val_fraction: float = 0.05  # of the videos, held out; 0 trains on all of them and validates nothing
    val_windows: int = 256  # at most
    validate_every: int = 1  # epochs
    watch_every: int = (
        10  # epochs between looks at what the features are worth (pretraining/watching.py), and at the end; 0: none
    )
    best_by: str | None = None  # the figure of the curves whose best validation is kept; None keeps the last weights
    patience: int | None = None  # validations without a better best_by after which the run stops
    log_every: int = 10  # steps between looks at the loss; every step is recorded
    checkpoint_every: int = 1000  # steps
    checkpoint_minutes: float = 10.0  # and at least this often
    keep: int = 2  # checkpoints on disk
    num_workers: int = 4  # loader processes
    trackers: tuple[str, ...] = ()  # "tensorboard", "wandb"; metrics.jsonl is always written

    def __post_init__(self) -> None:
        """Raises InputError if a value is out of its range."""

        def check(holds: bool, key: str, rule: str) -> None:
            if not holds:
                raise InputError(f"{key} is {getattr(self, key)!r}: {rule}.")

        for key, choices in _CHOICES.items():
            check(getattr(self, key) in choices, key, "choose " + ", ".join(choices))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool):
                check(value <= _LARGEST, field.name, f"the largest is {_LARGEST}")
        check(is_mask(self.mask), "mask", f"choose {', '.join(mask_names())}, or module:function for your own")
        for key, rule in (("loss", check_objective), ("loss_options", read_options)):
            try:
                rule(getattr(self, key))
            except ValueError as error:
                raise InputError(f"{key} is {getattr(self, key)!r}: {error}.") from None
        for key in ("layers", "decoder_width", "decoder_layers", "decoder_heads", "epochs", "batch_size", "accumulation",
                    "validate_every", "log_every", "checkpoint_every", "keep"):  # fmt: skip
            check(getattr(self, key) >= 1, key, "it has to be 1 or more")
        for key in ("warmup_epochs", "weight_decay", "val_windows", "num_workers", "seed", "watch_every"):
            check(getattr(self, key) >= 0, key, "it has to be 0 or more")
        for key in ("base_lr", "mlp_ratio", "min_seconds", "checkpoint_minutes"):
            check(getattr(self, key) > 0, key, "it has to be more than 0")
        for key, what in (("clip_norm", "for no clipping"), ("temperature", "for the highest scores, as in the paper")):
            value = getattr(self, key)
            check(value is None or value > 0, key, f"it has to be more than 0, or none {what}")
        for key in ("beta1", "beta2", "val_fraction"):
            check(0 <= getattr(self, key) < 1, key, "it has to be at least 0 and below 1")
        check(0 < self.mask_ratio < 1, "mask_ratio", "it has to be between 0 and 1, both excluded")
        check(self.max_segments >= 2, "max_segments", "a window needs 2 segments, one to see and one to predict")
        # A share of 1 - ratio is seen; what is written in decimal fractions is meant in them.
        visible = 1 - Fraction(repr(float(self.mask_ratio)))
        check(
            self.max_segments * visible >= 1,
            "mask_ratio",
            f"of a window of max_segments={self.max_segments} it leaves nothing to see; lower it, or set max_segments to "
            f"{math.ceil(1 / visible)} or more",
        )
        check(round(self.mlp_ratio * self.decoder_width) >= 1, "mlp_ratio", "it makes layers of no width; raise it")
        check(self.embedding_scale is None or self.embedding_scale > 0, "embedding_scale", "it has to be more than 0")
        check(self.heads is None or self.heads >= 1, "heads", "it has to be 1 or more, or none")
        check(
            self.decoder_width % self.decoder_heads == 0,
            "decoder_heads",
            f"it has to divide decoder_width, {self.decoder_width}; {_divisors(self.decoder_width)} do",
        )
        check(
            self.max_seconds is None or self.max_seconds >= self.min_seconds,
            "max_seconds",
            f"it has to be min_seconds ({self.min_seconds:g}) or more",
        )
        check(
            self.temperature is None or ":" in self.mask or takes_temperature(self.mask),
            "temperature",
            f"only mask={' or '.join(filter(takes_temperature, STRATEGIES))} takes a temperature",
        )
        check(self.patience is None or self.patience >= 1, "patience", "it has to be 1 or more, or none")
        check(
            self.patience is None or self.best_by is not None,
            "patience",
            "it goes with best_by, which says what is to get better",
        )
        check(all(weight > 0 for weight in self.mixture), "mixture", "every weight has to be more than 0")
        check(set(self.trackers) <= {"tensorboard", "wandb"}, "trackers", "choose from tensorboard, wandb")

    def overruled(self, *, videos: int, longest_seconds: float) -> list[str]:
        """Sentences on settings that do not do what they say here, because of another setting or of the data.

        Args:
            videos: the windows of an epoch.
            longest_seconds: what `max_segments` consecutive segments last.
        """
        found = []
        if self.batch_size > videos:
            found.append(
                f"batch_size is {self.batch_size} and an epoch has {videos} windows, so no step sees more than these. The learning "
                f"rate stays that of the nominal batch, base_lr x batch_size / 256 = {self.learning_rate:.3g}; with "
                f"batch_size={videos} it is {self.base_lr * videos / 256:.3g}."
            )
        if self.min_seconds > longest_seconds * (1 + 1e-6):
            found.append(
                f"min_seconds is {self.min_seconds:g} and max_segments={self.max_segments} segments last {longest_seconds:g} s: "
                "every window has max_segments segments, or all of its video."
            )
        if self.max_seconds is not None and self.max_seconds > longest_seconds * (1 + 1e-6):
            found.append(
                f"max_seconds is {self.max_seconds:g} and changes nothing: max_segments={self.max_segments} segments last "
                f"{longest_seconds:g} s."
            )
        if self.warmup_epochs >= self.epochs:
            found.append(
                f"warmup_epochs is {self.warmup_epochs:g} and the run has {self.epochs} epochs: the learning rate only rises; set "
                "warmup_epochs below epochs."
            )
        if self.val_fraction and not self.val_windows:
            found.append("val_windows is 0: videos are held out, and none of them is looked at.")
        if self.validate_every > self.epochs:
            found.append(
                f"validate_every is {self.validate_every}: held-out videos are looked at after the last epoch alone."
            )
        return found

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: base_lr x batch_size / 256 (Sec. 4)."""
        return self.base_lr * self.batch_size / 256

    def with_settings(self, settings: Mapping[str, Any] | None) -> Self:
        """This recipe with some values changed; strings are read as the field's type ("none" and "" are None, "a,b" a tuple).

        Raises InputError on an unknown key, naming what comes near, and on a value that cannot be read or is out of range.
        """
        kinds = typing.get_type_hints(type(self))
        changed: dict[str, Any] = {}
        for key, value in (settings or {}).items():
            if key not in kinds or key == "name":
                meant = _OTHER_NAMES.get(str(key).lower().replace("-", "_"))
                near = [meant] if meant else difflib.get_close_matches(key, kinds.keys() - {"name"}, n=3, cutoff=0.5)
                hint = (
                    f"did you mean {' or '.join(near)}?"
                    if near
                    else f"known: {', '.join(sorted(kinds.keys() - {'name'}))}"
                )
                raise InputError(f"There is no setting {key!r}; {hint}")
            changed[key] = _read(key, value, kinds[key])
        return dataclasses.replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` gives the same recipe back."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    def resolved(self, *, dim: int, longest_seconds: float) -> dict[str, Any]:
        """What a run does with embeddings of width `dim`, where `max_segments` segments last `longest_seconds`: no value is None.

        What is off is "none", as it is set; `from_dict` reads it. Raises InputError if `heads` does not fit.
        """
        longest = longest_seconds if self.max_seconds is None else min(self.max_seconds, longest_seconds)
        settled = {
            "heads": self.heads_for(dim),
            "embedding_scale": math.sqrt(dim) if self.embedding_scale is None else self.embedding_scale,
            "compile": "auto" if self.compile is None else self.compile,
            "max_seconds": longest,
            "min_seconds": min(self.min_seconds, longest),
        }
        return {key: "none" if value is None else value for key, value in (self.to_dict() | settled).items()}

    def computing(self) -> dict[str, Any]:
        """The settings that say what is computed, as plain data; the same in every version for the same computation."""
        old = {key: BEFORE_IT_EXISTED.get(key, getattr(Recipe, key)) for key in ADDED}
        return _COUNTED | {
            key: value
            for key, value in self.to_dict().items()
            if key not in FREE | {"name"} and not (key in ADDED and getattr(self, key) == old[key])
        }

    def as_begun(self, written: Mapping[str, Any], settings: Mapping[str, Any] | None) -> Self:
        """This recipe for a run that was begun before some of its settings existed: what the run did then, unless it is set.

        Args:
            written: the run's recipe; empty if there is none. settings: what the user set.
        """
        before = {k: v for k, v in BEFORE_IT_EXISTED.items() if k not in {*FREE, *written, *(settings or {})}}
        return dataclasses.replace(self, **before) if written else self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Also of an older lvmae: a setting that is absent has the value of its time (`BEFORE_IT_EXISTED`).

        Raises InputError on unknown keys and bad values, as `with_settings` does.
        """
        data = BEFORE_IT_EXISTED | dict(data)
        name = str(data.pop("name", "custom"))
        return dataclasses.replace(cls().with_settings(data), name=name)

    def heads_for(self, dim: int) -> int:
        """The encoder's attention heads for embeddings of `dim` numbers.

        Raises InputError if `heads` does not divide `dim`, naming numbers that do.
        """
        if self.heads is None:
            return min((h for h in range(1, dim + 1) if dim % h == 0), key=lambda h: (abs(math.log(dim / h / 64)), h))
        if dim % self.heads:
            raise InputError(
                f"heads={self.heads} does not divide the width of the embeddings, {dim}: set heads to one of "
                f"{_divisors(dim)}, or to none to have it chosen."
            )
        return self.heads


def named(name: str | os.PathLike[str] | Recipe) -> Recipe:
    """The recipe of that name, the one in a run's `recipe.json`, or the one given.

    Raises InputError on an unknown name, and on a file that holds no recipe.
    """
    if isinstance(name, Recipe):
        return name
    if is_file(name):
        return _read_file(Path(name))
    if name not in RECIPES:
        raise InputError(f"There is no recipe {name!r}: choose {', '.join(RECIPES)}, or give a run's recipe.json.")
    return RECIPES[str(name)]


def is_file(name: str | os.PathLike[str] | Recipe) -> bool:
    """Whether a recipe is named by its file."""
    return not isinstance(name, Recipe) and (isinstance(name, os.PathLike) or str(name).endswith(".json"))


def check_trust(name: str | os.PathLike[str] | Recipe, chosen: Recipe, settings: Mapping[str, Any] | None) -> None:
    """Raises UntrustedCodeError where a recipe that was read from a file names code that may not run, `module:...`.

    What the caller's own settings or `Recipe` name is the caller's choice.
    """
    for key in ("mask", "loss"):
        if (
            not isinstance(name, Recipe)
            and is_file(name)
            and ":" in getattr(chosen, key)
            and key not in (settings or {})
        ):
            require_trust(getattr(chosen, key), f"The recipe {os.fspath(name)}")


def _read_file(path: Path) -> Recipe:
    try:
        found = read_object(path, "give the recipe.json of a run")
    except FileNotFoundError:
        raise InputError(f"The recipe {path} is not there.") from None
    held = found.get("recipe", found)
    if not isinstance(held, dict):
        raise InputError(f"{path} holds no recipe; give the recipe.json of a run.")
    try:
        return Recipe.from_dict(held)
    except InputError as error:
        raise InputError(f"The recipe {path} cannot be used: {error}") from None


def _divisors(number: int) -> str:
    found = [h for h in range(1, min(number, 64) + 1) if number % h == 0]
    return ", ".join(map(str, found[-6:]))


def _read(key: str, value: Any, kind: Any) -> Any:
    """One value as the type of its field. Raises InputError."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    off = isinstance(value, str) and value.strip().lower() in _NOTHING | ({"auto"} if bool in options else set())
    if value is None or (off and not (kind is str and value)):  # a word may be "none"
        if types.NoneType in options:
            return None
        if typing.get_origin(kind) is tuple and value is not None:
            return ()
        raise InputError(f"{key} needs {_named(kind)}, not {value!r}.")
    wanted = next(option for option in options if option is not types.NoneType)
    try:
        if typing.get_origin(wanted) is tuple:
            inner = typing.get_args(wanted)[0]
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(_read(key, part.strip() if isinstance(part, str) else part, inner) for part in parts)
        if wanted is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).strip().lower()
            ]
        if wanted is int and (isinstance(value, bool) or (isinstance(value, float) and not value.is_integer())):
            raise ValueError
        if wanted is str and not isinstance(value, str):
            raise ValueError
        result = wanted(value)
        if isinstance(result, float) and not math.isfinite(result):
            raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{key} needs {_named(kind)}, not {value!r}.") from None
    return result


def _named(kind: Any) -> str:
    if kind == bool | None:
        return "true, false or auto"
    if isinstance(kind, types.UnionType):
        return " or ".join(_named(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"values with commas between them, each {_named(typing.get_args(kind)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word", types.NoneType: "none"}[
        kind
    ]


_PAPER = Recipe()

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # Naiman et al.: d 1024 on LanguageBind, encoder 32 x 16 heads, decoder 512 x 8, semantic masking of 50 %.
        _PAPER,
        # The depths of its ablation.
        dataclasses.replace(_PAPER, name="paper-24", layers=24),
        dataclasses.replace(_PAPER, name="paper-16", layers=16),
        # One GPU and thousands of videos.
        Recipe(
            name="base",
            layers=12,
            heads=None,
            embedding_scale=None,  # measured: docs/learning.md
            decoder_width=384,
            decoder_layers=4,
            decoder_heads=6,
            epochs=100,
            warmup_epochs=10.0,
            batch_size=64,
            base_lr=1e-3,
            clip_norm=1.0,
        ),
        # A laptop and tens of videos: small batches, because what counts is the number of steps.
        Recipe(
            name="tiny",
            layers=2,
            heads=None,
            mlp_ratio=2.0,
            embedding_scale=None,
            max_segments=36,  # three minutes; longer videos are represented in overlapping windows
            loss="cosine",
            decoder_width=128,
            decoder_layers=2,
            decoder_heads=4,
            mask="random",
            mask_ratio=0.4,
            epochs=400,
            warmup_epochs=10.0,
            batch_size=16,
            order="shuffled",  # nothing to gain from batches of one size on a CPU, and it learnt more (docs/log.md)
            base_lr=0.016,
            clip_norm=1.0,
            precision="fp32",
            val_fraction=0.15,
            validate_every=5,
            checkpoint_every=500,
            num_workers=0,
        ),
    )
}
