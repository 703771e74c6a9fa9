"""Copies frames to a device as bytes, from pinned memory, while the device works on the previous batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

_BUFFERS = 3  # one is filled, one travels, and one has arrived and is not yet released


class Transfer:
    """A call takes segments' frames, uint8 of one shape, and gives a function that waits for them: uint8 (B, ...) on the device.

    With `fill_to`, a batch of fewer segments ends in zeros. On CUDA the copy runs in a stream of its own, out of pinned memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._buffers: deque[tuple[torch.Tensor, Any]] = deque()

    def __call__(self, segments: Sequence[np.ndarray], *, fill_to: int = 0) -> Callable[[], torch.Tensor]:
        shape = (max(len(segments), fill_to), *segments[0].shape)
        if self._device.type != "cuda":
            batch = torch.zeros(shape, dtype=torch.uint8)
            _fill(batch, segments)
            moved = batch.to(self._device)
            return lambda: moved
        buffer, copied = self._buffer(shape)
        copied.synchronize()
        _fill(buffer, segments)
        with torch.cuda.stream(self._stream):
            arriving = buffer.to(self._device, non_blocking=True)
            copied.record(self._stream)
        self._buffers.append((buffer, copied))

        def arrived() -> torch.Tensor:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(copied)
            arriving.record_stream(now)
            return arriving

        return arrived

    def _buffer(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, Any]:
        """A pinned buffer, and the event after which it is free."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if self._buffers and self._buffers[0][0].shape != shape:
            self._buffers.clear()
        if len(self._buffers) == _BUFFERS:
            return self._buffers.popleft()
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]


def _fill(batch: torch.Tensor, segments: Sequence[np.ndarray]) -> None:
    for row, frames in zip(batch, segments, strict=False):
        row.copy_(torch.from_numpy(np.ascontiguousarray(frames)))
    batch[len(segments) :] = 0
