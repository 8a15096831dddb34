"""The processes that translate: what each is given, what they report; and small work, which one of them does alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from p2p.data.local import LocalWorker, current_worker
from p2p.data.machine import available_cpus
from p2p.errors import P2PError
from p2p.progress import Progress
from p2p.translation.config import TranslateConfig
from p2p.translation.corpus.corpus import Corpus
from p2p.translation.corpus.inputs import Input
from p2p.translation.plan.files import Shard
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.work import Work

log = logging.getLogger("p2p")

ACTORS_PER_GPU = 2
"""One computes while the other copies."""
_GPU_BATCH = 64
_CPU_BATCH, _CPU_BATCH_PIXELS = 8, 2**19  # larger ones are no quicker and take memory
SHARD_COLUMNS = tuple(field.name for field in dataclasses.fields(Shard))
CORES_PER_SCENE = 4
"""Of a process that translates scenes: so many network threads one thread keeps busy that reads, blends and encodes."""
MAX_CHAIN = 64
"""Shards that a process gets at once; batches fill up across them."""
_SMALL_TILES_PER_CORE, _SMALL_CORES = 400, 4  # about half a minute; a single process makes little use of more cores
_PIXELS_PER_BYTE = 2  # of a JPEG of high quality; a PNG has fewer
_TILES_OF_UNKNOWN = 4  # of an image whose size the listing does not tell


@dataclass
class Outcome:
    """What the actors reported of the shards they finished."""

    reported: set[int] = field(default_factory=set)
    translated: int = 0
    kept: int = 0
    """Translated by an earlier attempt, in shards whose failures were tried again."""
    with_failures: set[int] = field(default_factory=set)
    pixels: int = 0
    output_bytes: int = 0
    seconds: float = 0.0
    """From the moment the first actor began until the last report, start-up left out."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, all actors and threads together."""
    fallbacks: list[str] = field(default_factory=list)
    """Why the network ran slower than it could, for a person."""

    def add_work(self, report: Mapping[str, Any]) -> None:
        """Count what a shard, or a section of a scene, took."""
        self.pixels += report["pixels"]
        self.output_bytes += report["output_bytes"]
        for stage, seconds in report["seconds"].items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds


def on_gpu(work: Work, batch_size: int, cores: int) -> Work:
    """`work` for a process that has a GPU and `cores` cores beside it."""
    return dataclasses.replace(
        work, device="cuda", batch_size=batch_size or _GPU_BATCH, threads=1, codec_threads=max(2, cores)
    )


def on_cores(work: Work, cores: int) -> Work:
    """`work` for a process that has `cores` cores. Each computes batches of one shape alone: a processor's kernels, and
    with them the rounding, are chosen by the shape of a batch and by the threads that share it.
    """
    size = work.settings.tile_size if work.settings.size_mode != "pad" else 1  # images have their own sizes there
    fixed = max(1, min(_CPU_BATCH, _CPU_BATCH_PIXELS // size**2))
    return dataclasses.replace(work, device="cpu", batch_size=fixed, threads=cores)


def chains_of(shards: Sequence[Shard], actors: int, longest: int) -> list[list[Shard]]:
    """Cut the list into chains, long ones first and single shards last, so that actors finish at the same time."""
    chains: list[list[Shard]] = []
    start = 0
    while start < len(shards):
        length = min(longest, max(1, (len(shards) - start) // (2 * actors)))
        chains.append(list(shards[start : start + length]))
        start += length
    return chains


def is_small(config: TranslateConfig, corpus: Corpus, tile_size: int) -> bool:
    """Whether one process of this machine translates `corpus` in about the time that it takes to start Ray."""
    if config.format == "geotiff" and available_cpus() <= CORES_PER_SCENE:
        return True  # one process makes use of them all
    limit = _SMALL_TILES_PER_CORE * min(_SMALL_CORES, available_cpus())

    def tiles(item: Input) -> int:
        if config.size_mode == "resize":
            return 1
        return max(1, item.size * _PIXELS_PER_BYTE // tile_size**2) if item.size else _TILES_OF_UNKNOWN

    items = itertools.islice(corpus.items(), config.limit or None)
    return all(total <= limit for total in itertools.accumulate(map(tiles, items)))


@contextlib.contextmanager
def local_workforce(config: TranslateConfig) -> Iterator[Callable[[Work, RemainingWork], Outcome]]:
    """One process of this machine does the work. Raises UsageError if the machine lacks what was asked for."""
    worker = current_worker()
    assert worker is not None
    yield functools.partial(_translate_locally, worker, config, worker.call(_device_of, config.gpu))


# What follows runs in the process, which loads torch; the job itself does not.


def _device_of(gpu: str) -> str:
    from p2p.model.engine import choose_device

    return choose_device(gpu).type


def _open_translator(work: Work) -> Callable[[Mapping[str, Any]], Iterator[dict[str, list[str]]]]:
    from p2p.translation.actor import ShardTranslator

    return ShardTranslator(work)


def _translate_locally(
    worker: LocalWorker, config: TranslateConfig, device: str, work: Work, left: RemainingWork
) -> Outcome:
    cores = available_cpus()
    on_a_gpu = device == "cuda"
    work = on_gpu(work, config.batch_size, cores) if on_a_gpu else on_cores(work, cores + 1)
    log.info(
        "translating %d images on the %s in one process, without starting Ray: they are few (--workers N uses Ray)",
        left.images - left.images_done,
        "GPU" if on_a_gpu else "CPU",
    )
    batches = [
        {name: np.array([getattr(shard, name) for shard in chain]) for name in SHARD_COLUMNS}
        for chain in chains_of(left.units, 1, MAX_CHAIN)
    ]
    # Crash records count the processes that end, image by image.
    reports = worker.map(_open_translator, (work,), batches, max_attempts=math.inf)
    return follow(({"report": report} for batch in reports for report in batch["report"]), left)


def follow(rows: Iterator[Mapping[str, Any]], left: RemainingWork) -> Outcome:
    """Show the progress that `rows` report, and add them up as `collect` does."""
    first = list(itertools.islice(rows, 1))  # only now has a process begun; start-up is no part of the rate
    began = max(0.0, time.time() - json.loads(first[0]["report"])["at"]) if first else 0.0
    total, unit, done = left.images, "images", left.images_done
    if left.sections is not None:
        total, unit, done = len(left.sections), "sections", 0
    with Progress("translate", total=total, unit=unit, done_before=done, seconds_before=began) as progress:
        return collect(itertools.chain(first, rows), progress)


def collect(rows: Iterable[Mapping[str, Any]], progress: Progress) -> Outcome:
    """Add up the reports. Where an actor died Ray may repeat or swallow some: none is counted twice, and what was not
    reported is read from the ledger afterwards. Raises P2PError if an actor reports that the work must stop.
    """
    outcome = Outcome()
    seen: dict[int, int] = {}
    sections: set[tuple[int, int]] = set()
    began, last = math.inf, -math.inf
    for row in rows:
        report = json.loads(row["report"])
        began, last = min(began, report["at"]), max(last, report["at"])
        if "stopped" in report:
            raise P2PError(report["stopped"])
        for reason in report.get("fallbacks", ()):
            if reason not in outcome.fallbacks:
                log.warning("%s", reason)
                outcome.fallbacks.append(reason)
        if "shard" not in report:
            continue
        shard = report["shard"]
        if report["section"] >= 0:
            if (shard, report["section"]) not in sections:
                sections.add((shard, report["section"]))
                progress.advance(1)
                outcome.add_work(report)
            continue
        advanced = report["images"] - seen.get(shard, 0)
        if advanced > 0:
            seen[shard] = report["images"]
            progress.advance(advanced)
        if report["finished"] and shard not in outcome.reported:
            outcome.reported.add(shard)
            outcome.translated += report["translated"]
            outcome.kept += report["kept"]
            if report["failed"]:
                outcome.with_failures.add(shard)
            outcome.add_work(report)
    outcome.seconds = max(0.0, last - began)
    return outcome
