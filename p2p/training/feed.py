"""One worker's batches on its device: of a stream of pairs or, once it has had them all, of those it keeps."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2p.data.order import EpochRange, Row, pairs_per_worker
from p2p.data.stream import BlockReader, PairStream
from p2p.storage.pixels import Pixels
from p2p.training.gpu_meter import STEPS_AHEAD
from p2p.training.pair_cache import PairCache

Batches = Iterator[tuple[Tensor, Tensor]]
"""Inputs (B, H, W, C) and targets (B, H, W, C'), uint8 or uint16 each, on the device."""
_UPLOADS = STEPS_AHEAD + 1  # those that steps are queued for, and one that is being filled


class Upload:
    """Moves batches to a device. A GPU reads them from pinned memory, on a stream of its own beside the steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: deque[_Slot] = deque()
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._slots.extend(_Slot(device) for _ in range(_UPLOADS))

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
