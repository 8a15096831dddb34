"""`--dry-run`: what a translation would take, from a sample of 1 %. Nothing is written."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from p2p.data.machine import available_cpus
from p2p.data.tasks import run_as_task
from p2p.errors import ConfigError
from p2p.model.engine import choose_device
from p2p.progress import format_duration
from p2p.translation.actor import make_pipeline, make_scene_translator
from p2p.translation.config import TranslateConfig
from p2p.translation.corpus.addresses import host_of
from p2p.translation.corpus.corpus import Corpus
from p2p.translation.corpus.inputs import Input
from p2p.translation.plan.crash_records import CrashRecord
from p2p.translation.plan.files import Shard
from p2p.translation.plan.journal import StartedShard
from p2p.translation.plan.ledger import LedgerRow
from p2p.translation.pool import ACTORS_PER_GPU, on_gpu
from p2p.translation.scenes.estimate import measure_scenes
from p2p.translation.sinks import Record
from p2p.translation.work import Work

log = logging.getLogger("p2p")

_SHARE = 0.01
_SCENE_SHARE = 1.0  # of which only the headers are read; one may be a thousand times as large as another
_MAX_SAMPLE = 200


def dry_run(config: TranslateConfig, corpus: Corpus, work: Work) -> dict[str, Any]:
    """Time a sample on this machine, or on the cluster that RAY_ADDRESS names, and return the estimate.

    `work` is for one core. Raises ConfigError if the GPU that `config` asks for is not there.
    """
    if not os.environ.get("RAY_ADDRESS"):
        gpus = torch.cuda.device_count() if choose_device(config.gpu).type == "cuda" else 0
        cores = available_cpus()
        return _estimate(config, corpus, work, cores // max(1, gpus), gpus)
    from p2p.data.cluster import cluster_cpus, cluster_gpus, cpus_per_gpu
    from p2p.data.session import ray_session

    with ray_session():
        gpus = cluster_gpus() if config.gpu != "false" else 0
        if config.gpu == "true" and not gpus:
            raise ConfigError("gpu", "true: the cluster has no GPU that is up; pass --gpu auto or false")
        cores = cluster_cpus()
        log.info("measuring one process on the cluster, which has %d CPUs and %d GPUs now", cores, gpus)
        return _estimate(config, corpus, work, cpus_per_gpu() if gpus else cores, gpus)


def _estimate(config: TranslateConfig, corpus: Corpus, work: Work, cores: int, gpus: int) -> dict[str, Any]:
    """`cores` are those beside each GPU, where there are GPUs."""
    if gpus:
        processes = config.workers or ACTORS_PER_GPU * gpus
        return estimate(config, corpus, on_gpu(work, config.batch_size, cores), processes, min(processes, gpus))
    processes = config.workers or cores
    return estimate(config, corpus, work, processes, min(cores, processes * max(1, cores // processes)))


def sample(corpus: Corpus, limit: int, share: float = _SHARE) -> tuple[int, list[Input]]:
    """Number of inputs, and 1 % of them (1 to 200) spread evenly over the listing, which is not kept in memory."""
    kept: list[Input] = []
    stride = 1
    count = 0
    for item in corpus.items():
        if limit and count == limit:
            break
        if count % stride == 0:
            kept.append(item)
            if len(kept) > 2 * _MAX_SAMPLE:
                kept, stride = kept[::2], 2 * stride
        count += 1
    wanted = min(_MAX_SAMPLE, max(1, round(share * count)))
    step = max(1, len(kept) // wanted)
    return count, kept[::step][:wanted]


class _NullWriter:
    """Takes the images of a shard and keeps none."""

    def add(self, record: Record) -> str:
        return ""

    def keep(self, image_ids: Collection[str]) -> set[str]:
        return set()

    def fail(self, image_id: str) -> None:
        pass

    def publish(self) -> int:
        return 0

    def discard(self) -> None:
        pass


@dataclass(frozen=True)
class _SampleJournal:
    """Shards that are in memory; nothing is written down of them."""

    shards: Sequence[Sequence[Input]]

    def start_shard(self, shard: Shard) -> StartedShard:
        return StartedShard(self.shards[shard.index], CrashRecord(""))

    def check_lease(self) -> None:
        pass

    def may_publish(self, shard: int) -> bool:
        return True

    def finish_shard(self, shard: int, rows: Sequence[LedgerRow], record: CrashRecord) -> bool:
        return True


def _measure(work: Work, chosen: Sequence[Input]) -> tuple[float, int, int, dict[str, int]]:
    """Translate `chosen`, of scenes some windows. Returns the seconds that all of it takes, how many can be
    translated, their pixels, and how many parts scenes have.
    """
    torch.set_num_threads(1)
    if work.settings.format == "geotiff":
        seconds, found = measure_scenes(make_scene_translator(work), chosen)
        return seconds, found.scenes, found.pixels, {"sections": found.sections, "tiles": found.tiles}
    journal = _SampleJournal([chosen[:1], chosen])  # the first image pays for memory and kernels
    hosts = {host_of(item.source_uri) for item in chosen}
    pipeline = make_pipeline(work.reading_from(hosts), lambda shard: _NullWriter(), journal)
    list(pipeline.run([Shard(0, "", 0, 1)]))
    started = time.monotonic()
    reports = [report for report in pipeline.run([Shard(1, "", 0, len(chosen))]) if report.finished]
    seconds = time.monotonic() - started
    return seconds, sum(report.translated for report in reports), sum(report.pixels for report in reports), {}


def estimate(config: TranslateConfig, corpus: Corpus, work: Work, processes: int, undisturbed: int) -> dict[str, Any]:
    """Time a sample in one process, by itself, and scale it. Returns and logs the estimate.

    That process is a worker of the cluster where Ray runs, and a child of this one elsewhere.

    undisturbed: the number of processes of that speed that do as much as all `processes`, which share cores and GPUs.
    """
    of_scenes = config.format == "geotiff"
    count, chosen = sample(corpus, config.limit, _SCENE_SHARE if of_scenes else _SHARE)
    seconds, translated, pixels, parts = run_as_task(_measure, work, chosen, num_gpus=int(work.device == "cuda"))
    if of_scenes:  # a section is the work of one process
        undisturbed = min(undisturbed, max(1, round(parts["sections"] / len(chosen) * count)))
    rate = len(chosen) / seconds * undisturbed
    total_seconds = count / rate
    megapixels = pixels / len(chosen) * count / 1e6
    result = {
        "dry_run": True,
        "images": count,
        **{name: round(number / len(chosen) * count) for name, number in parts.items()},
        "megapixels": round(megapixels, 1),
        "sampled": len(chosen),
        "sampled_failed": len(chosen) - translated,
        "processes": processes,
        "images_per_second": round(rate, 2),
        "megapixels_per_second": round(megapixels / total_seconds, 3),
        "estimated_seconds": round(total_seconds, 3),
        "checkpoint_id": work.settings.checkpoint_id,
    }
    cost = ""
    if config.price_per_hour:
        result["estimated_cost"] = round(total_seconds / 3600 * config.price_per_hour, 4)
        cost = f" and cost about {result['estimated_cost']}"
    speed = f"{megapixels / total_seconds:.1f} megapixels/s" if of_scenes else f"{rate:.1f} images/s"
    log.info(
        "%d %s would take about %s with %d processes (%s, from %d sampled, %d of those bad)%s",
        *(count, "scenes" if of_scenes else "images", format_duration(total_seconds), processes),
        *(speed, len(chosen), len(chosen) - translated, cost),
    )
    return result
