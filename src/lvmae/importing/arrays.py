"""One file -> its arrays, without executing anything and without taking more memory than the file can honestly ask for."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lvmae.errors import LVMAEError
from lvmae.files.table_files import read_text
from lvmae.store import to_half

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")
TEXT_SUFFIXES = (".csv", ".tsv")
_MOST_BYTES = 4 << 30  # of one video: a day of seconds, 4096 wide, in float64 has less
_FREE_BYTES = 256 << 20  # a claim below this is never too much
_MOST_RATIO = 100  # of claimed bytes to bytes in the file, above that; features do not shrink so far
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def sentence(error: BaseException) -> str:
    """The first line of an error, which is what fits in a row of failures."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_claim(shape: tuple[int, ...], itemsize: int, held: int, where: str = "the array") -> None:
    """Raises ValueError if a shape claims more than `held` bytes of a file can be."""
    values = math.prod(int(side) for side in shape)
    if values * itemsize > min(_MOST_BYTES, max(_FREE_BYTES, _MOST_RATIO * held)):
        raise ValueError(
            f"{where} claims a shape of {tuple(shape)}, {values * itemsize / 2**30:,.1f} GiB, in {held / 2**20:,.1f} MiB of the "
            "file; it is not read"
        )


# --- files -------------------------------------------------------------------------------------------------------------------


def read_arrays(path: Path) -> dict[str, Any]:
    """Every array of a file by its name, "" for one without. ValueError or OSError with the reason why not."""
    match path.suffix.lower():
        case ".npy":
            return {"": _read_npy(path)}
        case ".npz":
            return _read_npz(path)
        case ".csv" | ".tsv":
            return {"": _read_csv(path)}
        case _:
            return _read_torch(path)


def npy_shape(path: Path) -> tuple[int, ...]:
    """The shape that an .npy claims, after a check that the file can hold it."""
    with path.open("rb") as file:
        shape, dtype = _npy_header(file)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError(f"it claims a shape of {shape} and ends long before that; it is cut off or damaged")
        check_claim(shape, dtype.itemsize, path.stat().st_size)
    return shape


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects (dtype object), which are not loaded because they can run code (allow_pickle); save it as "
            "plain numbers: numpy.save(path, numpy.stack(list(array)).astype('float32'))"
        )
    return tuple(int(side) for side in shape), dtype


def _read_npy(path: Path) -> np.ndarray:
    npy_shape(path)
    return np.asarray(np.load(path, allow_pickle=False))


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    shape, dtype = _npy_header(io.BytesIO(file.read(1 << 16)))
                check_claim(shape, dtype.itemsize, member.compress_size, f"the array '{member.filename}'")
                check_claim((member.file_size,), 1, member.compress_size, f"the array '{member.filename}'")
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(
                        f"the array '{member.filename}' claims a shape of {shape} and ends long before that"
                    )
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError) as error:
        raise ValueError(f"it is no archive of arrays, or damaged ({sentence(error)[:120]})") from None


def _read_csv(path: Path) -> np.ndarray:
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    except LVMAEError as error:
        raise ValueError(str(error)) from None
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = [[field.strip() for field in line.split(delimiter)] for line in lines]
    if rows and not all(map(_is_number, rows[0])):
        rows = rows[1:]  # a header
    if len({len(row) for row in rows}) > 1:
        raise ValueError("its lines have different numbers of values")
    try:
        return np.array(rows, np.float64).reshape(len(rows), -1)
    except ValueError:
        raise ValueError("it holds text where numbers are expected: a line a segment, a number a dimension") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_torch(path: Path) -> dict[str, Any]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix.lower() == ".safetensors":
            loaded: Any = load_file(path)
        else:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for member in archive.infolist():
                        check_claim((member.file_size,), 1, member.compress_size, f"its part '{member.filename}'")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        AttributeError,
    ) as error:
        raise ValueError(f"the file holds more than tensors, or is damaged ({sentence(error)[:120]})") from error
    if isinstance(loaded, torch.Tensor):
        return {"": loaded}
    if isinstance(loaded, dict):
        return {str(name): value for name, value in _flat(loaded).items()}
    if isinstance(loaded, list | tuple) and loaded and all(isinstance(one, torch.Tensor) for one in loaded):
        raise ValueError("the file holds a list of tensors, which have no names; save a dictionary from ids to tensors")
    raise ValueError(f"the file holds a {type(loaded).__name__}, not a tensor or a dictionary of tensors")


def _flat(loaded: Mapping[Any, Any], depth: int = 3) -> dict[str, Any]:
    """The tensors of dictionaries in dictionaries, by names joined with a slash."""
    import torch

    found: dict[str, Any] = {}
    for name, value in loaded.items():
        if isinstance(value, torch.Tensor):
            found[str(name)] = value
        elif isinstance(value, dict) and depth:
            found |= {f"{name}/{inner}": tensor for inner, tensor in _flat(value, depth - 1).items()}
    return found


def as_array(value: Any) -> np.ndarray:
    """A tensor or array as an array, bfloat16 as float32. ValueError for what is not dense numbers."""
    if isinstance(value, np.ndarray):
        return value
    import torch

    tensor = value.detach()
    if tensor.layout is not torch.strided:
        raise ValueError("it is a sparse tensor; save it with .to_dense()")
    if tensor.is_quantized:
        raise ValueError("it is a quantized tensor; save it with .dequantize()")
    if tensor.is_meta:
        raise ValueError("it is a tensor without data (device meta)")
    check_claim(tuple(tensor.shape), tensor.element_size(), tensor.untyped_storage().nbytes())
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).resolve_conj().numpy())


def the_array(arrays: Mapping[str, Any], key: str | None) -> np.ndarray:
    """The array of this name, or the one that can be meant."""
    if key is not None:
        if "" in arrays:
            raise ValueError(f"the file holds one array, which has no name; '{key}' chooses nothing")
        if key not in arrays:
            raise ValueError(f"the file has no array '{key}'; it has {', '.join(sorted(arrays)) or 'none'}")
        return as_array(arrays[key])
    if len(arrays) == 1:
        return as_array(next(iter(arrays.values())))
    flat = [name for name, array in arrays.items() if array.ndim == 2]
    if len(flat) != 1:
        raise ValueError(
            f"the file has {len(flat)} arrays of two dimensions ({', '.join(sorted(flat))}); name one with `key`"
        )
    return as_array(arrays[flat[0]])


# --- what an array is --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What is known about how the arrays lie: whether they are turned, and how wide an embedding is (0: not known)."""

    transpose: bool = False
    dim: int = 0

    def rows(self, array: np.ndarray) -> np.ndarray:
        """The array as (L, D), whatever is in it. ValueError if it is not of this form."""
        shape = array.shape
        while array.ndim > 2 and 1 in array.shape:
            # (T, D, 1, 1) is pooled over space, (1, T, D) a batch of one.
            axis = array.ndim - 1 if array.shape[-1] == 1 else array.shape.index(1)
            array = array.squeeze(axis)
        if array.ndim > 2:
            raise ValueError(
                f"the array has shape {shape}, not (segments, width); average it over the other axes first"
            )
        if array.ndim < 2:
            raise ValueError(
                f"the array has shape {shape}, not (segments, width)"
                + (
                    "; where each file is one segment, import the table that lists each video's files"
                    if array.ndim
                    else ""
                )
            )
        return array.T if self.transpose else array

    def checked(self, array: np.ndarray) -> np.ndarray:
        """The array as float16 (L, D); ValueError with the reason a store cannot hold it."""
        array = self.rows(array)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"the array holds {array.dtype}, not real numbers")
        length, width = array.shape
        if length == 0 or width == 0:
            raise ValueError(f"the array is empty, of shape {array.shape}")
        if self.dim and width != self.dim:
            turned = f"; it has {length} rows, so it looks turned: import it transposed" if length == self.dim else ""
            raise ValueError(f"the embeddings are {width} wide where the store's are {self.dim}{turned}")
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} of {length} segments hold NaN or infinity (the first is {int(bad.argmax())})"
            )
        if np.abs(array).max() > _FLOAT16_MAX:
            raise ValueError(
                f"the values exceed {_FLOAT16_MAX:.0f}, the most a half-precision store holds; scale them down"
            )
        try:
            half = to_half(array)
        except ValueError as error:
            raise ValueError(f"the values {error}") from None
        zero: np.ndarray = ~np.any(half, axis=1)
        if zero.all():
            raise ValueError(f"all of its {length} segments are zero in half precision")
        half = half[: length - int(zero[::-1].argmin())]  # zeros at the end fill a batch up
        zero = zero[: len(half)]
        if zero.any():
            raise ValueError(
                f"{int(zero.sum())} of {length} segments are zero in half precision (the first is {int(zero.argmax())})"
            )
        return half
