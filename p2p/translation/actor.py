"""The process that holds the model. Ray Data makes a pool of them and hands each a chain of shards at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from p2p.errors import CheckpointError, P2PError
from p2p.model.checkpoint import load_generator
from p2p.model.engine import Engine, choose_precision
from p2p.storage.bounded import DEFAULT_MAX_BYTES
from p2p.storage.deadline import DECODE_SECONDS, Deadline
from p2p.storage.filesystems import exists, is_remote
from p2p.translation.config import Settings
from p2p.translation.corpus.inputs import Input
from p2p.translation.corpus.manifest import ManifestCorpus
from p2p.translation.pipeline.circuit_breaker import LOCAL
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.fetching import InputFetcher
from p2p.translation.pipeline.pipeline import Pipeline, ShardBooks
from p2p.translation.pipeline.tasks import ShardReport
from p2p.translation.pipeline.windows import SizePolicy
from p2p.translation.plan.crash_records import CrashRecord, begun_shards, open_record
from p2p.translation.plan.ledger import LedgerRow, ledger_uri, read_kept, write_ledger
from p2p.translation.plan.plan import Shard, read_inputs
from p2p.translation.sinks import Sink, open_sink

_LOCAL_IO_THREADS, _REMOTE_IO_THREADS = 4, 16
_SECONDS_BETWEEN_REPORTS = 2.0
_SHARD_FIELDS = dataclasses.fields(Shard)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything a process needs to know to translate shards. Small and picklable: settings and addresses."""

    generator_uri: str
    output: str
    settings: Settings
    image_column: str
    max_pixels: int
    batch_size: int
    device: str
    threads: int
    """Of a CPU's network; each computes a batch by itself."""
    codec_threads: int
    io_threads: int = 1
    hosts: int = 1
    """On so many servers the corpus lies."""
    max_bytes: int = DEFAULT_MAX_BYTES
    """Of one encoded input."""
    allow_private: bool = True
    """Whether its web addresses may lead into private networks."""
    manifest: ManifestCorpus | None = None
    """Where addresses with a signature stand."""

    def reading_from(self, hosts: Collection[str]) -> Work:
        """The same for a corpus that lies on `hosts`."""
        far = is_remote(self.output) or any(host != LOCAL for host in hosts)
        return dataclasses.replace(self, hosts=len(hosts), io_threads=_REMOTE_IO_THREADS if far else _LOCAL_IO_THREADS)


def open_fetcher(work: Work) -> InputFetcher:
    """What reads the inputs of `work`."""
    return InputFetcher(
        work.image_column, max_bytes=work.max_bytes, allow_private=work.allow_private, manifest=work.manifest
    )


def make_pipeline(work: Work, sink: Sink, books: ShardBooks) -> Pipeline:
    """Load the model and put the pipeline around it. Raises CheckpointError."""
    settings = work.settings
    generator = load_generator(work.generator_uri)
    if generator.checkpoint_id != settings.checkpoint_id:
        raise CheckpointError(f"{work.generator_uri}: the checkpoint was replaced while the translation was running")
    engine = Engine(
        generator,
        tile_size=None if settings.size_mode == "pad" else settings.tile_size,
        batch_size=work.batch_size,
        device=work.device,
        precision=choose_precision(settings.precision, work.device),
        norm_mode=settings.norm_mode,
        dropout=settings.dropout,
        seed=settings.seed,
        threads=work.threads,
    )
    engine.warm_up()
    return Pipeline(
        network=engine,
        policy=SizePolicy(settings.size_mode, settings.tile_size, settings.overlap, engine.stride),
        codec=Codec(settings.side, work.max_pixels, settings.image_format, settings.quality, settings.png_level),
        fetcher=open_fetcher(work),
        sink=sink,
        books=books,
        io_threads=work.io_threads,
        codec_threads=work.codec_threads,
        hosts=work.hosts,
        deadline=Deadline(DECODE_SECONDS),
    )


class ShardTranslator:
    """Loads the model once; each call translates the shards of one batch and tells about them while it does."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(1)  # several threads are several batches, several images
        self._work = work
        self._records: dict[int, CrashRecord] = {}
        self._pipeline: Pipeline | None = None
        self._told = -math.inf

    def __call__(self, batch: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, list[str]]]:
        """Yield reports as JSON, the first when work begins; each has `at`, this machine's clock in seconds.

        They are gathered for two seconds: whatever is yielded, however small, costs Ray 20 ms.
        """
        shards = [Shard(*row) for row in zip(*(batch[field.name].tolist() for field in _SHARD_FIELDS), strict=True)]
        waiting: list[str] = []
        for report in self.reports(shards):
            waiting.append(json.dumps({"at": time.time(), **report}))
            if time.monotonic() - self._told > _SECONDS_BETWEEN_REPORTS:
                yield {"report": waiting}
                waiting, self._told = [], time.monotonic()
        if waiting:
            yield {"report": waiting}

    def reports(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        """Translate `shards`; yield what there is to tell of them.

        What must stop the whole job (a full disk, a bucket that refuses, too little memory) is the last report,
        `stopped`: raised here, it would reach the user below pages of Ray's tracebacks.
        """
        try:
            if self._pipeline is None:
                self._pipeline = make_pipeline(
                    self._work, open_sink(self._work.output, self._work.settings), self._books()
                )
                yield {}
            for report in self._translate(self._pipeline, shards):
                yield dataclasses.asdict(report)
            if self._pipeline.network.fallbacks:
                yield {"fallbacks": self._pipeline.network.fallbacks}
        except P2PError as error:
            yield {"stopped": str(error)}
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = str(error).split(". ")[0] or "out of memory"
            smaller = f"--batch-size (now {self._work.batch_size}), a smaller " if self._work.device != "cpu" else ""
            advice = f"{reason}; pass a smaller {smaller}--tile-size or fewer --workers"
            yield {"stopped": f"{advice}. The same command continues"}

    def _translate(self, pipeline: Pipeline, shards: Sequence[Shard]) -> Iterator[ShardReport]:
        """All shards in one flow, except those at which a process has crashed: these go image by image."""
        begun = begun_shards(self._work.output)
        yield from pipeline.run(shard for shard in shards if shard.index not in begun)
        for shard in shards:
            if shard.index in begun:
                yield from pipeline.run([shard], one_by_one=True)

    def _books(self) -> ShardBooks:
        output = self._work.output
        return ShardBooks(
            self._read_inputs,
            self._declare_done,
            functools.partial(read_kept, output),
            self._begin,
            self._start_read,
            self._start_row,
            self._start_image,
            self._finish_image,
        )

    def _read_inputs(self, shard: Shard) -> list[Input]:
        """Nothing for a shard that was finished before this call was made again, after its first process had died."""
        if exists(ledger_uri(self._work.output, shard.index)):
            return []
        return read_inputs(shard)

    def _begin(self, shard: int) -> None:
        self._records[shard] = open_record(self._work.output, shard)

    def _declare_done(self, shard: int, rows: Sequence[LedgerRow]) -> None:
        write_ledger(self._work.output, shard, rows)
        self._records.pop(shard).remove()

    def _start_read(self, shard: int, position: int) -> bool:
        record = self._records[shard]
        return record.watched and record.start_read(position)

    def _start_row(self, shard: int, position: int) -> None:
        self._records[shard].start_row(position)

    def _start_image(self, shard: int, position: int) -> None:
        """Called for every image; only those of a suspected shard are recorded."""
        record = self._records[shard]
        if record.watched:
            record.start_image(position)

    def _finish_image(self, shard: int) -> None:
        record = self._records[shard]
        if record.watched:
            record.finish_image()
