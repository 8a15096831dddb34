"""One worker's batches on its device: of a stream of pairs or, once it has had them all, of those it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from p2p.data.order import EpochRange, Row, pairs_per_worker
from p2p.data.stream import BlockReader, PairStream
from p2p.storage.pixels import Pixels
from p2p.training.pair_cache import PairCache
from p2p.training.upload import Upload

Batches = Iterator[tuple[Tensor, Tensor]]
"""Inputs (B, H, W, C) and targets (B, H, W, C'), uint8 or uint16 each, on the device."""


class Feed:
    """The batches of one worker. Close it at the end.

    Args:
        shard: what `ray.train.get_dataset_shard` gives.
        stream: what the data set was made of.
        rank: this worker's number.
        parts: what it was made for.
        device: where batches are needed.

    """

    def __init__(
        self, shard: Any, stream: PairStream, rank: int, parts: Sequence[EpochRange], device: torch.device
    ) -> None:
        self._stream, self._blocks, self._upload = stream, BlockReader(shard, stream, rank), Upload(device)
        self._parts_to_read, self._reads = stream.parts_to_read(parts), True
        self._cache: PairCache | None = None
        self._held_out: list[Pixels] = []
        if stream.cache != "none":
            pixels = pairs_per_worker(len(stream.train), stream.workers) * stream.train.largest_area
            self._cache = PairCache(stream.crop, pixels, device, on_host=stream.cache == "host")

    def wait(self) -> None:
        """Return once the first pairs are there, so that starting Ray Data is not taken for an epoch's waiting."""
        self._blocks.wait()

    def training(self, part: EpochRange) -> Batches:
        """Yield the batches of an epoch."""
        self._reads = part in self._parts_to_read
        if self._cache is None:
            return self.cut(self._blocks.training(part), self._stream.batch_size)
        return self._cut_from(self._cache, part)

    def validation(self) -> Iterator[Pixels]:
        """Yield the blocks to validate on after the epoch, (n, values) each, equally many on every rank."""
        if not self._reads:
            yield from self._held_out
            return
        self._held_out = []
        for block in self._blocks.validation():
            if self._cache is not None:
                self._held_out.append(block.copy())  # Ray's memory is for what is on its way
            yield block

    def cut(self, blocks: Iterable[Pixels], size: int) -> Batches:
        """Cut blocks, (n, values) each, into batches of `size`; a block's last one may be smaller."""
        for block in blocks:
            for start in range(0, len(block), size):
                yield self._stream.crop.sides(self._upload(list(block[start : start + size])))

    def close(self) -> None:
        """End the stream."""
        self._blocks.close()

    def _cut_from(self, cache: PairCache, part: EpochRange) -> Batches:
        size = self._stream.batch_size
        for rows in self._read_into(cache, part) if self._reads else self._rows(part):
            for start in range(0, len(rows), size):
                yield cache.batch(rows[start : start + size], part.epoch, self._upload)

    def _read_into(self, cache: PairCache, part: EpochRange) -> Iterator[list[Row]]:
        """The rows of each block, once the cache has its pairs."""
        cache.clear()
        for block in self._blocks.whole(part):
            rows = self._stream.rows(block.block)
            cache.add(rows, block)
            yield rows

    def _rows(self, part: EpochRange) -> Iterator[list[Row]]:
        return map(self._stream.rows, self._blocks.own(self._stream.training_blocks(part)))
