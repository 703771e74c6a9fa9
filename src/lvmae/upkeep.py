"""Looking after what lvmae wrote: verify, repair, migrate, and remove videos from it.

Enters: a store, representations or a run, in whatever state. Leaves: what is wrong with it, or what was done. Price: every byte is
read once.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lvmae.errors import InputError, LVMAEError, WorkError
from lvmae.files.json_files import parse_object, read_object
from lvmae.files.urls import is_remote
from lvmae.files.writing import reason, write_bytes, write_json
from lvmae.progress import progress
from lvmae.runs import is_run, read_config
from lvmae.store import (
    TAGS_FILE,
    EmbeddingStore,
    Problem,
    Removal,
    Verification,
    migrate_store,
    remove_videos,
    repair_store,
    verify_store,
)

_RECIPE, _METRICS, _CHECKPOINTS = "recipe.json", "metrics.jsonl", "checkpoints"


def verify(path: str | os.PathLike[str], *, repair: bool = False) -> Verification:
    """Reads every byte of a store, of representations or of a run, and says what is wrong.

    Args:
        path: folder or URL.
        repair: put aside what is damaged. A store stays readable; embedding the same videos again makes those that it lost. Of a
            run, damaged checkpoints are put aside.

    Raises:
        InputError: there is nothing that lvmae made at `path`.
        WorkError: it cannot be repaired.
    """
    if not is_remote(path) and (
        is_run(path) or (Path(path) / _CHECKPOINTS).is_dir() or (Path(path) / _RECIPE).is_file()
    ):
        return _verify_run(Path(path), repair=repair)
    with progress(desc="verify", unit="MB", total=0) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = round(total / 1e6, 1)
            bar.update(round(done / 1e6, 1) - bar.n)

        found = verify_store(path, progress=tell)
    if repair and found.problems:
        repair_store(path, found)
        after = verify_store(path)
        found.problems, found.videos, found.notes = after.problems, after.videos, after.notes
    return found


def _verify_run(run: Path, *, repair: bool) -> Verification:
    from safetensors import SafetensorError

    from lvmae.files.tensors import check_tensors

    found = Verification(str(run), "run")
    weights = [
        path
        for folder in (run, *sorted((run / _CHECKPOINTS).glob("step-*")))
        for path in sorted(folder.glob("*.safetensors"))
    ]
    for path in progress(weights, desc="verify", unit="files"):
        name = path.relative_to(run).as_posix()
        found.files, found.bytes = found.files + 1, found.bytes + path.stat().st_size
        try:
            if not check_tensors(path):
                found.notes.append(f"{name} is of an older version and has no hash: its length was checked")
        except (OSError, SafetensorError, ValueError) as error:
            found.problems.append(Problem(name, f"it is damaged ({reason(error)})"))
    for path in [run / _RECIPE, *sorted((run / _CHECKPOINTS).glob("step-*/state.json"))]:
        if path.exists() or path.name == "state.json":
            found.files += 1
            try:
                parse_object(path.read_bytes())
            except (OSError, ValueError) as error:
                found.problems.append(Problem(path.relative_to(run).as_posix(), f"it is damaged ({reason(error)})"))
    for folder in sorted((run / _CHECKPOINTS).glob("step-*")):
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            if not (folder / name).exists():
                found.problems.append(Problem((folder / name).relative_to(run).as_posix(), "it is lost"))
    if is_run(run):
        try:
            read_config(run)
        except InputError as error:
            found.problems.append(Problem("config.json", str(error)))
    _check_metrics(run / _METRICS, found)
    if repair:
        harmed = {
            problem.file.split("/")[1] for problem in found.problems if problem.file.startswith(f"{_CHECKPOINTS}/")
        }
        for step in sorted(harmed):
            aside = run / "damaged" / step
            aside.parent.mkdir(exist_ok=True)
            (run / _CHECKPOINTS / step).replace(aside)
            found.repaired.append(f"{_CHECKPOINTS}/{step} was put aside, into damaged/")
        found.problems = [problem for problem in found.problems if not problem.file.startswith(f"{_CHECKPOINTS}/")]
    return found


def _check_metrics(path: Path, found: Verification) -> None:
    if not path.exists():
        return
    found.files += 1
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        found.problems.append(Problem(_METRICS, f"it cannot be read ({reason(error)})"))
        return
    for number, line in enumerate(lines[:-1], 1):  # the last may be half a line of a training that is under way
        try:
            parse_object(line)
        except ValueError:
            found.problems.append(Problem(_METRICS, f"line {number} is damaged"))
            return


def migrate(path: str | os.PathLike[str]) -> str:
    """Adds what older versions did not write, and says what that was. Nothing that is there changes its meaning.

    A store gets the index of its shards, with hashes of their content. A run gets the present fingerprints of its stores, where
    they are still as they were.

    Raises:
        InputError: there is no store and no run at `path`.
        WorkError: something is damaged already.
    """
    recipe = Path(os.fspath(path)) / _RECIPE
    if not is_remote(path) and (is_run(path) or recipe.is_file()):
        return _migrate_run(recipe)
    added = migrate_store(path)
    if added:
        return f"{added} shards have hashes now; the store's fingerprint covers all content: {EmbeddingStore(path).fingerprint}"
    return "nothing to do: every shard has its hash"


def _migrate_run(recipe: Path) -> str:
    try:
        described = read_object(recipe)
        stores: list[dict[str, Any]] = described["stores"]
        changed = 0
        for store in stores:
            try:
                opened = EmbeddingStore(store["path"])
                if store["fingerprint"] != opened.fingerprint and opened.has_fingerprint(store["fingerprint"]):
                    store["fingerprint"] = opened.fingerprint
                    changed += 1
            except LVMAEError:
                continue  # moved or gone: its old fingerprint matches for good
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{recipe} cannot be read ({reason(error)}); restore it") from None
    if changed:
        write_json(recipe, described)
    return f"{changed} of {len(stores)} stores have their present fingerprint now"


def remove(
    store: str | os.PathLike[str], ids: Sequence[str], *, captions: Iterable[str | os.PathLike[str]] = ()
) -> Removal:
    """Removes videos from a store for good, their rows from caption files, and their tags from the table beside the store.

    Embeddings, failures and cached copies are gone from the disk when it returns; interrupted, the same call finishes it. A removed
    video stays out when the same films are embedded again, until it is admitted. Representations of the store tell that they are
    stale, and `represent` takes the video out of them; runs keep the list of what they were trained on.

    Raises:
        InputError: an id is not in the store, or a caption file or the table of tags is no CSV.
        WorkError: a shard is damaged, or the disk refuses it.
    """
    done = remove_videos(store, ids)
    tables = [Path(path) for path in captions]
    if not is_remote(store):
        tags = Path(store) / TAGS_FILE
        tables += [tags] if tags.exists() and tags.read_bytes().strip() else []
    for path in tables:
        _drop_rows(path, set(ids))
    return done


def _drop_rows(path: Path, ids: set[str]) -> None:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV ({reason(error)})") from None
    names = [name.strip().lower() for name in rows[0]] if rows else []
    column = next((names.index(name) for name in ("video", "id") if name in names), None)
    if column is None:
        raise InputError(f"{path} has no column video")
    kept = [rows[0], *(row for row in rows[1:] if len(row) <= column or row[column] not in ids)]
    if len(kept) < len(rows):
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\n").writerows(kept)
        write_bytes(path, out.getvalue().encode())
