"""The code for CUDA only: the next batch is copied during the current step, and a step is one CUDA graph.

Launching the kernels of 40 layers one by one takes the host longer than the GPU takes to run them. A graph of the whole step,
forward, backward, clipping and AdamW, is recorded once for each size of batch, and then launched as one. Recording computes
nothing: weights, moments and step counts are those of the steps that were replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from lvmae.pretraining.data import MicroBatch

log = logging.getLogger(__name__)

_WARM_UP = 2  # passes before recording: they compile, and make what libraries keep


def one_ahead(batches: Generator[MicroBatch, None, None], device: torch.device) -> Generator[MicroBatch, None, None]:
    """Each batch on the device. On CUDA it is copied while the steps before it still run."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    try:
        for batch in batches:
            if stream is None:
                yield batch.to(device)
                continue
            with torch.cuda.stream(stream):
                there = batch.to(device)
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            for tensor in there.tensors():
                tensor.record_stream(current)
            yield there
    finally:
        batches.close()


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Makes the state that AdamW makes at its first step: made while recording, it would be made again at every replay."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


class Inputs(Protocol):
    """What a step computes on, a `MicroBatch` for one."""

    def tensors(self) -> list[Tensor]:
        """All tensors of it."""
        ...

    def clone(self) -> Self:
        """The same in memory of its own."""
        ...


Batch = TypeVar("Batch", bound=Inputs)


@dataclass(frozen=True)
class _Graph(Generic[Batch]):
    """A recorded step: replayed, it reads `inputs` and writes `loss` and `norm`."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch
    loss: Tensor  # ()
    norm: Tensor | None  # ()


class CapturedStep(Generic[Batch]):
    """A training step as one CUDA graph for each size of batch.

    Make it when weights and moments are those that training starts from.

    Args:
        loss: a micro-batch on the device -> its loss, ().
        update: clips the gradients and steps the optimiser; the gradients' norm, (), if it clips.
        optimizer: fused AdamW. Its learning rate is a number in the graph's memory from now on.
    """

    def __init__(
        self,
        loss: Callable[[Batch], Tensor],
        update: Callable[[], Tensor | None],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self._loss = loss
        self._update = update
        self._optimizer = optimizer
        self._rate = torch.zeros((), device=device)
        self._graphs: dict[tuple[torch.Size, ...], _Graph[Batch]] = {}
        self._pool: Any = None
        self.failed = False

    def __call__(self, micro: Batch, rate: float) -> tuple[Tensor, Tensor | None] | None:
        """Runs a step: its loss and the gradients' norm. None, with nothing done, where it cannot be recorded."""
        sizes = tuple(tensor.shape for tensor in micro.tensors())
        if sizes not in self._graphs and not self.failed:
            try:
                self._graphs[sizes] = self._record(micro)
            except Exception as error:  # whatever a driver, a compiler or a library has against it
                self.failed = True
                self._graphs.clear()
                self._optimizer.zero_grad(set_to_none=True)
                for group in self._optimizer.param_groups:
                    group["capturable"] = False
                log.warning(
                    "The step cannot be recorded as a CUDA graph (%s): the run continues without one, which is slower.",
                    (str(error) or type(error).__name__).splitlines()[0],
                )
        if self.failed:
            return None
        recorded = self._graphs[sizes]
        for ours, theirs in zip(recorded.inputs.tensors(), micro.tensors(), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self._rate.fill_(rate)
        recorded.graph.replay()
        # The next replay writes to the same memory.
        return recorded.loss.clone(), None if recorded.norm is None else recorded.norm.clone()

    def _record(self, micro: Batch) -> _Graph[Batch]:
        inputs = micro.clone()
        make_moments(self._optimizer)
        for group in self._optimizer.param_groups:
            group["lr"], group["capturable"] = self._rate, True
        # The warm-up leaves out the optimiser: it would change weights and moments.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._optimizer.zero_grad(set_to_none=True)
                self._loss(inputs).backward()  # type: ignore[no-untyped-call]
        torch.cuda.current_stream().wait_stream(aside)
        # Without gradients: the recorded backward pass makes its own, where it would add to those that are there.
        self._optimizer.zero_grad(set_to_none=True)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's thread pins memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss = self._loss(inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = self._update()
        return _Graph(graph, inputs, loss.detach(), norm)
