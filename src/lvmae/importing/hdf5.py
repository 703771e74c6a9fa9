"""An HDF5 file -> its data sets by name. Links are followed by name, inside the file's folder and no further.

Raw data in other files and virtual data sets are refused: they can hold any file that this process can read.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import InputError
from lvmae.importing.arrays import check_claim, sentence

_MOST_LINKS = 40  # that lead from one to the next

Found = tuple[str, str, Callable[[], np.ndarray], Callable[[], tuple[int, ...]] | None]


def data_sets(path: Path, key: str | None, stack: contextlib.ExitStack) -> Iterator[Found]:
    """(id, name, how to read it, its shape) of every data set, or with `key` of those of that name, under the group's name.

    The files stay open until `stack` closes them.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError("HDF5 files need h5py; install it with: pip install 'lvmae[hdf5]'") from error
    try:
        file = stack.enter_context(h5py.File(path, "r"))
    except OSError as error:
        raise InputError(f"{path} cannot be read as HDF5: {sentence(error)}") from error
    tree = _Tree(path, file, stack)
    for name in tree.names():
        parent, _, last = name.rpartition("/")
        if key is None or last == key:
            id = name if key is None else parent or last
            yield id, name, partial(tree.read, name), partial(tree.shape, name)


class _Tree:
    """The names of a file and what they mean, whatever kind of link they are."""

    def __init__(self, path: Path, file: Any, stack: contextlib.ExitStack) -> None:
        self.path, self.file, self.stack = path, file, stack
        self.folder = path.resolve().parent
        self.others: dict[Path, Any] = {path.resolve(): file}

    def names(self) -> Iterator[str]:
        """Every name that is a data set, or that leads nowhere; a group that holds itself is entered once."""
        import h5py

        def walk(group: Any, prefix: str, above: tuple[Any, ...]) -> Iterator[str]:
            for name in group:
                full = f"{prefix}{name}"
                try:
                    item = self.resolve(group, name)
                except (ValueError, OSError, KeyError):
                    yield full  # reading it says why
                    continue
                if isinstance(item, h5py.Group):
                    if item.id not in above:
                        yield from walk(item, f"{full}/", (*above, item.id))
                elif isinstance(item, h5py.Dataset):
                    yield full

        yield from walk(self.file["/"], "", (self.file["/"].id,))

    def resolve(self, group: Any, path: str, hops: int = 0) -> Any:
        """What a path, from a group on, leads to. ValueError for one that leads out of the folder, or nowhere."""
        import h5py

        item = group.file["/"] if path.startswith("/") else group
        for part in [part for part in path.split("/") if part not in ("", ".")]:
            if hops > _MOST_LINKS:
                raise ValueError("it is a link that leads in a circle")
            link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
            if link is None:
                raise ValueError(f"it is a link to '{path}', which is not there")
            if isinstance(link, h5py.SoftLink):
                item = self.resolve(item, link.path, hops + 1)
            elif isinstance(link, h5py.ExternalLink):
                item = self.resolve(self.other(item, link.filename), f"/{link.path.lstrip('/')}", hops + 1)
            else:
                item = item[part]
        return item

    def other(self, group: Any, name: str) -> Any:
        """A file that a link names, opened once. ValueError if it is not in the folder."""
        import h5py

        target = (Path(group.file.filename).resolve().parent / name).resolve()
        if posixpath.isabs(name) or not target.is_relative_to(self.folder):
            raise ValueError(f"it is a link to {name}, outside of {self.folder}; nothing from there is read")
        if target not in self.others:
            try:
                self.others[target] = self.stack.enter_context(h5py.File(target, "r"))
            except OSError as error:
                raise ValueError(f"it is a link to {name}, which cannot be read: {sentence(error)}") from None
        return self.others[target]

    def data_set(self, name: str) -> Any:
        """The data set of a name, if all of its data is in files that may be read."""
        item = self.resolve(self.file, name)
        if item.is_virtual:
            raise ValueError(
                "it is a virtual data set, made of other files, which are not read; copy its values into one"
            )
        if item.external:
            raise ValueError(
                "its values lie in another file (external storage), which is not read; copy them into this one"
            )
        if item.dtype.hasobject:
            raise ValueError(f"it holds {item.dtype}, not real numbers")
        check_claim(item.shape, item.dtype.itemsize, item.id.get_storage_size(), "the data set")
        return item

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(side) for side in self.data_set(name).shape)

    def read(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self.data_set(name)[()])
        except (KeyError, RuntimeError) as error:
            raise ValueError(sentence(error)) from None
