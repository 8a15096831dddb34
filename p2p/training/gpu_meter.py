"""How much of an epoch a GPU is busy, and how much of its memory is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from p2p.model.distributed import max_over_ranks, sum_over_ranks, world_size


class GpuMeter:
    """Measures one rank's GPU while it trains, without waiting for it."""

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
        """What is started inside is work of the GPU's."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        yield
        end.record()
        self._steps.append((begin, end))

    def add_up(self) -> None:
        """Add up the steps so far; call it where the device has been waited for."""
        self._seconds += sum(begin.elapsed_time(end) for begin, end in self._steps) / 1000.0
        self._steps.clear()

    def measured(self, seconds: float) -> dict[str, float]:
        """`gpu_busy`, the share of `seconds` (mean over ranks), and `gpu_memory` in GiB (the largest) (all ranks)."""
        busy = torch.tensor(self._seconds / seconds / world_size(), device=self._device)
        memory = torch.tensor(torch.cuda.max_memory_allocated(self._device) / 2**30, device=self._device)
        return {"gpu_busy": float(sum_over_ranks(busy)), "gpu_memory": float(max_over_ranks(memory))}
