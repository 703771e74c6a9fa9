"""The benchmarks: a family of tasks is one file here, or somebody else's, by entry point (`lvmae.tasks`) or `module:Class`.

`load_task("lvu/director", folder)`; `family_of("lvu").tasks()`.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lvmae.errors import InputError
from lvmae.evaluation.task import Task
from lvmae.evaluation.tasks.family import AVERAGE, TaskFamily

ENTRY_POINTS = "lvmae.tasks"
_BUILT_IN = {
    "lvu": "lvmae.evaluation.tasks.lvu:LVU",
    "breakfast": "lvmae.evaluation.tasks.breakfast:Breakfast",
    "coin": "lvmae.evaluation.tasks.coin:COIN",
}

__all__ = ["AVERAGE", "ENTRY_POINTS", "TaskFamily", "family_of", "load_task", "task_names"]


def family_of(name: str) -> TaskFamily:
    """Returns a family by its name or that of a task: `lvu`, `lvu/director`, `module:Class`, `module:Class/part`.

    Raises:
        InputError: there is none, or what there is is no `TaskFamily`.
    """
    family, _, _ = name.partition("/")
    target = _targets().get(family, family if ":" in family else None)
    if target is None:
        raise InputError(
            f"there is no task '{name}'; the tasks are {', '.join(task_names())}, or your own module:Class"
        )
    return _built(target)


def load_task(name: str, annotations: str | Path) -> Task:
    """Reads a task from the annotation files in the folder `annotations`, or in its family's subfolder.

    Raises:
        InputError: for an unknown task, a missing file, or one that is not in the form it is distributed in.
    """
    family, part = family_of(name), name.partition("/")[2]
    if part not in (family.parts or ("",)):
        raise InputError(f"there is no task '{name}'; the tasks are {', '.join(_names_of(name.partition('/')[0]))}")
    key = part or family.name
    published = {
        model: (family.published_probes.get(model, ""), figures[key])
        for model, figures in family.published.items()
        if key in figures
    }
    return replace(family.read(part, Path(annotations)), published=published)


def task_names() -> tuple[str, ...]:
    """Returns every task name that needs no module."""
    return tuple(name for family in _targets() for name in _names_of(family))


def _names_of(family: str) -> tuple[str, ...]:
    return tuple(f"{family}/{part}" for part in family_of(family).parts) or (family,)


def _targets() -> dict[str, str]:
    """Name -> module:Class; a name of ours is ours, whatever else is installed."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | _BUILT_IN


@cache
def _built(target: str) -> TaskFamily:
    module, _, attribute = target.partition(":")
    try:
        found: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the task family '{target}' cannot be imported: {error}") from None
    if not (inspect.isclass(found) and issubclass(found, TaskFamily)):
        raise InputError(
            f"'{target}' is no family of tasks: it is not a class made from lvmae.evaluation.tasks.TaskFamily"
        )
    return found()
