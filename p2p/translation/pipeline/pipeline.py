"""What one process does with the shards it is given: fetch, decode, network, encode and publish, all overlapping.

Images flow through without regard to shards, so that batches fill up across images and across shards; a shard is
published when its last image has come out. Memory is bounded by the windows below, not by the length of the flow.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.errors import BadInputError, StorageError
from p2p.storage.images import image_size
from p2p.translation.corpus.inputs import Input
from p2p.translation.pipeline.batching import Batcher, Network
from p2p.translation.pipeline.circuit_breaker import CircuitBreaker
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.fetching import FETCH_FAILED, InputFetcher
from p2p.translation.pipeline.prefetch import StageTimer, ahead
from p2p.translation.pipeline.tasks import ImageTask, OpenShard, ShardReport
from p2p.translation.pipeline.windows import SizePolicy
from p2p.translation.plan.ledger import LedgerRow
from p2p.translation.plan.plan import Shard
from p2p.translation.sinks import Record, Sink

Array = npt.NDArray[np.uint8]

_FETCHED_BYTES = 64 * 2**20
_DECODED_PIXELS = 32 * 2**20  # 96 MB
_PUBLISHERS = 4
_SECONDS_BETWEEN_REPORTS = 1.0


@dataclass(frozen=True)
class ShardBooks:
    """What is written down of shards: their inputs, what earlier attempts made of them, that they are done."""

    read_inputs: Callable[[Shard], list[Input]]
    """What a shard holds; nothing if it is done."""
    declare_done: Callable[[int, Sequence[LedgerRow]], None]
    """Called with a shard's number and ledger when all its outputs are in place."""
    read_kept: Callable[[int], dict[str, LedgerRow]] = lambda shard: {}
    """Ledger rows, by image id, that stay as they are when a shard's failures are tried again."""
    begin: Callable[[int], None] = lambda shard: None
    """Called with a shard's number before any of its images is fetched."""
    start_read: Callable[[int, int], bool] = lambda shard, position: False
    """Called with shard and first position before images are read together. Returns whether to read row by row."""
    start_row: Callable[[int, int], None] = lambda shard, position: None
    """Called with shard and position before an image is read by itself. May raise BadInputError to forbid it."""
    start_image: Callable[[int, int], None] = lambda shard, position: None
    """Called with shard and position before an image is decoded. May raise BadInputError to forbid it."""
    finish_image: Callable[[int], None] = lambda shard: None
    """Called with an image's shard when it is through."""


class Pipeline:
    """Translates shards with one network.

    io_threads read ahead. codec_threads decode and encode beside the network; 0 does both in the calling thread, which
    is quickest where the network itself uses the core. `deadline` is entered wherever an image is decoded. `hosts` is
    how many servers the corpus lies on.
    """

    def __init__(
        self,
        *,
        network: Network,
        policy: SizePolicy,
        codec: Codec,
        fetcher: InputFetcher,
        sink: Sink,
        books: ShardBooks,
        io_threads: int,
        codec_threads: int,
        hosts: int = 1,
        deadline: contextlib.AbstractContextManager[None] | None = None,
    ) -> None:
        self.network, self._policy, self._codec = network, policy, codec
        self._fetcher, self._sink = fetcher, sink
        self._books = books
        self._deadline = deadline or contextlib.nullcontext()
        self._io_threads, self._codec_threads = io_threads, codec_threads
        self._stages = StageTimer()
        self._breaker = CircuitBreaker(hosts)

    def run(self, shards: Iterable[Shard], one_by_one: bool = False) -> Iterator[ShardReport]:
        """Translate `shards`; yield a report about once a second, and one for each shard when it is finished.

        one_by_one: no image is touched before the one before it is through, so that it is known which one does harm.
        Raises StorageError if outputs cannot be written. What is bad about an input goes into the ledger.
        """
        io = None if one_by_one else ThreadPoolExecutor(self._io_threads, thread_name_prefix="fetch")
        threaded = self._codec_threads and not one_by_one
        codec = ThreadPoolExecutor(self._codec_threads, thread_name_prefix="codec") if threaded else None
        publishers = ThreadPoolExecutor(_PUBLISHERS, thread_name_prefix="publish")
        open_shards: list[OpenShard] = []
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
        self, shards: Iterable[Shard], open_shards: list[OpenShard], io: Executor | None, codec: Executor | None
    ) -> Iterator[ImageTask]:
        def wait(seconds: float) -> None:
            self._stages.add("wait", seconds)

        units = self._units(shards, open_shards, io)
        fetched = ahead(
            functools.partial(self._fetch, one_by_one=io is None),
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
        batcher = Batcher(self.network, self._policy, lambda: self._stages, one_by_one=io is None)
        return ahead(
            self._encode,
            batcher.run(decoded),
            codec,
            count=window,
            weigh=lambda job: job.pixels,
            most_weight=_DECODED_PIXELS,
            waited=wait,
        )

    def _units(
        self, shards: Iterable[Shard], open_shards: list[OpenShard], io: Executor | None
    ) -> Iterator[list[ImageTask]]:
        def read(shard: Shard) -> tuple[Shard, list[Input], dict[str, LedgerRow]]:
            inputs = self._books.read_inputs(shard)
            if not inputs:
                return shard, [], {}
            self._books.begin(shard.index)  # here, where a slow disk or bucket holds nothing up
            return shard, inputs, self._books.read_kept(shard.index)

        for shard, inputs, before in ahead(read, shards, io, count=2):
            if not inputs:
                continue
            writer = self._sink.open_shard(shard.index)
            kept = writer.keep(before) if before else set()
            rows = [before[item.image_id] if item.image_id in kept else None for item in inputs]
            report = ShardReport(shard.index, images=len(rows) - rows.count(None))
            report.kept = report.images
            state = OpenShard(report, writer, rows)
            open_shards[:] = [*(other for other in open_shards if not other.report.finished), state]
            positions = [position for position, row in enumerate(rows) if row is None]
            where = iter(positions)
            for unit in self._fetcher.units([inputs[position] for position in positions]):
                yield [ImageTask(state, next(where), item, b"") for item in unit]

    def _fetch(self, unit: list[ImageTask], one_by_one: bool) -> list[ImageTask]:
        started = time.perf_counter()
        try:
            if self._breaker.is_open(unit[0].item.source_uri):
                raise BadInputError(
                    FETCH_FAILED, "its server has not answered many reads in a row and was not asked again"
                )
            row_by_row = self._books.start_read(unit[0].shard.report.shard, unit[0].position)
            start_row = functools.partial(self._start_row, unit) if row_by_row else None
            fetched = self._fetcher.fetch([job.item for job in unit], start_row)
        except BadInputError as error:
            fetched = [error] * len(unit)
        for job, data in zip(unit, fetched, strict=True):
            job.data = data
            if isinstance(data, bytes) and not one_by_one:
                try:  # the header alone, so that decoding can be kept within bounds
                    with self._deadline:
                        width, height = image_size(data, self._codec.max_pixels)
                    job.pixels = width * height
                except BadInputError as error:
                    job.fail(error)
        unit[0].stages.append(("fetch", time.perf_counter() - started))
        return unit

    def _start_row(self, unit: list[ImageTask], index: int) -> None:
        self._books.start_row(unit[index].shard.report.shard, unit[index].position)

    def _readable(self, units: Iterable[list[ImageTask]]) -> Iterator[ImageTask]:
        """Pass the inputs on. Where no read is answered it is the storage that is bad, and the work must stop."""
        for unit in units:
            errors = [job.data for job in unit if isinstance(job.data, BadInputError) and job.data.kind == FETCH_FAILED]
            if not self._breaker.record(unit[0].item.source_uri, answered=len(errors) < len(unit)):
                raise StorageError(
                    f"many reads in a row have failed, the last with: {errors[-1]}; "
                    f"when the storage is well again, the same command continues"
                )
            yield from unit

    def _decode(self, job: ImageTask) -> ImageTask:
        if isinstance(job.data, bytes):
            started = time.perf_counter()
            try:
                self._books.start_image(job.shard.report.shard, job.position)
                with self._deadline:
                    image = self._codec.decode(job.data)
                    job.data = b""
                    if self.network.input_channels == 1:
                        image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
                    job.windows = self._policy(image)
            except BadInputError as error:
                job.fail(error)
            job.spend("decode", started)
        return job

    def _encode(self, job: ImageTask) -> ImageTask:
        if job.windows is not None:
            started = time.perf_counter()
            image = job.windows.result()
            job.windows = None
            job.size = (image.shape[1], image.shape[0])
            try:
                job.encoded = self._codec.encode(image)
            except BadInputError as error:
                job.fail(error)
            job.spend("encode", started)
        return job

    def _publish(self, jobs: Iterable[ImageTask], publishers: Executor) -> Iterator[ShardReport]:
        publishing: list[Future[ShardReport]] = []
        last_report = time.monotonic()
        for job in jobs:
            self._record(job)
            self._books.finish_image(job.shard.report.shard)
            if job.shard.report.images == len(job.shard.rows):
                publishing.append(publishers.submit(self._finish, job.shard))
            elif time.monotonic() - last_report > _SECONDS_BETWEEN_REPORTS:
                last_report = time.monotonic()
                yield ShardReport(job.shard.report.shard, job.shard.report.images)
            while publishing and (publishing[0].done() or len(publishing) > 2 * _PUBLISHERS):
                yield self._finished(publishing.pop(0))
        for future in publishing:
            yield self._finished(future)

    def _record(self, job: ImageTask) -> None:
        shard, item = job.shard, job.item
        for stage, seconds in job.stages:
            self._stages.add(stage, seconds)
        shard.report.images += 1
        if isinstance(job.data, BadInputError):
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

    def _finish(self, shard: OpenShard) -> ShardReport:
        started = time.perf_counter()
        shard.report.output_bytes = shard.writer.publish()
        self._books.declare_done(shard.report.shard, [row for row in shard.rows if row is not None])
        shard.report.finished = True
        shard.report.seconds = {"publish": time.perf_counter() - started}
        return shard.report

    def _finished(self, future: Future[ShardReport]) -> ShardReport:
        """The report of a published shard, with what the stages took since the last one."""
        report = future.result()
        for stage, seconds in report.seconds.items():
            self._stages.add(stage, seconds)
        report.seconds, self._stages = self._stages.seconds, StageTimer()
        return report
