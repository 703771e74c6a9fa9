"""A run on disk: found, loaded, told apart from others, and checked against a store. Every command that uses a run does it here."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lvmae.errors import InputError, WorkError
from lvmae.files.json_files import read_object
from lvmae.files.writing import reason, replacing
from lvmae.trust import require_trust

if TYPE_CHECKING:
    from lvmae.model import LVMAEForPreTraining, LVMAEModel
    from lvmae.store import EmbeddingStore

CONFIG = "config.json"
SPLIT_FILE = "split.csv"  # id, split, store: a line a video, `split` one of these words
TRAIN, HELD_OUT, TOO_SHORT, EXCLUDED = "train", "held_out", "too_short", "excluded"


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether there is a model's configuration at `path`."""
    return (Path(path) / CONFIG).is_file()


def find_run(path: str | os.PathLike[str]) -> Path:
    """The folder of a run with its weights.

    Raises:
        InputError: there is no model there, or it is not one of ours.
    """
    folder = Path(path)
    if not is_run(folder) or not _weights(folder):
        checkpoints = sorted((folder / "checkpoints").glob("step-*"))
        if checkpoints:
            raise InputError(
                f"{path} is a run that is not finished; run its command again, or give the checkpoint {checkpoints[-1]}"
            )
        raise InputError(
            f"{path} is not a run: it has no config.json and model.safetensors; make one with `lvmae pretrain`"
        )
    read_config(folder)
    return folder


def read_config(path: str | Path) -> dict[str, Any]:
    """What `config.json` of a run says. Raises InputError if it cannot be read or is not of an LV-MAE model."""
    try:
        config = read_object(Path(path) / CONFIG, "restore it, or train the run again")
    except FileNotFoundError:
        raise InputError(f"{path} has no {CONFIG}: restore it, or train the run again") from None
    kind = config.get("model_type")
    if kind != "lvmae":
        raise InputError(f"{path} holds a model of type {kind!r}, not an LV-MAE run")
    return config


def read_split(run: str | os.PathLike[str]) -> dict[str, str] | None:
    """id -> its part in a run, "train" where any store's video of that id was trained on; None for runs that did not write it.

    Raises InputError if the file is damaged.
    """
    from lvmae.files.table_files import cell_text, read_table

    path = Path(run) / SPLIT_FILE
    if not path.is_file():
        return None
    found: dict[str, str] = {}
    for row in read_table(path).rows:
        identity, part = cell_text(row.values.get("id")), cell_text(row.values.get("split"))
        if found.get(identity) != TRAIN:
            found[identity] = part
    return found


def run_fingerprint(run: str | Path) -> str:
    """A hash of a run's weights and configuration: two runs with the same one give the same representations.

    Raises:
        InputError: if there is no model in `run`.
    """
    folder = find_run(run)
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for path in _weights(folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def count_parameters(run: str | Path) -> int | None:
    """Numbers in a run's weights; None if there are none."""
    from safetensors import safe_open

    count = 0
    for path in _weights(Path(run)):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                count += size
    return count or None


def load_run_encoder(run: str | Path) -> LVMAEModel:
    """The encoder of a run, for inference, on the CPU and in float32.

    Raises:
        InputError: if there is no model in `run`, or it is not one of ours.
    """
    from lvmae.model import LVMAEModel

    return cast("LVMAEModel", _load(LVMAEModel, run))


def load_run_autoencoder(run: str | Path) -> LVMAEForPreTraining:
    """Encoder, decoder and objective of a run, for inference, on the CPU and in float32.

    Raises:
        InputError: if there is no model in `run`, it is not one of ours, or it names an objective as module:Class whose
            code may not run.
    """
    from lvmae.model import LVMAEForPreTraining

    loss = str(read_config(find_run(run)).get("loss"))
    if ":" in loss:
        require_trust(loss, f"The run {run}")
    return cast("LVMAEForPreTraining", _load(LVMAEForPreTraining, run, trust_code=True))


def check_space(run: str | Path, config: Any, store: EmbeddingStore) -> None:
    """Raises InputError if `store` is not of the kind, space and width that the run was trained on."""
    from lvmae.store import EMBEDDINGS

    if store.kind != EMBEDDINGS:
        raise InputError(f"{store.path} holds {store.kind}; give the store of embeddings that they were made from")
    if config.space_id and config.space_id != store.space_id:
        raise InputError(
            f"{run} was trained on the space {config.space_id} and {store.path} is of {store.space_id}; "
            "embed the videos with the encoder of the run, or train a run on this store"
        )
    rule = getattr(config, "segments", None)
    if rule and store.manifest.segments and rule != store.manifest.segments:
        raise InputError(
            f"{run} was trained on segments of another rule ({_rule(rule)}) than those of {store.path} "
            f"({_rule(store.manifest.segments)}): embed the videos by the run's rule, or train a run on this store"
        )
    if config.hidden_size != store.dim:  # of an imported checkpoint only the width is known
        raise InputError(
            f"{run} takes embeddings {config.hidden_size} wide and those of {store.path} are {store.dim} wide"
        )


def import_checkpoint(
    checkpoint: str | os.PathLike[str], out: str | os.PathLike[str], *, store: str | Path | EmbeddingStore | None = None
) -> Path:
    """Makes a run of a checkpoint of the authors' code; the folder.

    Args:
        checkpoint: the `.pth` file. Nothing in it is executed.
        out: a folder that does not exist yet, or an empty one.
        store: embeddings of the space that the model was trained on, which the run then records.

    Raises:
        InputError: the file is none of theirs, the store has another width, or `out` holds something.
        WorkError: the disk refuses the run.
    """
    from lvmae.model import LVMAEForPreTraining

    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something already; name another folder for the run")
    try:
        model = LVMAEForPreTraining.from_official_checkpoint(checkpoint)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {os.fspath(checkpoint)}") from None
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"the checkpoint cannot be read: {error}") from None
    if store is not None:
        from lvmae.store import EmbeddingStore

        known = EmbeddingStore.open(store)
        check_space(os.fspath(checkpoint), model.config, known)
        manifest = known.manifest
        model.config.space_id = manifest.space_id
        model.config.segments, model.config.encoder = dict(manifest.segments), dict(manifest.encoder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as beside:
            model.save_pretrained(beside)
    except OSError as error:
        raise WorkError(f"{folder} could not be written: {error.strerror or error}") from None
    return find_run(folder)


def export_checkpoint(run: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Writes a run's model as a checkpoint of the authors' code, replacing the file in one step; the file.

    Raises:
        InputError: there is no run, or its model has something that their layout cannot hold.
        WorkError: the disk refuses the file.
    """
    model = load_run_autoencoder(Path(run))
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as beside:
            model.to_official_checkpoint(beside)
    except ValueError as error:
        raise InputError(f"{os.fspath(run)} cannot be written as an official checkpoint: {error}") from None
    except OSError as error:
        raise WorkError(f"{os.fspath(out)} could not be written: {error.strerror or error}") from None
    return Path(out)


def _rule(segments: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in segments.items())


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError

    from lvmae.files.tensors import check_tensors

    for path in _weights(folder):
        with contextlib.suppress(OSError, SafetensorError):  # whoever loads it says so
            try:
                check_tensors(path)
            except ValueError as error:
                raise WorkError(f"{path} is damaged: {error}; restore it, or train the run again") from None


def _load(kind: Any, run: str | Path, **options: Any) -> Any:
    import torch

    folder = find_run(run)
    _check_weights(folder)
    try:
        model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    except InputError:
        raise
    except Exception as error:  # whatever transformers makes of an odd configuration
        raise InputError(f"the model in {run} cannot be loaded: {reason(error)}") from error
    if report["missing_keys"]:  # which transformers fills with random values
        some = sorted(report["missing_keys"])[0]
        what = "LV-MAE encoder" if kind.__name__ == "LVMAEModel" else "whole LV-MAE model"
        raise InputError(f"{run} holds no {what}: its weights lack {some}; give the folder `lvmae pretrain` wrote")
    return model.eval()
