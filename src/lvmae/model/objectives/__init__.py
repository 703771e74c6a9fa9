"""Objectives: what is predicted of masked segments. One file each; here, how one is found by its name.

A name is one of `OBJECTIVES`, an entry point of the group `lvmae.objectives`, or `module:Class`. The last one runs code that is
nobody's installed plugin, so it needs `trust_code` wherever the name was read from a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from .objective import FLOORS, Objective, Rows, read_options

if TYPE_CHECKING:
    from ..configuration_lvmae import LVMAEConfig

__all__ = [
    "FLOORS",
    "OBJECTIVES",
    "Objective",
    "Rows",
    "build_objective",
    "check_objective",
    "is_per_row",
    "objective_class",
    "objective_names",
    "official_flag",
    "official_name",
    "read_options",
]

ENTRY_POINTS = "lvmae.objectives"

# To add one: a file here, and a line.
OBJECTIVES = {
    "mse": "mse:MSE",
    "cosine": "cosine:Cosine",
    "contrastive": "contrastive:Contrastive",
    "clusters": "clusters:Clusters",
    "latent": "latent:Latent",
    "residual": "residual:Residual",
}

# The flag `cos_loss` of the authors' code.
_OFFICIAL = {False: "mse", True: "cosine"}


def objective_names() -> list[str]:
    """The objectives that can be named: those here, then those of installed plugins."""
    return [*OBJECTIVES, *sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - set(OBJECTIVES))]


def objective_class(name: str, *, trust_code: bool = False) -> type[Objective]:
    """The class of an objective.

    Raises:
        ValueError: there is none of that name, it cannot be imported, it is no objective, or it is `module:Class` and
            running its code was not allowed.
    """
    check_objective(name)
    if name in OBJECTIVES:
        module, _, attribute = OBJECTIVES[name].partition(":")
        found = getattr(import_module(f".{module}", __name__), attribute)
    else:
        plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if name not in plugins and not trust_code:
            raise ValueError(
                f"the objective {name!r} runs code of the module {name.partition(':')[0]}; allow it with trust_code if you trust "
                "where the name comes from"
            )
        try:
            if name in plugins:
                found = plugins[name].load()
            else:
                module, _, attribute = name.partition(":")
                found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"the objective {name!r} cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ValueError(f"{name!r} is no objective: it is not a subclass of lvmae.model.objectives.Objective")
    return found


def check_objective(name: str) -> None:
    """Raises ValueError if nothing can have that name; imports nothing."""
    module, mark, attribute = name.partition(":")
    if mark and attribute.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return
    if name not in objective_names():
        raise ValueError(f"choose one of {', '.join(objective_names())}, or module:Class for one of your own")


def build_objective(config: LVMAEConfig, *, trust_code: bool = False) -> Objective:
    """The objective of a model's configuration. Raises ValueError as `objective_class` does, and on options it does not take."""
    kind = objective_class(config.loss, trust_code=trust_code)
    options: Mapping[str, Any] = config.loss_options or {}
    try:
        inspect.signature(kind).bind(config, **options)
    except TypeError as error:
        takes = list(inspect.signature(kind).parameters)[1:]
        raise ValueError(
            f"the objective {config.loss!r} cannot be built: {error}; its options are: {', '.join(takes) or 'none'}"
        ) from None
    return kind(config, **options)


def is_per_row(name: str) -> bool:
    """Whether an objective is known to give each row a loss of its own: see `Objective.per_row`. Runs no code of strangers."""
    try:
        return objective_class(name).per_row
    except ValueError:
        return False


def official_flag(name: str) -> bool:
    """The authors' flag `cos_loss` of an objective; theirs has no other than two, and the flag matters in training alone."""
    return name == _OFFICIAL[True]


def official_name(cos_loss: bool) -> str:
    """The objective that the authors' flag `cos_loss` stands for."""
    return _OFFICIAL[bool(cos_loss)]
