"""Which masks there are, and how one is found by its name. Importing this imports no mask: help texts list names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from lvmae.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Mask = Callable[..., np.ndarray]
    """(L, D) unit vectors, the ratio and a generator -> (L,) bool; `temperature` by name, if it has one."""

ENTRY_POINTS = "lvmae.masks"

# To add one: a function, in `masking` or a file of its own, and a line.
STRATEGIES = {
    "random": "lvmae.sequences.masking:random_mask",
    "semantic": "lvmae.sequences.masking:semantic_mask",
    "redundant": "lvmae.sequences.masking:redundant_mask",
    "blocks": "lvmae.sequences.masking:blocks_mask",
}

# Names of older versions, which still work.
_OLDER = {"semantic-sampled": "lvmae.sequences.masking:sampled_semantic_mask"}


def mask_names() -> list[str]:
    """Returns the names of all masks: built-in ones, then those of installed plugins."""
    return [*STRATEGIES, *sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - set(STRATEGIES))]


def is_mask(name: str) -> bool:
    """Whether a mask can have that name: one that is known, or of the form module:function. Imports nothing."""
    module, mark, attribute = name.partition(":")
    own = mark and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))
    return bool(own) or name in _OLDER or name in mask_names()


def check_mask(name: str) -> None:
    """Raises InputError if no mask can have that name."""
    if not is_mask(name):
        raise InputError(
            f"there is no mask {name!r}; choose one of {', '.join(mask_names())}, or module:function for your own"
        )


@functools.lru_cache(maxsize=64)
def mask_function(name: str) -> Mask:
    """The function of that name: of `STRATEGIES`, of a plugin in the entry points `lvmae.masks`, or `module:function`.

    The last imports code: whoever has the name from a file asks the user first.

    Raises:
        InputError: there is none, or it cannot be imported.
    """
    check_mask(name)
    plugins = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    module, _, attribute = ({**plugins, **_OLDER, **STRATEGIES}.get(name, name)).partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the mask {name!r} cannot be imported: {error}") from None
    if not callable(found):
        raise InputError(f"the mask {name!r} is no function of embeddings (L, D), a ratio and a generator")
    return cast("Mask", found)


def takes_temperature(name: str) -> bool:
    """Whether a mask has a temperature."""
    import inspect

    return "temperature" in inspect.signature(mask_function(name)).parameters
