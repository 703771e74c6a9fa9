"""Frames that decoders make where PyAV is missing: what is left of decoding is writing them, so rates are upper bounds.

Decoding processes import this module with the rule of their job, and then make frames in place of decoding.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

STAND_IN = """import sys, made_frames
sys.meta_path.append(made_frames.Finder())
__getattr__ = made_frames.anything
"""


def stand_in_for_pyav(folder: Path) -> None:
    """Lets this process, and those that it starts, import what names PyAV's types, though it is not there."""
    (folder / "av").mkdir()
    (folder / "av/__init__.py").write_text(STAND_IN)
    sys.path.insert(0, str(folder))


def anything(name: str) -> Any:
    """A class of that name, whose attributes are classes too; the one number that is computed with as it is."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "time_base":
        return 1_000_000
    return type(name, (_Anything,), {})


class _Kind(type):
    def __getattr__(cls, name: str) -> Any:
        return anything(name)

    def __int__(cls) -> int:  # some are members of enumerations
        return 0


class _Anything(Exception, metaclass=_Kind):
    def __init__(self, *_: Any) -> None: ...


class Finder:
    """Finds PyAV's modules."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        loader: Any = Finder()
        return ModuleSpec(name, loader, is_package=True) if name.startswith("av.") else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = anything  # type: ignore[method-assign]


@dataclass(frozen=True)
class MadeFrames:
    """A rule of so many segments a file; a process that receives it makes frames."""

    segments: int
    looks: ClassVar[bool] = False
    description: ClassVar[dict[str, Any]] = {"kind": "made"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "segments", state["segments"])
        from lvmae.embedding import two_stages

        two_stages.decode_files = make_files  # type: ignore[attr-defined]


def make_files(files: Iterable[Any], frames: Any, job: Any) -> Iterator[tuple[Any, Any]]:
    """What `decode_files` yields, of noise."""
    from lvmae.embedding.pipeline import Decoded, Ended, Laid
    from lvmae.files.identity import UNKNOWN

    noise = np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8)
    for file in files:
        starts = np.arange(job.rule.segments, dtype=np.float64)
        yield file, Laid(float(job.rule.segments), starts, starts + 1, UNKNOWN)
        for place in range(job.rule.segments):
            yield file, Decoded(place, noise)
        yield file, Ended(job.rule.segments)
