"""The process that holds the model. Ray Data makes a pool of them and hands each a chain of shards at a time."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from p2p.errors import CheckpointError, P2PError
from p2p.model.allocator import keep_freed_memory
from p2p.model.checkpoint import load_generator
from p2p.model.engine import Engine, choose_precision
from p2p.storage.filesystems import exists
from p2p.translation.codec import Codec
from p2p.translation.config import Settings
from p2p.translation.fetching import Fetcher
from p2p.translation.inputs import Input
from p2p.translation.ledger import LedgerRow, ledger_uri, write_ledger
from p2p.translation.pipeline import Pipeline
from p2p.translation.plan import Shard, read_inputs
from p2p.translation.sinks import Sink, open_sink
from p2p.translation.windows import SizePolicy


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
    torch_threads: int
    codec_threads: int
    io_threads: int


def make_pipeline(
    work: Work,
    sink: Sink,
    read_inputs: Callable[[Shard], list[Input]],
    declare_done: Callable[[int, Sequence[LedgerRow]], None],
) -> Pipeline:
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
    )
    return Pipeline(
        network=engine,
        policy=SizePolicy(settings.size_mode, settings.tile_size, settings.overlap, engine.stride),
        codec=Codec(settings.side, work.max_pixels, settings.image_format, settings.quality),
        fetcher=Fetcher(work.image_column),
        sink=sink,
        read_inputs=read_inputs,
        declare_done=declare_done,
        io_threads=work.io_threads,
        codec_threads=work.codec_threads,
    )


def _row(report: Mapping[str, Any]) -> dict[str, list[str]]:
    return {"report": [json.dumps({"at": time.time(), **report})]}


class ShardTranslator:
    """Loads the model once; each call translates the shards of one batch and tells about them while it does."""

    def __init__(self, work: Work) -> None:
        keep_freed_memory()
        torch.set_num_threads(work.torch_threads)
        self._work = work
        sink = open_sink(work.output, work.settings)
        self._pipeline = make_pipeline(work, sink, self._read_inputs, functools.partial(write_ledger, work.output))

    def __call__(self, batch: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, list[str]]]:
        """Yield reports as JSON, the first when work begins; each has `at`, this machine's clock in seconds.

        What must stop the whole job (a full disk, a bucket that refuses) is the last report, `stopped`: raised here, it
        would reach the user below pages of Ray's tracebacks.
        """
        yield _row({})
        rows = zip(*(batch[field.name].tolist() for field in dataclasses.fields(Shard)), strict=True)
        try:
            for report in self._pipeline.run(Shard(*row) for row in rows):
                yield _row(dataclasses.asdict(report))
        except P2PError as error:
            yield _row({"stopped": str(error)})

    def _read_inputs(self, shard: Shard) -> list[Input]:
        """Nothing for a shard that was finished before this call was made again, after its first process had died."""
        return [] if exists(ledger_uri(self._work.output, shard.index)) else read_inputs(shard)
