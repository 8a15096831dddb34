"""One Ray Data stream for a whole training, which Ray Train splits over its workers.

Ray's own shuffles cannot be repeated after a restart, so the order is made by `order`. A row of the stream is a block
of pairs, decoded and cropped, that one worker takes at a time: Ray's split hands rows out in turn. Validations come
between the epochs, so that they too are read ahead. For workers that keep their pairs the stream ends once they have
them all, and its pairs are whole.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import ray.data
from ray.data import ExecutionOptions, ExecutionResources

from p2p.data.augment import CropSettings
from p2p.data.cluster import cluster_cpus, quiet_data_context, reader_cpus
from p2p.data.local import MAX_ATTEMPTS
from p2p.data.order import EpochRange, PairBlock, Row, block_rows, training_blocks, validation_blocks
from p2p.data.pairs import Formats, Pair, Pairs, read_rows_in_task
from p2p.data.tasks import memory_reported, run_as_task
from p2p.errors import BadInputError, StorageError
from p2p.storage.pixels import Pixels

Cache = Literal["none", "host", "device"]
"""Where workers keep the decoded pairs of their first epoch for all others."""
WINDOW_PAIRS = 128
"""Shuffled together: rows of four or five row groups."""
MAX_BLOCK_PAIRS = 512
"""What a task reads. Ray Data takes 40 ms of CPU time for a block, as much as 100 pairs of 64x64."""
MAX_BLOCK_BYTES = 64 * 2**20
_MAX_LISTS = 256
"""Ray Data takes a millisecond for each block it begins with, so epochs are listed as it goes on."""


_Size = tuple[str, int, int]
"""Pair id, height, width."""


class WholeBlock(NamedTuple):
    """The pairs of a block as they were decoded."""

    block: PairBlock
    sizes: list[_Size]
    values: Pixels
    """Those of all A, then those of all B."""


@dataclass(frozen=True)
class PairStream:
    """Training pairs by epoch, and after each epoch the validation pairs."""

    train: Pairs
    val: Pairs | None
    crop: CropSettings
    batch_size: int
    """Pairs per step and worker."""
    workers: int = 1
    cache: Cache = "none"

    @property
    def whole_pair_bytes(self) -> int:
        """At most, of a training pair that is not cropped."""
        return self.train.largest_area * self.crop.pixel_bytes

    @property
    def window(self) -> int:
        """Pairs that are shuffled together."""
        return max(1, min(WINDOW_PAIRS, MAX_BLOCK_BYTES // self.crop.pair_bytes))

    @property
    def block_pairs(self) -> int:
        """Pairs of a block: as many batches as fit in the windows that do."""
        pair_bytes = self.crop.pair_bytes if self.cache == "none" else self.whole_pair_bytes
        pairs = min(MAX_BLOCK_PAIRS, MAX_BLOCK_BYTES // pair_bytes)
        if pairs > self.window:
            pairs -= pairs % self.window
        return max(1, pairs // self.batch_size) * self.batch_size

    def training_blocks(self, part: EpochRange) -> Iterator[PairBlock]:
        """Of all workers, for one epoch or a part of it."""
        fixed = self.cache != "none"
        return training_blocks(part, len(self.train), self.workers, self.block_pairs, fixed_shares=fixed)

    def parts_to_read(self, parts: Sequence[EpochRange]) -> Sequence[EpochRange]:
        """Those of `parts` for which pairs are decoded: with a cache, up to the first epoch that is whole."""
        whole = (number for number, part in enumerate(parts, 1) if part.skip == 0)
        return parts if self.cache == "none" else parts[: next(whole, None)]

    def rows(self, block: PairBlock) -> list[Row]:
        """Where the pairs of a block are."""
        pairs = self.train if block.epoch or self.val is None else self.val
        shares = 1 if self.cache == "none" else self.workers
        return block_rows(block, pairs.group_rows, seed=self.crop.seed, window=self.window, shares=shares)

    def validation_blocks(self) -> Iterator[PairBlock]:
        """Of all workers, for one validation; none without validation pairs."""
        return iter(()) if self.val is None else validation_blocks(len(self.val), self.workers, self.block_pairs)

    def count_steps(self, part: EpochRange) -> int:
        """Optimiser steps of each worker; the last batch of an epoch may be smaller."""
        blocks = itertools.islice(self.training_blocks(part), 0, None, self.workers)
        return sum(-(-len(block) // self.batch_size) for block in blocks)

    def execution_options(self) -> ExecutionOptions:
        """Ray Data's, of the execution that reads the stream. Needs Ray."""
        # Each core reads a block and has read two others, each worker holds one and has three before it.
        pair_bytes = self.crop.pair_bytes if self.cache == "none" else self.whole_pair_bytes
        ahead = (3 * cluster_cpus() + 4 * self.workers) * self.block_pairs * pair_bytes
        limits = ExecutionResources.for_limits(object_store_memory=ahead)
        return ExecutionOptions(preserve_order=True, resource_limits=limits)

    def dataset(self, parts: Sequence[EpochRange]) -> ray.data.Dataset:
        """The stream from the first of `parts` to the last. Needs Ray."""
        quiet_data_context()
        parts = self.parts_to_read(parts)
        # The list is cut into Ray blocks of a single row, for which Ray Data then starts a reading task each.
        dataset = (
            ray.data.from_items([asdict(part) for part in parts], override_num_blocks=min(len(parts), _MAX_LISTS))
            .flat_map(self._list_blocks, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=1))
            .map_batches(self._read_block, batch_size=None, num_cpus=reader_cpus())
        )
        dataset.context.target_max_block_size = 1
        # The limit on memory suffices. This policy goes by what a worker held when it last took a block: where that
        # was a small one, nothing more is read until the last epoch is listed.
        dataset.context.downstream_capacity_backpressure_ratio = None
        dataset.context.execution_options = self.execution_options()
        return dataset

    def _list_blocks(self, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for block in itertools.chain(self.training_blocks(EpochRange(**part)), self.validation_blocks()):
            yield asdict(block)

    def _read_block(self, row: dict[str, Any]) -> dict[str, Any]:
        """The task: a row that names a block gets its pairs, (1, n * values); with a cache, their sizes too."""
        block = PairBlock(*(int(row[name][0]) for name in ("epoch", "start", "stop")))
        values: Pixels = np.zeros(1, self.crop.formats[0].dtype)
        sizes: list[_Size] = []
        try:
            if len(block):
                values, sizes = self._read_pairs(block)
        except BadInputError as error:
            raise BadInputError(error.kind, f"{error}; jobs/prepare.py leaves bad pairs out and lists them") from None
        if self.cache == "none":
            return {**row, "pairs": values[None]}
        text = json.dumps(sizes).encode()  # Ray's arrays hold no ids of varying length
        return {**row, "pairs": values[None], "sizes": np.frombuffer(text, np.uint8)[None]}

    def _read_pairs(self, block: PairBlock) -> tuple[Pixels, list[_Size]]:
        """Values, and of pairs that are not cropped their sizes."""
        pairs = self.train if block.epoch or self.val is None else self.val
        rows = self.rows(block)
        with memory_reported(f"reading {pairs.groups[rows[0][0]].uri}"):
            decoded = read_rows_in_task(pairs, rows, self.crop.formats)
            if self.cache == "none" or not block.epoch:
                values = np.empty((len(rows), self.crop.pair_values), self.crop.formats[0].dtype)
                for row, pair in zip(values, decoded, strict=True):
                    self.crop.crop(pair, block.epoch, row)
                return values.reshape(-1), []
            return self._join(list(decoded))

    def _join(self, pairs: Sequence[Pair]) -> tuple[Pixels, list[_Size]]:
        sizes = []
        for pair in pairs:
            self.crop.check(pair)
            height, width = pair["a"].shape[:2]
            if height * width > self.train.largest_area:
                said = f"more than the {self.train.largest_area} that its part says the largest has"
                raise BadInputError("SizeMismatch", f"pair {pair['pair_id']!r} has {height * width} pixels, {said}")
            sizes.append((pair["pair_id"], height, width))
        values = np.concatenate([pair["a"] for pair in pairs] + [pair["b"] for pair in pairs], axis=None)
        return values, sizes


class BlockReader:
    """One worker's blocks of a stream: every `workers`th, beginning with number `rank`. Close it at the end.

    Args:
        shard: what `ray.train.get_dataset_shard` gives, or a whole data set for a single worker.
        stream: what the data set was made of.
        rank: this worker's number.

    """

    def __init__(self, shard: Any, stream: PairStream, rank: int = 0) -> None:
        self._stream, self._rank = stream, rank
        self._rows = iter(shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1))
        self._first: dict[str, Any] | None = None

    def wait(self) -> None:
        """Return once the first block is there, so that starting Ray Data is not taken for an epoch's waiting."""
        self._first = next(self._rows, None)

    def training(self, part: EpochRange) -> Iterator[Pixels]:
        """Yield the training blocks of an epoch, (n, values) each."""
        return self._crops(self._stream.training_blocks(part))

    def whole(self, part: EpochRange) -> Iterator[WholeBlock]:
        """Yield the training blocks of an epoch, of a stream for a cache."""
        for block, row in self._read(self._stream.training_blocks(part)):
            yield WholeBlock(block, json.loads(row["sizes"][0].tobytes()), row["pairs"][0])

    def validation(self) -> Iterator[Pixels]:
        """Yield the validation blocks that follow an epoch, (n, values) each; n may be 0, in the last one."""
        return self._crops(self._stream.validation_blocks())

    def _crops(self, blocks: Iterable[PairBlock]) -> Iterator[Pixels]:
        for block, row in self._read(blocks):
            values = row["pairs"][0]
            yield values.reshape(len(block), -1) if len(block) else values[:0, None]

    def own(self, blocks: Iterable[PairBlock]) -> Iterator[PairBlock]:
        """Those of all workers' `blocks` that are this worker's."""
        return itertools.islice(blocks, self._rank, None, self._stream.workers)

    def _read(self, blocks: Iterable[PairBlock]) -> Iterator[tuple[PairBlock, dict[str, Any]]]:
        for block in self.own(blocks):
            row = self._first or next(self._rows, None)
            self._first = None
            if row is None or any(row[name][0] != value for name, value in asdict(block).items()):
                # latest.json has changed between the start of the stream and that of this worker.
                raise StorageError(f"the stream of pairs does not begin at {block}, where the training does")
            yield block, row

    def close(self) -> None:
        """End the stream."""
        self._rows.close()


def read_first(pairs: Pairs, count: int, formats: Formats) -> list[Pair]:
    """The first `count` pairs, decoded by a task as all others are. Raises BadInputError that names a bad pair."""
    rows = pairs.rows(count)
    first = replace(pairs, groups=pairs.groups[: 1 + rows[-1][0]])
    # A node that takes work has room for so little, whatever else reads there.
    return run_as_task(_read_rows, first, rows, formats, num_cpus=0.1, retries=MAX_ATTEMPTS)


def _read_rows(pairs: Pairs, rows: Sequence[Row], formats: Formats) -> list[Pair]:
    return list(read_rows_in_task(pairs, rows, formats))
