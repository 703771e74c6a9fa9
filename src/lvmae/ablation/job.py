"""An ablation, run: pretrain -> represent -> probe for every cell of a grid, each of them once.

In: stores, labels, axes. Out, in one folder:

    results.parquet        a row for each cell and probe with every setting and figure, and one for each cell that failed
    table.md, table.tex    means over seeds, the best of each probe marked
    figures/AXIS.png, .svg accuracy against each axis
    cells/CELL/            run, representations and result of one cell
    raw/STORE.json         the raw embeddings of each labelled store, probed alike

The same call resumes after a stop or a crash: it reads finished cells, resumes the one that was begun from its last
checkpoint, and tries failed ones again. A larger grid in the same folder keeps the cells it shares; other labels
or probes keep the runs and probe them again. Price: that of its pre-trainings, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lvmae.ablation.cost import cost
from lvmae.ablation.figures import draw_figures
from lvmae.ablation.grid import STORE, Cell, Grid
from lvmae.ablation.results import DONE, FAILED, columns, groups, settings_of
from lvmae.ablation.tables import latex, markdown, plan_text
from lvmae.errors import InputError, LVMAEError, WorkError
from lvmae.evaluation import ProbeSettings, ProbeTable, Task, load_labels, probe
from lvmae.evaluation.features import LEARNT, RAW
from lvmae.evaluation.task import found_in
from lvmae.files.locks import Lock
from lvmae.files.tables import write_parquet_rows
from lvmae.files.writing import write_json, write_text
from lvmae.pretraining import Stopped, pretrain, read_metrics
from lvmae.process import own_state
from lvmae.progress import progress
from lvmae.recipes import Recipe
from lvmae.representations import represent
from lvmae.runs import run_fingerprint
from lvmae.store import EmbeddingStore

log = logging.getLogger(__name__)

_PROBES = ("linear", "knn", "attentive", "linear-standardized")  # those that learn from frozen features


@dataclass(frozen=True)
class Ablation:
    """The results of an ablation. `rows` are the rows of `results.parquet`, in the order of the grid."""

    path: Path
    grid: Grid
    rows: tuple[dict[str, Any], ...]

    @property
    def failed(self) -> dict[str, str]:
        """Returns the failed cells, each with its reason."""
        return {row["cell"]: row["reason"] for row in self.rows if row["status"] == FAILED}

    def to_markdown(self) -> str:
        return markdown(groups(self.grid, self.rows))

    def to_latex(self) -> str:
        return latex(groups(self.grid, self.rows))


@own_state()
def ablate(
    stores: Mapping[str, str | Path | EmbeddingStore],
    labels: str | Path | Task,
    out: str | Path,
    *,
    grid: Mapping[str, Sequence[Any]],
    on: Mapping[str, str | Path | EmbeddingStore] | None = None,
    recipe: str | Recipe = "base",
    settings: Mapping[str, Any] | None = None,
    raw: bool = False,
    probes: Sequence[str] = ("linear", "attentive"),
    seeds: int = 5,
    probe_settings: ProbeSettings | Mapping[str, Any] | None = None,
) -> Ablation:
    """Runs every unfinished cell of a grid, and writes the results of all cells.

    Args:
        stores: name -> store of embeddings to pre-train on; several are an axis.
        labels: a label file, or a `Task`.
        out: the folder of the ablation, new or one to resume.
        grid: axis -> values, see `lvmae.ablation.grid`; `seed` repeats each pre-training.
        on: name -> the store of labelled videos to represent and probe, by the same names; None takes `stores`.
        recipe, settings: what all cells have in common.
        raw: probe the stores' raw embeddings too, once each.
        probes, seeds, probe_settings: as `lvmae.evaluation.probe` takes them.

    Raises:
        InputError: a grid, stores or labels that do not go together; another process is at work in `out`.
        Stopped: SIGINT or SIGTERM; the next call resumes the cell that was running.
    """
    job = _Job(
        Path(out),
        Grid.of(stores, grid, on=on, recipe=recipe, settings=settings),
        labels,
        probes,
        seeds,
        _settled(probe_settings),
    )
    return job.run(raw=raw)


def plan(
    stores: Mapping[str, str | Path | EmbeddingStore],
    labels: str | Path | Task,
    out: str | Path,
    *,
    grid: Mapping[str, Sequence[Any]],
    on: Mapping[str, str | Path | EmbeddingStore] | None = None,
    recipe: str | Recipe = "base",
    settings: Mapping[str, Any] | None = None,
    probes: Sequence[str] = ("linear", "attentive"),
    seeds: int = 5,
    probe_settings: ProbeSettings | Mapping[str, Any] | None = None,
) -> str:
    """Returns a preview of `ablate` as text: the cells, their costs, and which are done. Writes nothing."""
    job = _Job(
        Path(out),
        Grid.of(stores, grid, on=on, recipe=recipe, settings=settings),
        labels,
        probes,
        seeds,
        _settled(probe_settings),
    )
    seconds = [job.seconds(cell) for cell in job.grid.cells]
    return plan_text([(str(cell), cost(cell), took) for cell, took in zip(job.grid.cells, seconds, strict=True)])


def _settled(settings: ProbeSettings | Mapping[str, Any] | None) -> ProbeSettings | None:
    return None if settings is None else ProbeSettings.of(settings, "standard")


@dataclass
class _Job:
    """One grid in one folder."""

    out: Path
    grid: Grid
    labels: str | Path | Task
    probes: Sequence[str]
    seeds: int
    settings: ProbeSettings | None
    task: Task = field(init=False)
    probing: str = field(init=False)

    def __post_init__(self) -> None:
        wrong = [name for name in self.probes if name not in _PROBES]
        if wrong or not self.probes:
            raise InputError(
                f"an ablation probes frozen features: choose {', '.join(_PROBES)}, not {', '.join(wrong) or 'none'}"
            )
        if self.seeds < 1:
            raise InputError(f"a probe needs at least 1 seed, not {self.seeds}")
        first, *others = self.grid.on.values()
        self.task = self.labels if isinstance(self.labels, Task) else load_labels(self.labels, known=first.ids)
        counts = {store.path: len(found_in(self.task, store.ids)[0]) for store in (first, *others)}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} in {path}" for path, count in counts.items())
            log.warning(
                "The stores do not hold the same labelled videos (%s): their figures stand on different ones.", said
            )
        said_probes: list[Any] = [list(self.probes), self.seeds, asdict(self.settings or ProbeSettings())]
        if not self.task.benchmark:
            said_probes.append("standard")
        task = [
            self.task.name,
            self.task.label_fraction,
            self.task.kind,
            self.task.ids,
            self.task.classes,
            self.task.targets.tolist(),
            self.task.spans,
        ]
        splits = None if self.task.splits is None else self.task.splits.tolist()
        self.probing = hashlib.sha256(json.dumps([said_probes, task, splits]).encode()).hexdigest()[:16]

    def run(self, *, raw: bool) -> Ablation:
        """All that is not done; then tables and figures."""
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file: name a folder for the ablation.")
        lock = Lock(
            self.out / ".lock", f"Another process is at work in {self.out}: wait for it, or name another folder."
        )
        lock.take()
        try:
            rows = self._raw_rows() if raw else []
            finished = sum(self.seconds(cell) is not None for cell in self.grid.cells)
            with progress(desc="ablate", unit="cells", total=len(self.grid.cells), initial=finished) as bar:
                for cell in self.grid.cells:
                    bar.set_postfix_str(str(cell))
                    known = self.seconds(cell) is not None
                    rows += self._read(cell) if known else self._run(cell)
                    write_parquet_rows(self.out / "results.parquet", rows, columns())
                    bar.update(0 if known else 1)
            found = Ablation(self.out, self.grid, tuple(rows))
            write_text(self.out / "table.md", found.to_markdown() + "\n")
            write_text(self.out / "table.tex", found.to_latex() + "\n")
            draw_figures(self.grid, groups(self.grid, rows), self.out / "figures")
            return found
        finally:
            lock.release()

    def seconds(self, cell: Cell) -> float | None:
        """How long a cell's pre-training took; None if it is not done, or not with these labels and probes."""
        result = self._result(self._folder(cell), cell.on)
        return float(result["rows"][0]["pretrain_seconds"]) if result and result["status"] == DONE else None

    def _folder(self, cell: Cell) -> Path:
        return cell.folder(self.out / "cells")

    @staticmethod
    def _name(on: EmbeddingStore) -> str:
        """What a run gave on one store is kept beside what it gave on another."""
        return f"result-{on.fingerprint[:8]}.json"

    def _result(self, folder: Path, on: EmbeddingStore) -> dict[str, Any] | None:
        by_older_version = folder / f"result-{on.old_fingerprint[:8]}.json"
        return self._read_result(folder / self._name(on)) or self._read_result(by_older_version)

    def _read_result(self, path: Path) -> dict[str, Any] | None:
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return result if result.get("probing") == self.probing else None
        except (OSError, ValueError, AttributeError, RecursionError):
            return None

    def _write(self, path: Path, status: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"probing": self.probing, "status": status, "rows": rows}, indent=1)
        return rows

    def _read(self, cell: Cell) -> list[dict[str, Any]]:
        """The rows of a cell that is done, named as this grid names it."""
        result = self._result(self._folder(cell), cell.on)
        assert result is not None
        return [{**row, **self._place(cell)} for row in result["rows"]]

    def _run(self, cell: Cell) -> list[dict[str, Any]]:
        folder = self._folder(cell)
        try:
            return self._write(folder / self._name(cell.on), DONE, self._steps(cell, folder))
        except Stopped as stop:
            raise Stopped(f"Stopped in the cell {cell}: rerun the same command to resume.") from stop
        except (LVMAEError, RuntimeError, OSError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("The cell %s failed: %s", cell, reason)
            return self._write(
                folder / self._name(cell.on), FAILED, [{**self._place(cell), "status": FAILED, "reason": reason}]
            )

    def _steps(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """pretrain -> represent -> probe. What is there from an earlier call is taken as it is, with the time it took."""
        of = cell.on.fingerprint[:8]
        if (folder / f"reps-{cell.on.old_fingerprint[:8]}").is_dir():  # begun by an older version
            of = cell.on.old_fingerprint[:8]
        run, pretraining = self._timed(
            folder / "pretrain.json", lambda: pretrain(cell.store, folder / "run", recipe=cell.recipe)
        )
        features, representing = self._timed(
            folder / f"represent-{of}.json", lambda: represent(run, cell.on, folder / f"reps-{of}")
        )
        began = time.monotonic()
        table = probe(features, self.task, probes=tuple(self.probes), seeds=self.seeds, settings=self.settings)
        final = read_metrics(run)[-1]
        told = {
            "steps": final["step"],
            "train_loss": final["loss"],
            "score": (score := final.get("score", "cosine")),
            **{f"{of}_score": final.get(f"{of}_{score}") for of in ("val", "interpolation", "mean")},
            "fingerprint": run_fingerprint(run),
            "pretrain_seconds": pretraining,
            "represent_seconds": representing,
            "probe_seconds": round(time.monotonic() - began, 3),
        }
        return [{**self._place(cell), **told, **row} for row in _probe_rows(table, LEARNT)]

    @staticmethod
    def _timed(path: Path, call: Callable[[], Any]) -> tuple[Any, float]:
        """What `call` gives, and the seconds it took, those of calls that were interrupted left out."""
        began = time.monotonic()
        given = call()
        if not path.exists():
            write_json(path, round(time.monotonic() - began, 3))
        return given, float(json.loads(path.read_text()))

    def _place(self, cell: Cell) -> dict[str, Any]:
        return {"cell": str(cell), **_store_columns(cell.name, cell.on), **settings_of(cell.recipe)}

    def _raw_rows(self) -> list[dict[str, Any]]:
        rows = []
        for name, store in self.grid.on.items():
            path = self.out / "raw" / f"{store.fingerprint}.json"
            if (result := self._read_result(path)) is None:
                began = time.monotonic()
                table = probe(store, self.task, probes=tuple(self.probes), seeds=self.seeds, settings=self.settings)
                took = {"probe_seconds": round(time.monotonic() - began, 3)}
                result = {"rows": self._write(path, DONE, [{**row, **took} for row in _probe_rows(table, RAW)])}
            rows += [{"cell": f"{STORE}={name}", **_store_columns(name, store), **row} for row in result["rows"]]
        return rows


def _probe_rows(table: ProbeTable, features: str) -> list[dict[str, Any]]:
    if table.rows[0].features != features:
        raise WorkError(f"the probes saw {table.rows[0].features}, not {features}")
    return [
        {
            "status": DONE,
            "task": table.task,
            "features": row.features,
            "probe": row.probe,
            "metric": table.metric,
            "mean": row.mean,
            "std": row.std,
            "low": row.interval[0],
            "high": row.interval[1],
            "values": list(row.values),
            "epochs_chosen": list(row.epochs),
            "probe_steps": row.steps,
            "missing_videos": len(table.missing),
        }
        for row in table.rows
    ]


def _store_columns(name: str, store: EmbeddingStore) -> dict[str, Any]:
    manifest = store.manifest
    frames = (manifest.encoder.get("options") or {}).get("num_frames")
    seconds = manifest.segments.get("seconds")
    return {
        "store": name,
        "store_path": store.path,
        "space_id": store.space_id,
        "segment_seconds": None if seconds is None else float(seconds),
        "num_frames": frames,
    }
