"""The process that holds the model. Ray Data makes a pool of them and gives each a chain of shards at a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from p2p.errors import CheckpointError, P2PError
from p2p.model.checkpoint import load_generator
from p2p.model.config import ModelConfig
from p2p.model.cuda_graphs import is_device_lost, is_out_of_memory
from p2p.model.engine import Engine, choose_engine_precision
from p2p.storage.deadline import DECODE_SECONDS, Deadline
from p2p.translation.pipeline.codec import Codec
from p2p.translation.pipeline.pipeline import Pipeline
from p2p.translation.pipeline.tasks import ShardReport
from p2p.translation.pipeline.windows import SizePolicy
from p2p.translation.plan.crash_records import started_shards
from p2p.translation.plan.files import Shard
from p2p.translation.plan.journal import OutputJournal, ShardJournal
from p2p.translation.scenes.translator import SceneTranslator
from p2p.translation.sinks import ShardWriter, open_sink
from p2p.translation.work import Work, open_fetcher

log = logging.getLogger("p2p")

_SECONDS_BETWEEN_REPORTS = 2.0
_SHARD_FIELDS = dataclasses.fields(Shard)


def load_engine(work: Work) -> tuple[Engine, ModelConfig]:
    """Load the model. Raises CheckpointError."""
    settings = work.settings
    generator = load_generator(work.generator_uri)
    if generator.checkpoint_id != settings.checkpoint_id:
        raise CheckpointError(f"{work.generator_uri}: the checkpoint was replaced while the translation was running")
    engine = Engine(
        generator,
        tile_size=None if settings.size_mode == "pad" else settings.tile_size,
        batch_size=work.batch_size,
        device=work.device,
        precision=choose_engine_precision(settings.precision, work.device, generator.config.bits),
        norm_mode=settings.norm_mode,
        dropout=settings.dropout,
        seed=settings.seed,
        threads=work.threads,
    )
    engine.warm_up()
    return engine, generator.config


def make_pipeline(work: Work, open_writer: Callable[[int], ShardWriter], journal: ShardJournal) -> Pipeline:
    """Load the model and put the pipeline around it. Raises CheckpointError."""
    settings = work.settings
    engine, _ = load_engine(work)
    return Pipeline(
        network=engine,
        policy=SizePolicy(settings.size_mode, settings.tile_size, settings.overlap, engine.stride),
        codec=Codec(settings),
        fetcher=open_fetcher(work),
        open_writer=open_writer,
        journal=journal,
        io_threads=work.io_threads,
        codec_threads=work.codec_threads,
        hosts=work.hosts,
        deadline=Deadline(DECODE_SECONDS),
    )


def make_scene_translator(work: Work) -> SceneTranslator:
    """Load the model, for scenes. Raises CheckpointError."""
    engine, model = load_engine(work)
    return SceneTranslator(work.settings, engine, work.fence, model.input_bands, model.output_bands)


class ShardTranslator:
    """Loads the model once; each call translates the shards of one batch and reports on them meanwhile."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(1)  # several threads are several batches, several images
        self._work = work
        self._pipeline: Pipeline | None = None
        self._scenes: SceneTranslator | None = None
        self._last_report = -math.inf

    def __call__(self, batch: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, list[str]]]:
        """Yield reports as JSON, the first when work begins; each has `at`, this machine's clock in seconds.

        They are collected for two seconds: whatever is yielded, however small, costs Ray 20 ms.
        """
        shards = [Shard(*row) for row in zip(*(batch[field.name].tolist() for field in _SHARD_FIELDS), strict=True)]
        waiting: list[str] = []
        for report in self.reports(shards):
            waiting.append(json.dumps({"at": time.time(), **report}))
            if time.monotonic() - self._last_report > _SECONDS_BETWEEN_REPORTS:
                yield {"report": waiting}
                waiting, self._last_report = [], time.monotonic()
        if waiting:
            yield {"report": waiting}

    def reports(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        """Translate `shards`; yield reports on them.

        What must stop the whole job (a full disk, a bucket that refuses, too little memory) is the last report,
        `stopped`: raised here, it would reach the user below pages of Ray's tracebacks.
        """
        try:
            if self._work.settings.format == "geotiff":
                yield from self._translate_scenes(shards)
                return
            if self._pipeline is None:
                settings = self._work.settings
                sink, journal = open_sink(settings, self._work.fence), OutputJournal(settings.output, self._work.fence)
                self._pipeline = make_pipeline(self._work, sink.open_shard, journal)
                yield {}
            for report in self._translate(self._pipeline, shards):
                yield dataclasses.asdict(report)
            if self._pipeline.network.fallbacks:
                yield {"fallbacks": self._pipeline.network.fallbacks}
        except P2PError as error:
            yield {"stopped": str(error)}
        except Exception as error:
            if is_device_lost(error):
                if self._pipeline or self._scenes:  # another process can go on; this one leaves records of its crash
                    log.error("%s", error)
                    os._exit(1)
                yield {"stopped": f"the GPU cannot be used: {str(error).splitlines()[0]}; pass --gpu false"}
                return
            if not is_out_of_memory(error):
                raise
            reason = str(error).split(". ")[0] or "out of memory"
            smaller = f"--batch-size (now {self._work.batch_size}), a smaller " if self._work.device != "cpu" else ""
            advice = f"{reason}; pass a smaller {smaller}--tile-size or fewer --workers"
            yield {"stopped": f"{advice}. The same command continues"}

    def _translate_scenes(self, sections: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        if self._scenes is None:
            self._scenes = make_scene_translator(self._work)
            yield {}
        for report in self._scenes.run(sections):
            yield dataclasses.asdict(report)
        if self._scenes.network.fallbacks:
            yield {"fallbacks": self._scenes.network.fallbacks}

    def _translate(self, pipeline: Pipeline, shards: Sequence[Shard]) -> Iterator[ShardReport]:
        """All shards in one flow, except those in which a process has crashed: these go image by image."""
        started = started_shards(self._work.settings.output)
        yield from pipeline.run(shard for shard in shards if shard.index not in started)
        for shard in shards:
            if shard.index in started:
                yield from pipeline.run([shard], one_by_one=True)
