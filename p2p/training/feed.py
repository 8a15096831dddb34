"""One worker's batches on its device: of a stream of pairs or, once it has had them all, of those it keeps."""

from __future__ import annotations

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


class _Slot:
    """Memory for one batch, and when it is free again."""

    def __init__(self, device: torch.device) -> None:
        self.used = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.host, self.on_device = torch.empty(0), torch.empty(0, device=device)

    def make_room(self, batch: Sequence[Pixels]) -> None:
        """Have memory for a batch like this one."""
        kind = torch.from_numpy(np.empty(0, batch[0].dtype)).dtype
        shape = (len(batch), *batch[0].shape)
        if self.host.dtype != kind or self.host.shape[1:] != shape[1:] or len(self.host) < len(batch):
            self.host = torch.empty(shape, dtype=kind, pin_memory=True)
            self.on_device = torch.empty(shape, dtype=kind, device=self.on_device.device)


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
            place = device if stream.cache == "device" else torch.device("cpu")
            self._cache = PairCache(stream.crop, pixels, place)

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
        size, stream = self._stream.batch_size, self._stream
        for rows in self._read_into(cache, part) if self._reads else self._rows(part):
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                if stream.cache == "device":
                    yield cache.crop_on_device(batch, part.epoch, self._upload)
                else:
                    yield stream.crop.sides(self._upload(cache.crops(batch, part.epoch)))

    def _read_into(self, cache: PairCache, part: EpochRange) -> Iterator[list[Row]]:
        """The rows of each block, once the cache has its pairs."""
        cache.clear()
        for block in self._blocks.whole(part):
            rows = self._stream.rows(block.block)
            cache.add(rows, block)
            yield rows

    def _rows(self, part: EpochRange) -> Iterator[list[Row]]:
        return map(self._stream.rows, self._blocks.own(self._stream.training_blocks(part)))
