"""Where a run stands, and which epochs it still has to go through."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from p2p.data.order import pairs_per_rank
from p2p.documents import build
from p2p.errors import CheckpointError
from p2p.training.config import TrainConfig


@dataclass(frozen=True)
class Position:
    """How far a run has come. Written into each checkpoint as trainer.json."""

    epoch: int = 0
    """Epochs that were finished."""
    pairs_in_epoch: int = 0
    """Pairs that all workers together have seen of the epoch after those."""
    step: int = 0
    """Optimiser steps in all."""
    images_seen: int = 0
    """Pairs in all."""
    loss_sums: tuple[float, ...] = ()
    """Losses summed over the pairs of the unfinished epoch."""
    seconds: float = 0.0
    """Time the unfinished epoch has taken."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        """Inverse of `to_dict`. Raises CheckpointError for anything else."""
        try:
            return build(cls, {"loss_sums": None} | values)
        except ValueError as error:
            raise CheckpointError(f"trainer.json does not say where training stands: {error}") from None


@dataclass(frozen=True)
class Leg:
    """What one rank does of one epoch."""

    epoch: int
    skip: int
    """Pairs of this rank's share that are done."""
    stop: int
    """Pairs of this rank's share after which the leg ends."""
    finishes_epoch: bool

    def steps(self, batch_size: int) -> int:
        """Optimiser steps; the last batch may be smaller."""
        return -(-(self.stop - self.skip) // batch_size)


def legs(config: TrainConfig, pairs: int, position: Position) -> Iterator[Leg]:
    """Yield what remains to be done on `pairs` pairs from `position` on, under --epochs and --max-steps."""
    share = pairs_per_rank(pairs, config.workers)
    # The data may have shrunk since, or the workers become fewer.
    step, skip = position.step, min(share, position.pairs_in_epoch // config.workers)
    for epoch in range(position.epoch + 1, config.last_epoch + 1):
        whole = Leg(epoch, skip, share, finishes_epoch=True)
        skip = 0
        left = config.max_steps - step if config.max_steps else sys.maxsize
        if left <= 0:
            return
        step += whole.steps(config.batch_size)
        if left < whole.steps(config.batch_size):
            yield Leg(epoch, whole.skip, whole.skip + left * config.batch_size, finishes_epoch=False)
            return
        yield whole


def remaining_images(config: TrainConfig, pairs: int, position: Position) -> int:
    """Pairs that all workers together still have to see."""
    return sum(leg.stop - leg.skip for leg in legs(config, pairs, position)) * config.workers
