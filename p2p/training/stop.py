"""Stopping in the middle of an epoch: on request, or because a node is about to be preempted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import ray
import ray.train
import torch

from p2p.model.distributed import max_over_ranks
from p2p.training.keeper import RunKeeper
from p2p.training.trainer import Trainer

Item = TypeVar("Item")
_SECONDS_BETWEEN_LOOKS = 1.0
_MAX_CALLS_BETWEEN_LOOKS = 1000


class StopRequestedError(Exception):
    """Training is to save and end at the present step."""


class StopSignal:
    """Looks about once a second, on all ranks at the same call, whether a reporter was asked to stop the training."""

    def __init__(self, reporter: Any, trainer: Trainer) -> None:
        self._reporter, self._trainer = reporter, trainer
        self._saved_before_preemption = False
        self.start_epoch()

    def start_epoch(self) -> None:
        """Look at the next call (all ranks): short epochs spend most of their time between their calls."""
        self._calls, self._calls_between_looks, self._looked = 0, 1, time.monotonic()

    def check(self, keeper: RunKeeper) -> None:
        """Raise StopRequestedError if training is to end (all ranks); save if a node is about to be preempted."""
        self._calls += 1
        if self._calls < self._calls_between_looks:
            return
        if self._look():
            raise StopRequestedError
        # Ray starts the workers again elsewhere, once the node is gone or its time is up.
        if ray.train.get_preemption_info() is not None and not self._saved_before_preemption:
            self._saved_before_preemption = True
            keeper.save_inside_epoch()
            if self._trainer.rank == 0:
                self._reporter.preempted.remote(self._trainer.position.step)

    def checked(self, items: Iterable[Item], keeper: RunKeeper) -> Iterator[Item]:
        """The same items, with a `check` before each."""
        for item in items:
            self.check(keeper)
            yield item

    def _look(self) -> bool:
        trainer = self._trainer
        stop = trainer.rank == 0 and bool(ray.get(self._reporter.stop_requested.remote()))
        seconds_a_call = (time.monotonic() - self._looked) / self._calls
        agreed = torch.tensor([float(stop), seconds_a_call], dtype=torch.float64)
        if trainer.world > 1:
            agreed = max_over_ranks(agreed.to(trainer.pix2pix.device))
        stop, seconds_a_call = agreed.tolist()
        calls = int(_SECONDS_BETWEEN_LOOKS / max(seconds_a_call, 1e-6))
        self._calls, self._looked = 0, time.monotonic()
        # A GPU's first steps after a pause are only queued: their time says little of those that follow.
        self._calls_between_looks = max(1, min(calls, 4 * self._calls_between_looks, _MAX_CALLS_BETWEEN_LOOKS))
        return bool(stop)
