"""Which pair comes when: an order that depends on seed and epoch alone, cut into blocks for the workers.

An epoch's row groups are permuted, and the rows of every few of them are shuffled together. The order is cut into
rounds of one block for each worker, all of one size, so that every worker ends an epoch after the same number of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Row = tuple[int, int]
"""(row group, row inside it)."""


@dataclass(frozen=True)
class EpochRange:
    """What each worker does of one epoch, counted in pairs of its share."""

    epoch: int
    """1 for the first."""
    skip: int
    """Pairs that are done."""
    stop: int
    """Pairs after which to end."""
    finishes_epoch: bool = True


@dataclass(frozen=True)
class PairBlock:
    """Pairs `start` to `stop` in the order of an epoch, all for one worker. Epoch 0 is a validation."""

    epoch: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def pairs_per_worker(pairs: int, workers: int) -> int:
    """How many pairs each worker sees in an epoch: equal counts, so that no worker waits for another's last step."""
    return pairs // workers


def training_blocks(
    part: EpochRange, pairs: int, workers: int, block_pairs: int, *, fixed_shares: bool = False
) -> Iterator[PairBlock]:
    """Yield the blocks of an epoch of `pairs` pairs, or of a part of it; the workers take them in turn.

    Blocks have `block_pairs` pairs, those of the last round fewer. With `fixed_shares`, positions are those of
    `block_rows` with as many shares as there are workers, so that a worker has the same pairs in every epoch.
    """
    if part.skip >= part.stop:
        return
    share = pairs_per_worker(pairs, workers)
    for first in range(part.skip // block_pairs * block_pairs, part.stop, block_pairs):
        size = min(block_pairs, share - first)
        for worker in range(workers):
            start = worker * share + first if fixed_shares else first * workers + worker * size
            yield PairBlock(part.epoch, start + max(0, part.skip - first), start + min(size, part.stop - first))


def validation_blocks(pairs: int, workers: int, block_pairs: int) -> Iterator[PairBlock]:
    """Yield blocks that hold every pair once, in stored order; the last ones may be empty. The workers take turns."""
    rounds = -(-pairs // (workers * block_pairs))
    size = -(-pairs // (workers * rounds))
    for number in range(rounds * workers):
        yield PairBlock(0, min(number * size, pairs), min((number + 1) * size, pairs))


@functools.lru_cache(maxsize=2)  # of an epoch that ends while the next is read ahead
def _group_order(seed: int, epoch: int, groups: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(groups)


def block_rows(
    block: PairBlock,
    group_rows: Sequence[int] | npt.NDArray[np.int64],
    *,
    seed: int,
    window: int,
    shares: int = 1,
) -> list[Row]:
    """The rows of a block.

    Args:
        block: what is wanted.
        group_rows: pairs in each row group.
        seed: with the epoch it decides the order.
        window: so many pairs, of row groups drawn at random, are shuffled together.
        shares: the pairs as stored are cut into so many equal shares, each shuffled by itself; a few may be left over.

    """
    every = np.asarray(group_rows)
    rows, starts, skipped = every, np.cumsum(every) - every, np.zeros_like(every)
    groups, positions = np.arange(len(rows)), np.arange(block.start, block.stop)
    if block.epoch and len(block):
        share = int(every.sum()) // shares
        before = block.start // share * share  # pairs in shares before the block's
        positions -= before
        rows = np.clip(starts + every, before, before + share) - np.clip(starts, before, before + share)
        skipped = np.clip(before - starts, 0, every)  # rows of each group that come before that share
        groups = _group_order(seed, block.epoch, len(rows))
        first = int(positions[0]) // window
        shuffled = [
            start + np.random.default_rng([seed, block.epoch, 1 + number]).permutation(min(window, share - start))
            for number, start in enumerate(range(first * window, int(positions[-1]) + 1, window), first)
        ]
        positions = np.concatenate(shuffled)[positions - first * window]
    ends = np.cumsum(rows[groups])
    places = np.searchsorted(ends, positions, side="right")
    inside = positions - (ends - rows[groups])[places] + skipped[groups[places]]
    return list(zip(groups[places].tolist(), inside.tolist(), strict=True))
