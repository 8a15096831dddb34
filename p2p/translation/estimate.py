"""`--dry-run`: what a translation would take, from a sample of 1 %. Nothing is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch

from p2p.data.tasks import run_as_task
from p2p.progress import format_duration
from p2p.translation.actor import Work, make_pipeline
from p2p.translation.config import TranslateConfig
from p2p.translation.corpus.corpus import Corpus
from p2p.translation.corpus.inputs import Input
from p2p.translation.pipeline.circuit_breaker import host_of
from p2p.translation.pipeline.pipeline import ShardBooks
from p2p.translation.plan.plan import Shard
from p2p.translation.sinks import Record

log = logging.getLogger("p2p")

_SHARE = 0.01
_MOST = 200


def sample(corpus: Corpus, limit: int) -> tuple[int, list[Input]]:
    """Number of inputs, and 1 % of them (1 to 200) spread evenly over the listing, which is not kept in memory."""
    kept: list[Input] = []
    stride = 1
    count = 0
    for item in corpus.items():
        if limit and count == limit:
            break
        if count % stride == 0:
            kept.append(item)
            if len(kept) > 2 * _MOST:
                kept, stride = kept[::2], 2 * stride
        count += 1
    wanted = min(_MOST, max(1, round(_SHARE * count)))
    step = max(1, len(kept) // wanted)
    return count, kept[::step][:wanted]


class _Nowhere:
    """A sink, and its writer, that keep nothing."""

    def open_shard(self, shard: int) -> _Nowhere:
        return self

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


def _measure(work: Work, chosen: Sequence[Input]) -> tuple[float, int, int]:
    """Translate `chosen`. Returns the seconds that took, how many could be translated, and their pixels."""
    torch.set_num_threads(1)
    held = [chosen[:1], chosen]  # the first image pays for memory and kernels
    books = ShardBooks(lambda shard: list(held[shard.index]), lambda shard, rows: None)
    hosts = {host_of(item.source_uri) for item in chosen}
    pipeline = make_pipeline(work.reading_from(hosts), _Nowhere(), books)
    list(pipeline.run([Shard(0, "", 0, 1)]))
    started = time.monotonic()
    reports = [report for report in pipeline.run([Shard(1, "", 0, len(chosen))]) if report.finished]
    seconds = time.monotonic() - started
    return seconds, sum(report.translated for report in reports), sum(report.pixels for report in reports)


def estimate(config: TranslateConfig, corpus: Corpus, work: Work, processes: int, undisturbed: int) -> dict[str, Any]:
    """Time a sample in one process, by itself, and scale it. Returns and logs the estimate.

    That process is a worker of the cluster where Ray runs, and this one elsewhere.

    undisturbed: as how many such processes the `processes` of the job together are, that share its cores and GPUs.
    """
    count, chosen = sample(corpus, config.limit)
    seconds, translated, pixels = run_as_task(_measure, work, chosen, num_gpus=int(work.device == "cuda"))
    rate = len(chosen) / seconds * undisturbed
    whole = count / rate
    result = {
        "dry_run": True,
        "images": count,
        "megapixels": round(pixels / max(translated, 1) * count / 1e6, 1),
        "sampled": len(chosen),
        "sampled_failed": len(chosen) - translated,
        "processes": processes,
        "images_per_second": round(rate, 2),
        "estimated_seconds": round(whole, 3),
        "checkpoint_id": work.settings.checkpoint_id,
    }
    if config.price_per_hour:
        result["estimated_cost"] = round(whole / 3600 * config.price_per_hour, 4)
    log.info(
        "%d images would take about %s with %d processes (%.1f images/s, from %d sampled, %d of those bad)%s",
        count,
        format_duration(whole),
        processes,
        rate,
        len(chosen),
        len(chosen) - translated,
        f" and cost about {result['estimated_cost']}" if config.price_per_hour else "",
    )
    return result
