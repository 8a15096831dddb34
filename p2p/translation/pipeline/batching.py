"""Windows of many images, put together into batches of one shape for the network."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from p2p.translation.pipeline.tasks import ImageTask
from p2p.translation.pipeline.windows import SizePolicy

Array = npt.NDArray[np.uint8]

_MAX_WAITING_PIXELS = 16 * 2**20  # of images whose tiles wait for a batch to fill
_PAD_BATCH_PIXELS = 2**20  # per forward pass where shapes vary
_Batch = list[tuple[ImageTask, int]]


class Network(Protocol):
    """The part of `p2p.model.engine.Engine` that is used here."""

    batch_size: int
    input_channels: int

    @property
    def in_flight(self) -> int:
        """Batches that may be started before the first is taken."""

    @property
    def fallbacks(self) -> list[str]:
        """Why it runs slower than it could."""

    def start(self, tiles: Sequence[Array], keys: list[str]) -> Callable[[], Array]:
        """B tiles (h, w, C) uint8 -> what waits for their (B, h, w, C') uint8, in memory that is used again."""

    def with_batch_size(self, batch_size: int) -> Network:
        """The same with another fixed batch."""


class Batcher:
    """Runs the network over images as they come.

    one_by_one: each image goes through by itself before the next is looked at. Results are the same: a batch that is
    not full is padded.
    """

    def __init__(self, network: Network, policy: SizePolicy, one_by_one: bool) -> None:
        self._network, self._policy, self._one_by_one = network, policy, one_by_one
        self._waiting: dict[tuple[int, int], _Batch] = {}
        self._in_flight: deque[tuple[_Batch, Callable[[], Array]]] = deque()

    def run(self, tasks: Iterable[ImageTask]) -> Iterator[ImageTask]:
        """Fill batches of equal shape from whatever comes; yield an image when its last output is there."""
        for task in tasks:
            if task.windows is None:
                yield task
                continue
            shape = task.windows.shape
            for index in range(len(task.windows)):
                self._waiting.setdefault(shape, []).append((task, index))
                if len(self._waiting[shape]) >= self._batch_size(shape):
                    yield from self._start(shape)
            while sum(len(batch) * h * w for (h, w), batch in self._waiting.items()) > _MAX_WAITING_PIXELS:
                yield from self._start(next(iter(self._waiting)))
            if self._one_by_one:
                yield from self._finish()
        yield from self._finish()

    def _batch_size(self, shape: tuple[int, int]) -> int:
        """Fixed where every window has one shape; elsewhere it follows from the shape alone, as results must."""
        if self._policy.size_mode != "pad":
            return self._network.batch_size
        return max(1, min(self._network.batch_size, _PAD_BATCH_PIXELS // (shape[0] * shape[1])))

    def _start(self, shape: tuple[int, int]) -> Iterator[ImageTask]:
        """Hand the windows of this shape to the network; yield images of batches that had to be waited for."""
        batch = self._waiting.pop(shape)
        started = time.perf_counter()
        tiles = [task.windows.tile(index) for task, index in batch if task.windows is not None]
        size = self._batch_size(shape)
        network = self._network if size == self._network.batch_size else self._network.with_batch_size(size)
        take = network.start(tiles, [f"{task.item.image_id}#{index}" for task, index in batch])
        self._in_flight.append((batch, take))
        self._add_time(batch, started)
        while len(self._in_flight) >= network.in_flight:
            yield from self._take()

    def _take(self) -> Iterator[ImageTask]:
        batch, take = self._in_flight.popleft()
        started = time.perf_counter()
        for (task, index), output in zip(batch, take(), strict=True):
            assert task.windows is not None
            task.windows.add(index, output)
            task.answered += 1
        self._add_time(batch, started)
        yield from {id(task): task for task, _ in batch if task.windows and task.answered == len(task.windows)}.values()

    def _add_time(self, batch: _Batch, started: float) -> None:
        seconds = (time.perf_counter() - started) / len(batch)
        for task, _ in batch:
            task.seconds["network"] += seconds

    def _finish(self) -> Iterator[ImageTask]:
        while self._waiting:
            yield from self._start(next(iter(self._waiting)))
        while self._in_flight:
            yield from self._take()
