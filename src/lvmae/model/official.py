"""Checkpoints of the authors' code, read and written.

The layout is a `torch.save` of {model, optimizer, epoch, scaler, args}; heads are not in the tensors, only in `args`,
an `argparse.Namespace`. Files are read with torch's restricted unpickler, which is allowed that one class and nothing
else: whatever other object a file carries, it is refused before it is made.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .configuration_lvmae import LVMAEConfig
from .objectives import official_flag, official_name
from .positions import position_table

# Their names and ours; what is not here (norms, attention and MLP inside a block) is called the same.
_OURS = (
    (r"^cls_token$", "lvmae.cls_token"),
    (r"^blocks\.", "lvmae.blocks."),
    (r"^norm\.", "lvmae.norm."),
    (r"^decoder_embed\.", "decoder.embed."),
    (r"^mask_token$", "decoder.mask_token"),
    (r"^decoder_blocks\.", "decoder.blocks."),
    (r"^decoder_norm\.", "decoder.norm."),
    (r"^decoder_pred\.", "decoder.pred."),
)
_THEIRS = tuple((re.escape(ours), theirs.strip("^$").replace("\\.", ".")) for theirs, ours in _OURS)
# What their code computes with, and their file says nothing of.
_HOLDS: dict[str, tuple[Any, ...]] = {
    "embedding_scale": (1,),
    "center": ("none",),
    "layer_norm_eps": (1e-6,),
    "loss": ("mse", "cosine"),
    "long_sequences": ("windows",),
}
_TABLES = ("pos_embed", "decoder_pos_embed")


def read_official_checkpoint(path: str | os.PathLike[str]) -> tuple[LVMAEConfig, dict[str, Tensor]]:
    """The configuration and the weights, under our names, of an official checkpoint.

    Raises:
        FileNotFoundError: no such file. ValueError: not an official checkpoint, or not a safe one.
    """
    name = os.fspath(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            file = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the object {found.group(1)}" if found else "data that is not tensors and plain values"
        raise ValueError(
            f"{name} carries {what}, which is refused; only tensors and argparse.Namespace are read"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{name} is not a readable torch file; it may be cut short") from error
    if not isinstance(file, dict) or not isinstance(file.get("model"), Mapping) or "args" not in file:
        raise ValueError(f"{name} is not an official LV-MAE checkpoint: it should hold model and args")
    weights: dict[str, Tensor] = dict(file["model"])
    args = file["args"]
    settings: dict[str, Any] = vars(args) if isinstance(args, argparse.Namespace) else dict(args)
    try:
        config = _configuration(weights, settings)
        tables = {key: weights.pop(key) for key in _TABLES}
    except KeyError as error:
        raise ValueError(f"{name} is not an official LV-MAE checkpoint: it has no {error.args[0]}") from error
    for key, width in zip(_TABLES, (config.hidden_size, config.decoder_hidden_size), strict=True):
        if not torch.allclose(
            tables[key][0].float(), position_table(config.max_segments, width, torch.device("cpu")), atol=1e-5
        ):
            raise ValueError(
                f"{name} has other positions in {key} than the fixed sin-cos ones, which this model cannot use"
            )
    return config, {_rename(key, _OURS): value for key, value in weights.items()}


def write_official_checkpoint(config: LVMAEConfig, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes weights under our names, with their configuration, as an official checkpoint.

    Raises:
        ValueError: the configuration has something that the layout cannot hold, so that what is read back would be
            another model.
    """
    for name, holds in _HOLDS.items():
        if (value := getattr(config, name)) not in holds:
            raise ValueError(
                f"{name} is {value!r}, which the authors' layout cannot hold ({' or '.join(map(repr, holds))} alone): "
                "what is read back would compute something else; keep this model in its own format"
            )
    kept = {key: value for key, value in state.items() if not key.startswith("objective.")}  # which it has no place for
    weights = {_rename(key, _THEIRS): value.detach().cpu() for key, value in kept.items()}
    for key, width in zip(_TABLES, (config.hidden_size, config.decoder_hidden_size), strict=True):
        weights[key] = position_table(config.max_segments, width, torch.device("cpu"))[None]
    args = argparse.Namespace(
        num_patches=config.max_segments,
        input_size=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        decoder_embed_dim=config.decoder_hidden_size,
        decoder_depth=config.decoder_num_hidden_layers,
        decoder_num_heads=config.decoder_num_attention_heads,
        cos_loss=official_flag(config.loss),
    )
    torch.save({"model": weights, "optimizer": {}, "epoch": 0, "scaler": {}, "args": args}, path)


def _configuration(weights: Mapping[str, Tensor], args: Mapping[str, Any]) -> LVMAEConfig:
    """Sizes from the tensors, heads and loss from the arguments."""

    def depth(prefix: str) -> int:
        return len({key.split(".")[1] for key in weights if key.startswith(prefix)})

    return LVMAEConfig(
        hidden_size=weights["cls_token"].shape[-1],
        num_hidden_layers=depth("blocks."),
        num_attention_heads=args["num_heads"],
        intermediate_size=weights["blocks.0.mlp.fc1.weight"].shape[0],
        decoder_hidden_size=weights["mask_token"].shape[-1],
        decoder_num_hidden_layers=depth("decoder_blocks."),
        decoder_num_attention_heads=args["decoder_num_heads"],
        decoder_intermediate_size=weights["decoder_blocks.0.mlp.fc1.weight"].shape[0],
        max_segments=weights["pos_embed"].shape[1] - 1,
        loss=official_name(args.get("cos_loss", False)),
    )


def _rename(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        renamed, times = re.subn(pattern, replacement, key, count=1)
        if times:
            return renamed
    raise ValueError(f"{key} is no weight of an LV-MAE model")
