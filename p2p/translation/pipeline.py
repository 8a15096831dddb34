"""What one process does with the shards it is given: fetch, decode, network, encode and publish, all overlapping.

Images flow through without regard to shards, so that batches fill up across images and across shards; a shard is
published when its last image has come out. Memory is bounded by the windows below, not by the length of the flow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.errors import BadInput, StorageError
from p2p.storage.images import image_size
from p2p.translation.codec import Codec
from p2p.translation.fetching import FETCH_FAILED, Fetched, Fetcher
from p2p.translation.flow import Stopwatch, ahead
from p2p.translation.inputs import Input
from p2p.translation.ledger import LedgerRow
from p2p.translation.plan import Shard
from p2p.translation.sinks import Record, ShardWriter, Sink
from p2p.translation.windows import SizePolicy, Windows

Array = npt.NDArray[np.uint8]

_FETCHED_BYTES = 64 * 2**20
_DECODED_PIXELS = 32 * 2**20  # 96 MB
_WAITING_PIXELS = 16 * 2**20  # of images whose tiles wait for a batch to fill
_PAD_BATCH_PIXELS = 2**20  # per forward pass where shapes vary
_PUBLISHERS = 4
_MOST_UNREADABLE_IN_A_ROW = 16
_SECONDS_BETWEEN_REPORTS = 1.0


class Network(Protocol):
    """The part of `p2p.model.engine.Engine` that is used here."""

    batch_size: int
    input_channels: int

    def __call__(self, tiles: Array, keys: list[str]) -> Array:
        """(B, h, w, C) uint8 -> (B, h, w, C') uint8."""

    def with_batch_size(self, batch_size: int) -> Network:
        """The same with another fixed batch."""


@dataclass
class ShardReport:
    """How far a shard is; `finished` once its ledger lies in the output."""

    shard: int
    images: int = 0
    finished: bool = False
    translated: int = 0
    failed: int = 0
    pixels: int = 0
    output_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _OpenShard:
    report: ShardReport
    writer: ShardWriter
    rows: list[LedgerRow | None]


@dataclass
class _Job:
    """One image on its way through."""

    shard: _OpenShard
    position: int
    item: Input
    data: Fetched
    pixels: int = 0
    windows: Windows | None = None
    answered: int = 0
    encoded: bytes = b""
    size: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    stages: list[tuple[str, float]] = field(default_factory=list)

    def spend(self, stage: str, started: float) -> None:
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.stages.append((stage, seconds))

    def fail(self, error: BadInput) -> None:
        self.data, self.windows = error, None


class Pipeline:
    """Translates shards with one network.

    read_inputs tells what a shard holds, nothing if it is done. declare_done is called with its number and ledger when
    all its outputs are in place. io_threads read ahead. codec_threads decode and encode beside the network; 0 does both
    in the calling thread, which is quickest where the network itself uses the core.
    """

    def __init__(
        self,
        *,
        network: Network,
        policy: SizePolicy,
        codec: Codec,
        fetcher: Fetcher,
        sink: Sink,
        read_inputs: Callable[[Shard], list[Input]],
        declare_done: Callable[[int, Sequence[LedgerRow]], None],
        io_threads: int,
        codec_threads: int,
    ) -> None:
        self._network, self._policy, self._codec = network, policy, codec
        self._fetcher, self._sink = fetcher, sink
        self._read_inputs, self._declare_done = read_inputs, declare_done
        self._io_threads, self._codec_threads = io_threads, codec_threads
        self._stages = Stopwatch()
        self._unreadable_in_a_row = 0

    def run(self, shards: Iterable[Shard]) -> Iterator[ShardReport]:
        """Translate `shards`; yield a report about once a second, and one for each shard when it is finished.

        Raises StorageError if outputs cannot be written. What is bad about an input goes into the ledger.
        """
        io = ThreadPoolExecutor(self._io_threads, thread_name_prefix="fetch")
        codec = ThreadPoolExecutor(self._codec_threads, thread_name_prefix="codec") if self._codec_threads else None
        publishers = ThreadPoolExecutor(_PUBLISHERS, thread_name_prefix="publish")
        open_shards: list[_OpenShard] = []
        try:
            yield from self._publish(self._jobs(shards, open_shards, io, codec), publishers)
        finally:
            for pool in (io, codec, publishers):
                if pool is not None:
                    pool.shutdown(wait=True, cancel_futures=True)
            for shard in open_shards:
                if not shard.report.finished:
                    shard.writer.discard()

    def _jobs(
        self, shards: Iterable[Shard], open_shards: list[_OpenShard], io: Executor, codec: Executor | None
    ) -> Iterator[_Job]:
        def wait(seconds: float) -> None:
            self._stages.add("wait", seconds)

        units = self._units(shards, open_shards, io)
        fetched = ahead(
            self._fetch,
            units,
            io,
            count=2 * self._io_threads,
            weigh=lambda unit: sum(job.item.size for job in unit),
            most_weight=_FETCHED_BYTES,
            waited=wait,
        )
        window = 2 * self._codec_threads
        decoded = ahead(
            self._decode,
            self._readable(fetched),
            codec,
            count=window,
            weigh=lambda job: job.pixels,
            most_weight=_DECODED_PIXELS,
            waited=wait,
        )
        return ahead(
            self._encode,
            self._translate(decoded),
            codec,
            count=window,
            weigh=lambda job: job.pixels,
            most_weight=_DECODED_PIXELS,
            waited=wait,
        )

    def _units(self, shards: Iterable[Shard], open_shards: list[_OpenShard], io: Executor) -> Iterator[list[_Job]]:
        def read(shard: Shard) -> tuple[Shard, list[Input]]:
            return shard, self._read_inputs(shard)

        for shard, inputs in ahead(read, shards, io, count=2):
            if not inputs:
                continue
            writer = self._sink.open_shard(shard.index)
            state = _OpenShard(ShardReport(shard.index), writer, [None] * len(inputs))
            open_shards[:] = [*(other for other in open_shards if not other.report.finished), state]
            position = 0
            for unit in self._fetcher.units(inputs):
                yield [_Job(state, position + number, item, b"") for number, item in enumerate(unit)]
                position += len(unit)

    def _fetch(self, unit: list[_Job]) -> list[_Job]:
        started = time.perf_counter()
        for job, data in zip(unit, self._fetcher.fetch([job.item for job in unit]), strict=True):
            job.data = data
            if isinstance(data, bytes):
                try:  # the header alone, so that decoding can be kept within bounds
                    width, height = image_size(data, self._codec.max_pixels)
                    job.pixels = width * height
                except BadInput as error:
                    job.fail(error)
        unit[0].stages.append(("fetch", time.perf_counter() - started))
        return unit

    def _readable(self, units: Iterable[list[_Job]]) -> Iterator[_Job]:
        """Pass the inputs on. One that cannot be read is bad; when none can, the storage is, and the work must stop."""
        for unit in units:
            errors = [job.data for job in unit if isinstance(job.data, BadInput) and job.data.kind == FETCH_FAILED]
            self._unreadable_in_a_row = self._unreadable_in_a_row + 1 if len(errors) == len(unit) else 0
            if self._unreadable_in_a_row >= _MOST_UNREADABLE_IN_A_ROW:
                raise StorageError(
                    f"{self._unreadable_in_a_row} reads in a row have failed, the last with: {errors[0]}; "
                    f"when the storage is well again, the same command continues"
                )
            yield from unit

    def _decode(self, job: _Job) -> _Job:
        if isinstance(job.data, bytes):
            started = time.perf_counter()
            try:
                image = self._codec.decode(job.data)
                if self._network.input_channels == 1:
                    image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
                job.data = b""
                job.windows = self._policy(image)
            except BadInput as error:
                job.fail(error)
            job.spend("decode", started)
        return job

    def _translate(self, jobs: Iterable[_Job]) -> Iterator[_Job]:
        """Fill batches of equal shape from whatever comes; yield an image when its last window is answered."""
        waiting: dict[tuple[int, int], list[tuple[_Job, int]]] = {}
        for job in jobs:
            if job.windows is None:
                yield job
                continue
            shape = job.windows.shape
            batch = waiting.setdefault(shape, [])
            for index in range(len(job.windows)):
                batch.append((job, index))
                if len(batch) >= self._batch_size(shape):
                    yield from self._forward(shape, waiting.pop(shape))
                    batch = waiting.setdefault(shape, [])
            while sum(len(entry) * height * width for (height, width), entry in waiting.items()) > _WAITING_PIXELS:
                oldest = next(shape for shape, entry in waiting.items() if entry)
                yield from self._forward(oldest, waiting.pop(oldest))
        for shape, batch in waiting.items():
            if batch:
                yield from self._forward(shape, batch)

    def _batch_size(self, shape: tuple[int, int]) -> int:
        """Fixed where every window has one shape; elsewhere it follows from the shape alone, as results must."""
        if self._policy.size_mode != "pad":
            return self._network.batch_size
        return max(1, min(self._network.batch_size, _PAD_BATCH_PIXELS // (shape[0] * shape[1])))

    def _forward(self, shape: tuple[int, int], batch: list[tuple[_Job, int]]) -> Iterator[_Job]:
        started = time.perf_counter()
        tiles = np.stack([job.windows.tile(index) for job, index in batch if job.windows is not None])
        size = self._batch_size(shape)
        network = self._network if size == self._network.batch_size else self._network.with_batch_size(size)
        outputs = network(tiles, [f"{job.item.image_id}#{index}" for job, index in batch])
        for (job, index), output in zip(batch, outputs, strict=True):
            assert job.windows is not None
            job.windows.add(index, output)
            job.answered += 1
        seconds = time.perf_counter() - started
        self._stages.add("network", seconds)
        for job, _ in batch:
            job.seconds += seconds / len(batch)
        yield from {id(job): job for job, _ in batch if job.windows and job.answered == len(job.windows)}.values()

    def _encode(self, job: _Job) -> _Job:
        if job.windows is not None:
            started = time.perf_counter()
            image = job.windows.result()
            job.windows = None
            job.size = (image.shape[1], image.shape[0])
            job.encoded = self._codec.encode(image)
            job.spend("encode", started)
        return job

    def _publish(self, jobs: Iterable[_Job], publishers: Executor) -> Iterator[ShardReport]:
        publishing: list[Future[ShardReport]] = []
        last_report = time.monotonic()
        for job in jobs:
            self._record(job)
            if job.shard.report.images == len(job.shard.rows):
                publishing.append(publishers.submit(self._finish, job.shard))
            elif time.monotonic() - last_report > _SECONDS_BETWEEN_REPORTS:
                last_report = time.monotonic()
                yield ShardReport(job.shard.report.shard, job.shard.report.images)
            while publishing and (publishing[0].done() or len(publishing) > 2 * _PUBLISHERS):
                yield self._finished(publishing.pop(0))
        for future in publishing:
            yield self._finished(future)

    def _record(self, job: _Job) -> None:
        shard, item = job.shard, job.item
        for stage, seconds in job.stages:
            self._stages.add(stage, seconds)
        shard.report.images += 1
        if isinstance(job.data, BadInput):
            shard.report.failed += 1
            shard.writer.fail(item.image_id)
            shard.rows[job.position] = LedgerRow(item.image_id, "failed", job.data.kind, str(job.data))
            return
        shard.report.translated += 1
        shard.report.pixels += job.size[0] * job.size[1]
        started = time.perf_counter()
        record = Record(item.image_id, job.encoded, *job.size, item.source_uri, 1000 * job.seconds)
        uri = shard.writer.add(record)
        job.encoded = b""
        self._stages.add("publish", time.perf_counter() - started)
        shard.rows[job.position] = LedgerRow(item.image_id, "translated", output_uri=uri)

    def _finish(self, shard: _OpenShard) -> ShardReport:
        started = time.perf_counter()
        shard.report.output_bytes = shard.writer.publish()
        self._declare_done(shard.report.shard, [row for row in shard.rows if row is not None])
        shard.report.finished = True
        shard.report.seconds = {"publish": time.perf_counter() - started}
        return shard.report

    def _finished(self, future: Future[ShardReport]) -> ShardReport:
        """The report of a published shard, with what the stages took since the last one."""
        report = future.result()
        for stage, seconds in report.seconds.items():
            self._stages.add(stage, seconds)
        report.seconds, self._stages = self._stages.seconds, Stopwatch()
        return report
