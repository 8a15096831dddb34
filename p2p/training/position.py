"""Where a run stands, and which epochs it still has to go through."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from p2p.data.order import EpochRange, pairs_per_worker
from p2p.documents import build
from p2p.errors import CheckpointError
from p2p.storage.filesystems import join, read_json_object
from p2p.training.config import TrainConfig
from p2p.training.run_folder import RunFolder


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

    @classmethod
    def of_run(cls, folder: RunFolder) -> Position:
        """Where the latest checkpoint stands; the beginning without one. Raises CheckpointError, StorageError."""
        latest = folder.latest()
        if latest is None:
            return cls()
        return cls.from_dict(read_json_object(join(folder.address(latest["checkpoint"]), "trainer.json")))


def remaining_epochs(config: TrainConfig, pairs: int, position: Position) -> Iterator[EpochRange]:
    """Yield what remains to be done on `pairs` pairs from `position` on, under --epochs and --max-steps.

    If --workers has changed within an epoch, as many pairs are left of it as were, but some of the last blocks' pairs
    come again or not at all. Of any of its pairs that holds where several workers go on with a cache and began without
    one, or the reverse, since then each has other pairs: `auto` may choose otherwise than before too.
    """
    share, batch = pairs_per_worker(pairs, config.workers), config.batch_size
    # The data may have shrunk since, or the workers become fewer.
    step, skip = position.step, min(share, position.pairs_in_epoch // config.workers)
    for epoch in range(position.epoch + 1, config.last_epoch + 1):
        left = config.max_steps - step if config.max_steps else sys.maxsize
        if left <= 0:
            return
        steps = -(-(share - skip) // batch)
        stop = share if steps <= left else skip + left * batch
        yield EpochRange(epoch, skip, stop, finishes_epoch=stop == share)
        step, skip = step + steps, 0


def remaining_images(config: TrainConfig, pairs: int, position: Position) -> int:
    """Pairs that all workers together still have to see."""
    return sum(part.stop - part.skip for part in remaining_epochs(config, pairs, position)) * config.workers
