"""How much of an epoch a GPU is busy, and how much of its memory is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from p2p.model.distributed import max_over_ranks, sum_over_ranks, world_size

STEPS_AHEAD = 2
"""So many steps are queued before a GPU that computes an earlier one is waited for."""


class GpuMeter:
    """Measures one rank's GPU while it trains, and keeps the steps from being queued too far ahead."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget what was measured."""
        self._steps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0
        torch.cuda.reset_peak_memory_stats(self._device)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """What is started inside is work of the GPU's; returns once no more than `STEPS_AHEAD` steps are queued.

        Uploading the next batch would have to wait as long for memory, which would pass for waiting for data.
        """
        begin, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        yield
        end.record()
        self._steps.append((begin, end))
        if len(self._steps) > STEPS_AHEAD:
            self._steps[-1 - STEPS_AHEAD][1].synchronize()

    def add_up(self) -> None:
        """Add up the steps so far; call it where the device has been waited for."""
        self._seconds += sum(begin.elapsed_time(end) for begin, end in self._steps) / 1000.0
        self._steps.clear()

    def measured(self, seconds: float) -> dict[str, float]:
        """`gpu_busy`, the share of `seconds` (mean over ranks), and `gpu_memory` in GiB (the largest) (all ranks)."""
        share = min(1.0, self._seconds / seconds)  # queued steps go on while something else is done than training
        busy = torch.tensor(share / world_size(), device=self._device)
        memory = torch.tensor(torch.cuda.max_memory_allocated(self._device) / 2**30, device=self._device)
        return {"gpu_busy": float(sum_over_ranks(busy)), "gpu_memory": float(max_over_ranks(memory))}
