"""A batch's way to the device that trains on it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2p.storage.pixels import Pixels
from p2p.training.gpu_meter import STEPS_AHEAD

UPLOADS = STEPS_AHEAD + 1
"""Batches on a GPU at a time: those that steps are queued for, and one that is being filled."""


class Upload:
    """Moves batches to a device. A GPU reads them from pinned memory, on a stream of its own beside the steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: deque[_Slot] = deque()
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._slots.extend(_Slot(device) for _ in range(UPLOADS))

    def __call__(self, batch: Sequence[Pixels]) -> Tensor:
        """(B, values) on the device, of B arrays. A GPU's is overwritten by the third call from here."""
        if not self._slots:
            return torch.from_numpy(np.stack(batch))
        steps = torch.cuda.current_stream(self._device)
        self._slots[-1].used.record(steps)  # by now all that needs the batch before this one is queued
        self._slots.rotate(-1)
        slot = self._slots[-1]
        slot.used.synchronize()
        with torch.cuda.stream(self._stream):
            slot.make_room(batch)
            for row, values in zip(slot.host.numpy(), batch, strict=False):
                row[...] = values
            slot.on_device[: len(batch)].copy_(slot.host[: len(batch)], non_blocking=True)
        steps.wait_stream(self._stream)
        return slot.on_device[: len(batch)]

    def beside(self, sides: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """On the device, for as long as the batch uploaded last: of each of `sides` its tensors, one after the other.

        A GPU copies them from where they lie. They may change once its steps have been waited for.
        """
        if not self._slots:
            return [torch.cat(list(parts)) for parts in sides]
        slot = self._slots[-1]
        with torch.cuda.stream(self._stream):
            slot.beside = slot.beside or [slot.on_device] * len(sides)
            for number, parts in enumerate(sides):
                ends = list(itertools.accumulate(map(len, parts)))
                slot.beside[number] = _with_room(slot.beside[number], ends[-1], parts[0])
                for end, part in zip(ends, parts, strict=True):
                    slot.beside[number][end - len(part) : end].copy_(part, non_blocking=True)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return slot.beside


class _Slot:
    """Memory for one batch, and when it is free again."""

    def __init__(self, device: torch.device) -> None:
        self.used = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.host, self.on_device = torch.empty(0), torch.empty(0, device=device)
        self.beside: list[Tensor] = []

    def make_room(self, batch: Sequence[Pixels]) -> None:
        """Have memory for a batch like this one."""
        like = torch.from_numpy(np.empty((0, *batch[0].shape), batch[0].dtype))
        self.host = _with_room(self.host, len(batch), like, pin_memory=True)
        self.on_device = _with_room(self.on_device, len(batch), like)


def _with_room(memory: Tensor, rows: int, like: Tensor, **options: Any) -> Tensor:
    """`memory`, if so many rows like those of `like` fit in it, else other memory in the same place."""
    if memory.dtype == like.dtype and memory.shape[1:] == like.shape[1:] and len(memory) >= rows:
        return memory
    with torch.inference_mode(False):  # what validation makes in that mode, training could not write to
        return torch.empty((rows, *like.shape[1:]), dtype=like.dtype, device=memory.device, **options)
