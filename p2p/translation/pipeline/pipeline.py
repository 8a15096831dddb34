"""What one process does with the shards it is given: fetch, decode, network, encode and publish, all overlapping.

Images flow through without regard to shards, so that batches fill up across images and across shards; a shard is
published when its last image has come out. Memory is bounded by the windows below, not by the length of the flow.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.errors import BadInputError, StorageError
from p2p.storage.images import image_size
from p2p.translation.pipeline.batching import Batcher, Network
from p2p.translation.pipeline.circuit_breaker import CircuitBreaker
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.fetching import FETCH_FAILED, InputFetcher
from p2p.translation.pipeline.prefetch import prefetch
from p2p.translation.pipeline.tasks import ImageTask, OpenShard, ShardReport
from p2p.translation.pipeline.windows import SizePolicy
from p2p.translation.plan.files import Shard
from p2p.translation.plan.journal import ShardJournal, StartedShard
from p2p.translation.plan.ledger import LedgerRow
from p2p.translation.sinks import Record, ShardWriter

Array = npt.NDArray[np.uint8]

_MAX_FETCHED_BYTES = 64 * 2**20
_MAX_DECODED_PIXELS = 32 * 2**20  # 96 MB
_PUBLISHERS = 4
_SECONDS_BETWEEN_REPORTS = 1.0


class Pipeline:
    """Translates shards with one network.

    io_threads read ahead. codec_threads decode and encode beside the network; 0 does both in the calling thread, which
    is quickest where the network itself uses the core. `deadline` is entered wherever an image is decoded. `hosts` is
    how many servers hold the corpus.
    """

    def __init__(
        self,
        *,
        network: Network,
        policy: SizePolicy,
        codec: Codec,
        fetcher: InputFetcher,
        open_writer: Callable[[int], ShardWriter],
        journal: ShardJournal,
        io_threads: int,
        codec_threads: int,
        hosts: int = 1,
        deadline: contextlib.AbstractContextManager[None] | None = None,
    ) -> None:
        self.network, self._policy, self._codec = network, policy, codec
        self._fetcher, self._open_writer = fetcher, open_writer
        self._journal = journal
        self._deadline = deadline or contextlib.nullcontext()
        self._io_threads, self._codec_threads = io_threads, codec_threads
        self._waited = 0.0
        self._breaker = CircuitBreaker(hosts)

    def run(self, shards: Iterable[Shard], one_by_one: bool = False) -> Iterator[ShardReport]:
        """Translate `shards`; yield a report about once a second, and one for each shard when it is finished.

        one_by_one: no image is touched before the one before it is through, so that it is known which one crashes.
        Raises StorageError if outputs cannot be written. What is bad about an input goes into the ledger.
        """
        io = None if one_by_one else ThreadPoolExecutor(self._io_threads, thread_name_prefix="fetch")
        threaded = self._codec_threads and not one_by_one
        codec = ThreadPoolExecutor(self._codec_threads, thread_name_prefix="codec") if threaded else None
        publishers = ThreadPoolExecutor(_PUBLISHERS, thread_name_prefix="publish")
        open_shards: list[OpenShard] = []
        try:
            yield from self._publish(self._tasks(shards, open_shards, io, codec), publishers)
        finally:
            for pool in (io, codec, publishers):
                if pool is not None:
                    pool.shutdown(wait=True, cancel_futures=True)
            for shard in open_shards:
                if not shard.report.finished:
                    shard.writer.discard()

    def _tasks(
        self, shards: Iterable[Shard], open_shards: list[OpenShard], io: Executor | None, codec: Executor | None
    ) -> Iterator[ImageTask]:
        def wait(seconds: float) -> None:
            self._waited += seconds

        def on_codec(call: Callable[[ImageTask], ImageTask], tasks: Iterable[ImageTask]) -> Iterator[ImageTask]:
            return prefetch(
                call,
                tasks,
                codec,
                count=2 * self._codec_threads,
                weigh=lambda task: task.pixels,
                max_weight=_MAX_DECODED_PIXELS,
                waited=wait,
            )

        fetched = prefetch(
            functools.partial(self._fetch, one_by_one=io is None),
            self._units(shards, open_shards, io),
            io,
            count=2 * self._io_threads,
            weigh=lambda unit: sum(task.item.size for task in unit),
            max_weight=_MAX_FETCHED_BYTES,
            waited=wait,
        )
        batcher = Batcher(self.network, self._policy, one_by_one=io is None)
        return on_codec(self._encode, batcher.run(on_codec(self._decode, self._readable(fetched))))

    def _units(
        self, shards: Iterable[Shard], open_shards: list[OpenShard], io: Executor | None
    ) -> Iterator[list[ImageTask]]:
        def start(shard: Shard) -> tuple[Shard, StartedShard | None]:
            return shard, self._journal.start_shard(shard)

        for shard, started in prefetch(start, shards, io, count=2):  # a slow disk or bucket holds nothing up
            if started is None:
                continue
            inputs, before = started.inputs, started.kept
            writer = self._open_writer(shard.index)
            kept = writer.keep(before) if before else set()
            rows = [before[item.image_id] if item.image_id in kept else None for item in inputs]
            report = ShardReport(shard.index, images=len(rows) - rows.count(None))
            report.kept = report.images
            opened = OpenShard(report, writer, started.record, rows)
            open_shards[:] = [*(other for other in open_shards if not other.report.finished), opened]
            positions = [position for position, row in enumerate(rows) if row is None]
            remaining = iter(positions)
            for unit in self._fetcher.units([inputs[position] for position in positions]):
                yield [ImageTask(opened, next(remaining), item, b"") for item in unit]

    def _fetch(self, unit: list[ImageTask], one_by_one: bool) -> list[ImageTask]:
        started = time.perf_counter()
        try:
            if self._breaker.is_open(unit[0].item.source_uri):
                raise BadInputError(
                    FETCH_FAILED, "its server has not answered many reads in a row and was not asked again"
                )
            record = unit[0].shard.record

            def start_row(index: int) -> None:
                record.start_row(unit[index].position)

            row_by_row = record.start_read(unit[0].position)
            fetched = self._fetcher.fetch([task.item for task in unit], start_row if row_by_row else None)
        except BadInputError as error:
            fetched = [error] * len(unit)
        for task, data in zip(unit, fetched, strict=True):
            task.data = data
            if isinstance(data, bytes) and not one_by_one:
                try:  # the header alone, so that decoding can be kept within bounds
                    with self._deadline:
                        width, height = image_size(data, self._codec.config.max_pixels)
                    task.pixels = width * height
                except BadInputError as error:
                    task.fail(error)
        unit[0].seconds["fetch"] = time.perf_counter() - started
        return unit

    def _readable(self, units: Iterable[list[ImageTask]]) -> Iterator[ImageTask]:
        """Pass the inputs on. Where no read is answered it is the storage that is bad, and the work must stop."""
        for unit in units:
            errors = [
                task.data for task in unit if isinstance(task.data, BadInputError) and task.data.kind == FETCH_FAILED
            ]
            if not self._breaker.record(unit[0].item.source_uri, answered=len(errors) < len(unit)):
                raise StorageError(
                    f"many reads in a row have failed, the last with: {errors[-1]}; "
                    f"once the storage answers again, the same command continues"
                )
            yield from unit

    def _decode(self, task: ImageTask) -> ImageTask:
        if isinstance(task.data, bytes):
            started = time.perf_counter()
            try:
                task.shard.record.start_image(task.position)
                with self._deadline:
                    image = self._codec.decode(task.data)
                    task.data = b""
                    if self.network.input_channels == 1:
                        image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
                    task.windows = self._policy(image)
            except BadInputError as error:
                task.fail(error)
            task.seconds["decode"] = time.perf_counter() - started
        return task

    def _encode(self, task: ImageTask) -> ImageTask:
        if task.windows is not None:
            started = time.perf_counter()
            image = task.windows.result()
            task.windows = None
            task.size = (image.shape[1], image.shape[0])
            try:
                task.encoded = self._codec.encode(image)
            except BadInputError as error:
                task.fail(error)
            task.seconds["encode"] = time.perf_counter() - started
        return task

    def _publish(self, tasks: Iterable[ImageTask], publishers: Executor) -> Iterator[ShardReport]:
        publishing: list[Future[ShardReport]] = []
        last_report = time.monotonic()
        for task in tasks:
            self._record(task)
            task.shard.record.finish_image()
            if task.shard.report.images == len(task.shard.rows):
                task.shard.report.seconds["wait"], self._waited = self._waited, 0.0
                publishing.append(publishers.submit(self._finish, task.shard))
            elif time.monotonic() - last_report > _SECONDS_BETWEEN_REPORTS:
                last_report = time.monotonic()
                yield ShardReport(task.shard.report.shard, images=task.shard.report.images)
            while publishing and (publishing[0].done() or len(publishing) > 2 * _PUBLISHERS):
                yield publishing.pop(0).result()
        for future in publishing:
            yield future.result()

    def _record(self, task: ImageTask) -> None:
        self._journal.check_lease()
        report, writer, rows = task.shard.report, task.shard.writer, task.shard.rows
        item = task.item
        report.images += 1
        if isinstance(task.data, BadInputError):
            report.failed += 1
            writer.fail(item.image_id)
            rows[task.position] = LedgerRow(item.image_id, "failed", task.data.kind, str(task.data))
        else:
            report.translated += 1
            report.pixels += task.size[0] * task.size[1]
            milliseconds = 1000 * sum(task.seconds[stage] for stage in ("decode", "network", "encode"))
            started = time.perf_counter()
            uri = writer.add(Record(item.image_id, task.encoded, *task.size, item.source_uri, milliseconds))
            task.encoded = b""
            task.seconds["publish"] = time.perf_counter() - started
            rows[task.position] = LedgerRow(item.image_id, "translated", output_uri=uri)
        for stage, seconds in task.seconds.items():
            report.seconds[stage] += seconds

    def _finish(self, shard: OpenShard) -> ShardReport:
        started = time.perf_counter()
        if not self._journal.may_publish(shard.report.shard):
            shard.writer.discard()
            return shard.report
        shard.report.output_bytes = shard.writer.publish()
        rows = [row for row in shard.rows if row is not None]
        shard.report.finished = self._journal.finish_shard(shard.report.shard, rows, shard.record)
        shard.report.seconds["publish"] += time.perf_counter() - started
        return shard.report
