"""The pre-training loop (Naiman et al., Sec. 4), on accelerate.

In: one or more embedding stores of one space, and a recipe. Out: a run folder. Price: nothing is computed on padding, and the
device is waited for once in `log_every` steps.

The data of a step are a function of (seed, step) alone, so a run that was killed and started again has the curves of one
that was not, and the loss of a step is the mean over the masked tokens of its whole batch, however many processes and
micro-batches share it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from safetensors import SafetensorError
from safetensors.torch import load_file

from lvmae import __version__, recipes
from lvmae.errors import InputError, WorkError
from lvmae.files.writing import reason, write_text
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.model.objectives import read_options
from lvmae.pretraining.accelerate_state import accelerator_for, own_accelerate_state
from lvmae.pretraining.best import Best
from lvmae.pretraining.captured import one_ahead
from lvmae.pretraining.card import draw_curves, model_card, verdict
from lvmae.pretraining.checkpoints import Checkpoints, Snapshot, restore, save_model
from lvmae.pretraining.data import MicroBatch, TrainingData
from lvmae.pretraining.loading import dead_workers_in_a_sentence
from lvmae.pretraining.optimisation import adamw, learning_rate
from lvmae.pretraining.run_folder import RunFolder, read_metrics
from lvmae.pretraining.split import Ids
from lvmae.pretraining.starting import Start
from lvmae.pretraining.step import Step
from lvmae.pretraining.validation import AT_DISTANCE, BEYOND_MEAN, Validation
from lvmae.pretraining.watch_labels import WatchLabels, read_watch_labels
from lvmae.pretraining.watching import LABELLED, UNLABELLED, Watch, what_to_try
from lvmae.process import handling_signals, own_state
from lvmae.progress import progress
from lvmae.recipes import Recipe
from lvmae.sequences import SegmentTimes
from lvmae.store import EmbeddingStore, Manifest

log = logging.getLogger(__name__)

_ONE_THREAD_WIDTH = 512  # measured at 384: 10.5 s with one thread, 12.4 s with two

_DRAW_SECONDS = 60.0  # between drawings of the curves, which is slow beside a short run

Stores = str | Path | EmbeddingStore | Sequence[str | Path | EmbeddingStore]


class Stopped(WorkError):
    """Raised when a run stopped on request, after saving a checkpoint. Exit code 130, as shells use it."""

    exit_code = 130


@own_state()
def pretrain(
    store: Stores,
    out: str | Path,
    *,
    recipe: str | os.PathLike[str] | Recipe = "base",
    settings: Mapping[str, Any] | None = None,
    resume: bool = True,
    only: Ids | None = None,
    exclude: Ids | None = None,
    init: str | os.PathLike[str] | None = None,
    watch: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> Path:
    """Trains an LV-MAE on the videos of one or more stores; returns the run folder, `out`.

    The same call resumes a run that was interrupted, and returns at once from one that is finished. With more `epochs` it makes
    a finished run longer: the learning rate, 0 at the end of what was asked for first, rises to where the schedule of all epochs
    has it and falls to 0 along it. Works alone, and in every process of `accelerate launch` or `torchrun`.

    Args:
        store: a store, its path, or several of one embedding space.
        out: the run folder, made if need be.
        recipe: a name of `lvmae.recipes.RECIPES`, the `recipe.json` of a run, or a `Recipe`.
        settings: values that replace the recipe's, as themselves or as text.
        resume: False refuses a folder that already holds a run.
        only, exclude: ids of videos, or a file of them (one id a line, or a table with a column `id`), that alone may be used,
            or that may not: a benchmark's test videos, for example. What is held out is drawn from the rest.
        init: a run, or an official checkpoint, whose weights the run begins with. Optimiser and schedule begin at their start.
        watch: labels (columns id, label, split) to judge the features of held-out videos by while they are learnt; rows of the
            test split are passed over.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; None is "auto". Of a launcher's processes each has its own.

    Raises:
        InputError: settings, stores or folder do not go together. WorkError: the training failed; what was done is kept.
        Stopped: SIGINT or SIGTERM; a checkpoint was written.
    """
    folder = RunFolder(Path(out).expanduser())
    chosen = recipes.named(recipe).with_settings(settings).as_begun(folder.recipe, settings)
    recipes.check_trust(recipe, chosen, settings)
    stores = open_stores(store)
    data = TrainingData(stores, chosen, only=only, exclude=exclude)
    config = model_config(stores[0].manifest, chosen)
    start = None if init is None else Start.at(init)
    resolve = functools.partial(
        Recipe.resolved, dim=stores[0].dim, longest_seconds=SegmentTimes.of(stores[0]).seconds_of(chosen.max_segments)
    )
    description: dict[str, Any] = {
        "recipe": resolve(chosen),
        "stores": data.description,
        "versions": {"lvmae": __version__, "torch": str(torch.__version__)},
    }
    if start is not None:
        description["init"] = start.description
    labels = None if watch is None else read_watch_labels(Path(watch), data.validation_ids)
    if labels is not None and (chosen.best_by or "") in LABELLED:
        description["watch"] = labels.digest  # other labels would make another run
    longer = folder.check(description, resume=resume, resolve=resolve)
    if (final := folder.finished) is not None and not longer:
        log.info("%s is finished, after %d steps: there is nothing to do. %s", out, final["step"], verdict(final))
        return folder.path
    missing = set(chosen.trackers) - {str(name.value) for name in get_available_trackers()}
    if missing:
        raise InputError(f"The tracker {min(missing)} is not installed: pip install 'lvmae[{min(missing)}]'.")
    for warning in data.warnings:
        log.warning(warning)
    if start is not None:
        start.warn_of_leaks(data.split)
    with (
        few_threads(config),
        dead_workers_in_a_sentence(chosen.num_workers),
        own_accelerate_state(),
        accelerator_for(chosen, folder.path, device) as accelerator,
    ):
        accelerator.wait_for_everyone()  # all have looked at the folder before the first process writes to it
        try:
            _Training(
                accelerator,
                folder=folder,
                recipe=chosen,
                config=config,
                data=data,
                description=description,
                start=start,
                labels=labels,
            ).run()
        finally:
            folder.close()
    return folder.path


@contextlib.contextmanager
def few_threads(config: LVMAEConfig) -> Iterator[None]:
    """One thread of arithmetic on the CPU for a small model, where handing work over costs more than it saves.

    The model alone decides: a resumed run has to use as many threads as before, to be equal to the last bit.
    """
    before = torch.get_num_threads()
    if config.hidden_size <= _ONE_THREAD_WIDTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Recorded:
    """A step whose figures are still on the device."""

    step: int
    lr: float
    loss: torch.Tensor  # () this process's share of the step's loss
    grad_norm: torch.Tensor | None  # ()


class _Training:
    """One run, from its last checkpoint to its end."""

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        folder: RunFolder,
        recipe: Recipe,
        config: LVMAEConfig,
        data: TrainingData,
        description: dict[str, Any],
        start: Start | None,
        labels: WatchLabels | None,
    ) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.recipe = recipe
        self.config = config
        self.data = data
        self.description = description
        self.start = start
        self.main = accelerator.is_main_process
        self.world = accelerator.num_processes
        self.checkpoints = Checkpoints(folder.path / "checkpoints", recipe.keep)
        self.total_steps = recipe.epochs * data.steps_per_epoch
        self.warmup_steps = round(recipe.warmup_epochs * data.steps_per_epoch)
        self.recorded: list[_Recorded] = []
        self.last_loss = float("nan")
        self.checked: dict[str, float] = {}
        self.best = Best(recipe.best_by, recipe.patience)
        self.told_of_mean = False
        self.drawn_at = time.monotonic()

        model = self._first_model()
        self.objective = model.objective
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.train()
        optimizer = adamw(model, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.compute = Step(accelerator, self.model, self.optimizer, recipe, data.table_on(accelerator.device))
        self.validation: Validation | None = None
        self.watch: Watch | None = None
        if data.validation:
            size = -(-recipe.batch_size // (self.world * recipe.accumulation))
            self.validation = Validation(data.validation, batch_size=size)
            if recipe.watch_every:
                self.watch = Watch(
                    data.validation, batch_size=size, ratio=recipe.mask_ratio, seed=recipe.seed, labels=labels
                )
        scores = ["val_loss", f"val_{self.objective.score}", BEYOND_MEAN, *AT_DISTANCE]
        features = [*UNLABELLED, *(LABELLED if labels is not None else ())] if self.watch else []
        self.best.check([*scores, *features] if data.validation else [])

    def _first_model(self) -> LVMAEForPreTraining:
        """The model with its first weights. Raises InputError if the recipe's objective cannot be built or begun."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.recipe.seed)
                model = LVMAEForPreTraining(self.config, trust_code=True)  # whoever named the objective has been asked
                if self.checkpoints.empty:
                    model.begin(self.data.sample)
                    if self.start is not None:
                        self.start.give_to(model)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"The objective {self.recipe.loss!r} cannot be used: {error}.") from None
        return model

    def run(self) -> None:
        """Trains to the end and exports the model. Raises WorkError and Stopped."""
        step = self._resume()
        for record in read_metrics(self.folder.path):  # of what is resumed
            self.best.see(record)
        saved_at = time.monotonic()
        rank, device = self.accelerator.process_index, self.accelerator.device
        filled_up, as_rows = self.compute.compiled, self.compute.table is not None
        batches = self.data.batches(step, rank, self.world, device, filled_up=filled_up, as_rows=as_rows)
        with (
            self._bar(step) as bar,
            _requests_to_stop() as stop,
            contextlib.closing(one_ahead(batches, device)) as micro_batches,
        ):
            first = step
            while step < self.total_steps and not self.best.stopping:
                self._step(step, [next(micro_batches) for _ in range(self.recipe.accumulation)])
                step += 1
                if bar is not None:
                    if step == first + 1:
                        bar.unpause()  # what is compiled and recorded at the first step says nothing about the others
                    bar.update(self.data.videos_in(step - 1))
                epoch_done = step % self.data.steps_per_epoch == 0
                look = epoch_done or step % self.recipe.log_every == 0
                if look:
                    self._record()
                    if bar is not None:
                        bar.set_postfix_str(self._standing(), refresh=False)
                if self.validation and epoch_done and self._validates(step):
                    self._validate(self.validation, step)
                stopping, late = stop.is_set(), time.monotonic() - saved_at >= 60 * self.recipe.checkpoint_minutes
                if self.world > 1:  # all or none; asked only where the device is waited for anyway
                    stopping, late = self._any(stopping, late) if look else (False, False)
                if stopping or late or step % self.recipe.checkpoint_every == 0 or self._ends(step):
                    self._save(step)
                    saved_at = time.monotonic()
                if stopping and not self._ends(step):
                    raise Stopped(
                        f"Stopped after step {step} of {self.total_steps}, with a checkpoint in {self.folder.path}: rerun "
                        "the same command to resume."
                    )
        self._finish(step)

    def _ends(self, step: int) -> bool:
        return step == self.total_steps or self.best.stopping

    def _bar(self, step: int) -> Any:
        """The progress line, of the first process."""
        if not self.main:
            return contextlib.nullcontext()
        return progress(
            desc="pretrain",
            unit="videos",
            total=self.data.videos_until(self.total_steps),
            initial=self.data.videos_until(step),
        )

    def _resume(self) -> int:
        """Takes the folder and goes back to the last whole checkpoint; the number of steps it has seen."""
        checkpoint, damaged = self.checkpoints.latest()
        step = checkpoint.step if checkpoint else 0
        self.accelerator.wait_for_everyone()
        if self.main:
            seen = checkpoint.state["metrics_bytes"] if checkpoint else 0
            self.folder.open(self.description, self.data.split, metrics_bytes=seen)
            self.checkpoints.clean(damaged)
        if checkpoint is not None:
            restore(checkpoint, self.model, self.optimizer.optimizer)
            if self.accelerator.scaler is not None and checkpoint.state["scaler"]:
                self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
            if self.main:
                log.info("Resuming from step %d of %d.", step, self.total_steps)
                self._say_longer(step)
        try:
            self.accelerator.init_trackers(
                "lvmae",
                config=self._hyper_parameters(),
                init_kwargs={
                    "tensorboard": {"purge_step": step + 1},
                    "wandb": {"dir": str(self.folder.path), "resume": "auto"},
                },
            )
        except Exception as error:  # trackers raise what they like
            said = [line.rstrip(".") for line in str(error).strip().splitlines()] or [repr(error)]
            raise InputError(
                f"A tracker could not be started ({', '.join(self.recipe.trackers)}: {said[0]}); for W&B log in with `wandb login` "
                "or set WANDB_MODE=offline, or set trackers to none."
            ) from error
        return step

    def _say_longer(self, step: int) -> None:
        """What the learning rate does where a finished run is made longer."""
        made_longer = self.description.get("made_longer")
        if made_longer and made_longer[-1]["step"] == step:
            log.info(
                "The run was finished after %d epochs and is made longer, to %d: the learning rate rises from 0 to %.3g, where the "
                "schedule of %d epochs has it, and falls to 0 at the end.",
                made_longer[-1]["epochs"],
                self.recipe.epochs,
                self._learning_rate(step),
                self.recipe.epochs,
            )

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step, peak=self.recipe.learning_rate, warmup_steps=self.warmup_steps, total_steps=self.total_steps
        )

    def _hyper_parameters(self) -> dict[str, Any]:
        """What a tracker shows beside the curves: numbers, words and truth values."""
        values = {
            **self.description["recipe"],
            "learning_rate": self.recipe.learning_rate,
            "parameters": self.parameters,
        }
        values |= {"space_id": self.config.space_id, "width": self.config.hidden_size, "processes": self.world}
        return {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in values.items()}

    def _step(self, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        """One optimiser step on this process's share of a batch."""
        lr = self._learning_rate(step)
        loss, norm = self.compute(micro_batches, lr)
        self.objective.after_step(self.accelerator.unwrap_model(self.model))
        self.recorded.append(_Recorded(step + 1, lr, loss, norm))

    def _record(self) -> None:
        """Writes the steps since the last call. Raises WorkError if a loss is not finite."""
        if not self.recorded:
            return
        losses = self.accelerator.reduce(torch.stack([r.loss for r in self.recorded]), "sum").tolist()
        for recorded, loss in zip(self.recorded, losses, strict=True):
            norm = None if recorded.grad_norm is None else float(recorded.grad_norm)
            # With a loss scaler a step whose gradients overflow is skipped: that is how it finds its scale.
            if not math.isfinite(loss) or (
                norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None
            ):
                what = "loss" if not math.isfinite(loss) else "gradient"
                raise WorkError(
                    f"The {what} of step {recorded.step} is not finite: {self.checkpoints.kept()}; lower base_lr, set clip_norm=1, "
                    "or use precision=bf16 or fp32 in a new run."
                )
            record = {"step": recorded.step, "epoch": self._epoch(recorded.step), "loss": loss, "lr": recorded.lr}
            if norm is not None:
                record["grad_norm"] = norm if math.isfinite(norm) else None
            self._write(record)
        self.last_loss = losses[-1]
        self.recorded.clear()

    def _validates(self, step: int) -> bool:
        return step == self.total_steps or (step // self.data.steps_per_epoch) % self.recipe.validate_every == 0

    def _validate(self, validation: Validation, step: int) -> None:
        self.checked = validation.score(self.model, self.accelerator)
        epoch = step // self.data.steps_per_epoch
        if self.watch is not None and (epoch % self.recipe.watch_every == 0 or step == self.total_steps):
            self.checked |= self.watch.figures(self.model, self.accelerator)
        record = {"step": step, "epoch": self._epoch(step), **self.checked}
        self._write(record)
        self._say_if_mean(step)
        better = self.best.see(record)
        if self.world > 1:  # the first process decides: figures may differ in their last bit
            better = self._any(better and self.main)[0]
        if better:
            tensors = Snapshot.take(self.model, self.optimizer.optimizer).model
            if self.main:
                self._export(tensors, self.folder.path / "best")

    def _say_if_mean(self, step: int) -> None:
        """Says once, after a tenth of the epochs, that reconstructions are no better than the mean of what is visible."""
        if self.told_of_mean or step * 10 < self.total_steps:
            return
        self.told_of_mean = True
        share = self.checked.get(BEYOND_MEAN, 1.0)
        if share > 0 or not self.main:
            return
        log.warning(
            "After %d of %d steps reconstructions of held-out videos are no better than the mean of the visible segments (they "
            "explain %.0f %% of the variance around it). %s",
            step,
            self.total_steps,
            100 * share,
            what_to_try(self.recipe, self.config.hidden_size),
        )

    def _standing(self) -> str:
        """What the progress line says beside rate and time left."""
        if not self.checked:
            return f"loss {self.last_loss:.4g}"
        watched = "".join(f", {LABELLED[key]} {self.checked[key]:.0%}" for key in LABELLED if key in self.checked)
        return f"loss {self.last_loss:.4g}, {self.objective.standing(self.checked)}{watched}"

    def _save(self, step: int) -> None:
        """Writes a checkpoint; every process has to call it."""
        self._record()
        snapshot = Snapshot.take(self.model, self.optimizer.optimizer)
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "step": step,
                "metrics_bytes": self.folder.settle(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            self.checkpoints.save(snapshot, self.config, state)
            if time.monotonic() - self.drawn_at >= _DRAW_SECONDS:
                draw_curves(read_metrics(self.folder.path), self.folder.path / "loss.png", self.objective)
                self.drawn_at = time.monotonic()
        self.accelerator.wait_for_everyone()

    def _finish(self, step: int) -> None:
        """Exports the model, the card and the curves, and closes the curves with the final figures."""
        tensors = Snapshot.take(self.model, self.optimizer.optimizer).model
        if not self.main:
            return
        records = read_metrics(self.folder.path)
        final = {"event": "finished", "step": step, "loss": [r for r in records if "loss" in r][-1]["loss"]}
        check = next((r for r in reversed(records) if "val_loss" in r), None)
        if self.best.step is not None:
            check = next(r for r in records if "val_loss" in r and r["step"] == self.best.step)
            tensors = load_file(self.folder.path / "best" / "model.safetensors")
            final |= {
                "best_by": self.best.figure,
                "best_step": self.best.step,
                "stopped_early": step < self.total_steps,
            }
        if check is not None:
            final |= {key: value for key, value in check.items() if key not in ("step", "epoch")}
            final |= {f"beats_{floor}": beaten for floor, beaten in self.objective.beaten(check).items()}
            final |= {"score": self.objective.score, "verdict": self.objective.verdict(final)}
        self._export(tensors, self.folder.path)
        draw_curves(records, self.folder.path / "loss.png", self.objective)
        card = model_card(self.description, self.config.to_dict(), final, self.parameters, self.objective.table(final))
        write_text(self.folder.path / "README.md", card)
        self._write(final)
        self.folder.settle()
        beaten = final.get("beats_interpolation") and final.get("beats_mean")
        log.log(logging.INFO if beaten else logging.WARNING, verdict(final))

    def _export(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        """Writes a model. Raises WorkError if the disk refuses it."""
        try:
            folder.mkdir(exist_ok=True)
            save_model(folder, self.config, tensors)
        except (OSError, SafetensorError) as error:
            raise WorkError(
                f"The model could not be written to {folder} ({reason(error)}): make room there and rerun the same command."
            ) from error

    def _write(self, record: dict[str, Any]) -> None:
        if self.main:
            self.folder.write(record)
        self.accelerator.log({k: v for k, v in record.items() if isinstance(v, int | float)}, step=record["step"])

    def _epoch(self, step: int) -> float:
        return round(step / self.data.steps_per_epoch, 4)

    def _any(self, *flags: bool) -> list[bool]:
        """Whether any process raised each flag."""
        asked = torch.tensor([float(flag) for flag in flags], device=self.accelerator.device)
        return [count > 0 for count in self.accelerator.reduce(asked, "sum").tolist()]


def open_stores(store: Stores) -> list[EmbeddingStore]:
    """The stores, of one space. Raises InputError."""
    several = list(store) if isinstance(store, Sequence) and not isinstance(store, str | EmbeddingStore) else [store]
    if not several:
        raise InputError("No store was given: name at least one.")
    stores = [EmbeddingStore.open(each) for each in several]
    for other in stores[1:]:
        for what in ("space_id", "dim", "kind", "segments"):
            ours, theirs = getattr(stores[0].manifest, what), getattr(other.manifest, what)
            if ours != theirs:
                raise InputError(
                    f"{other.path} and {stores[0].path} differ in their {what} ({theirs} and {ours}): a model is trained on one "
                    "kind of embedding; embed them alike."
                )
    return stores


def model_config(manifest: Manifest, recipe: Recipe) -> LVMAEConfig:
    """The model of a recipe for a store's embeddings. Raises InputError if they do not go together."""
    heads = recipe.heads_for(manifest.dim)
    try:
        return LVMAEConfig(
            hidden_size=manifest.dim,
            num_hidden_layers=recipe.layers,
            num_attention_heads=heads,
            intermediate_size=round(recipe.mlp_ratio * manifest.dim),
            decoder_hidden_size=recipe.decoder_width,
            decoder_num_hidden_layers=recipe.decoder_layers,
            decoder_num_attention_heads=recipe.decoder_heads,
            decoder_intermediate_size=round(recipe.mlp_ratio * recipe.decoder_width),
            max_segments=recipe.max_segments,
            embedding_scale=math.sqrt(manifest.dim) if recipe.embedding_scale is None else recipe.embedding_scale,
            center=recipe.center,
            loss=recipe.loss,
            loss_options=read_options(recipe.loss_options) or None,
            space_id=manifest.space_id,
            segments=manifest.segments,
            encoder=manifest.encoder,
        )
    except ValueError as error:
        raise InputError(f"The recipe does not fit embeddings of width {manifest.dim}: {error}") from None


@contextlib.contextmanager
def _requests_to_stop() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; a second one ends the process as it always does."""
    asked = threading.Event()

    def ask(number: int, _frame: Any) -> None:
        asked.set()
        give_back(number)

    with handling_signals({signal.SIGINT: ask, signal.SIGTERM: ask}) as give_back:
        yield asked
