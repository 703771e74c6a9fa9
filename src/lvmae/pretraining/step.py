"""One optimiser step: forward, backward, clipping and AdamW, compiled and recorded where that can be."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from lvmae.errors import WorkError
from lvmae.pretraining.captured import CapturedStep
from lvmae.pretraining.data import MicroBatch
from lvmae.pretraining.optimisation import compile_blocks, uncompile_blocks
from lvmae.recipes import Recipe

log = logging.getLogger(__name__)


class Step:
    """What a process does with its micro-batches of a step.

    Args:
        accelerator, model, optimizer: as prepared.
        recipe: its precision, accumulation, clipping and compilation count.
        table: the embeddings that micro-batches name by their rows; None if they bring their own.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        recipe: Recipe,
        table: Tensor | None,
    ) -> None:
        self.accelerator, self.model, self.optimizer, self.recipe, self.table = (
            accelerator,
            model,
            optimizer,
            recipe,
            table,
        )
        cuda = accelerator.device.type == "cuda"
        self.compiled = cuda if recipe.compile is None else recipe.compile
        if self.compiled:
            compile_blocks(accelerator.unwrap_model(model))
        self._captured: CapturedStep[MicroBatch] | None = None

    def __call__(self, micro_batches: Sequence[MicroBatch], lr: float) -> tuple[Tensor, Tensor | None]:
        """Steps the optimiser: this process's share of the step's loss, and the gradients' norm if they are clipped, () each.

        Raises WorkError if the recipe says to compile and that fails.
        """
        try:
            if self._captured is None and self._captures():
                # Not before the first step: weights and moments have been restored by then.
                self._captured = CapturedStep(
                    self.loss, self._update, self.optimizer.optimizer, self.accelerator.device
                )
            done = None if self._captured is None else self._captured(micro_batches[0], lr)
            return done or self._uncaptured(micro_batches, lr)
        except TorchDynamoException as error:
            what = str(error).splitlines()[0]
            if self.recipe.compile:
                raise WorkError(
                    f"The model cannot be compiled here ({what}): set compile=false and run the same command."
                ) from error
            log.warning("The model cannot be compiled here (%s): it runs as it is, which is slower.", what)
            uncompile_blocks(self.accelerator.unwrap_model(self.model))
            self.optimizer.zero_grad()
            return self._uncaptured(micro_batches, lr)

    def loss(self, micro: MicroBatch) -> Tensor:
        """(), a micro-batch's part of the step's loss."""
        tokens = micro.tokens if self.table is None else self.table.index_select(0, micro.tokens)
        # The embeddings are float16 until here, and directions from here on; a zero vector stays zero.
        embeddings = nn.functional.normalize(tokens.float(), dim=-1, eps=torch.finfo(torch.float32).tiny)
        loss: Tensor = self.model(inputs_embeds=embeddings, plan=micro.plan).loss
        return loss

    def _captures(self) -> bool:
        """Whether a step can be one CUDA graph: one process, one micro-batch, no loss scaler."""
        return (
            self.compiled
            and self.accelerator.device.type == "cuda"
            and self.accelerator.distributed_type == DistributedType.NO
            and self.recipe.accumulation == 1
            and self.accelerator.scaler is None
        )

    def _update(self) -> Tensor | None:
        """Clips and steps as `_uncaptured` does, without what only matters for several processes or a loss scaler."""
        norm = None
        if self.recipe.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.optimizer.step()
        return norm

    def _uncaptured(self, micro_batches: Sequence[MicroBatch], lr: float) -> tuple[Tensor, Tensor | None]:
        """One kernel after the other."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = torch.zeros((), device=self.accelerator.device)
        for k, micro in enumerate(micro_batches):
            last = k == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                part = self.loss(micro)
                # The segments' weights make the parts' sum the mean over the whole step, but processes are averaged.
                self.accelerator.backward(part * self.accelerator.num_processes)
                loss += part.detach()
        norm = None
        if self.recipe.clip_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, norm
