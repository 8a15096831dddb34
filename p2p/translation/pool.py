"""The pool of actors: how many, how large, who does which shards, and what they report."""

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

import pyarrow as pa
import ray.data

from p2p.data.cluster import await_gpu, cluster_cpus, cluster_gpus, is_private, quiet_data_context
from p2p.data.machine import available_cpus, worker_environment
from p2p.data.session import ray_session
from p2p.errors import P2PError, UsageError
from p2p.progress import Progress
from p2p.translation.actor import Work
from p2p.translation.config import TranslateConfig
from p2p.translation.pipeline.metering import MeteredShardTranslator
from p2p.translation.plan.plan import Shard
from p2p.translation.plan.resume import Remaining

log = logging.getLogger("p2p")

ACTORS_PER_GPU = 2
"""One computes while the other copies."""
_GPU_BATCH = 64
_CPU_BATCH, _CPU_BATCH_PIXELS = 8, 2**19  # larger ones are no quicker and take memory
_LONGEST_CHAIN = 64  # shards an actor gets at once; batches fill up across them
_LONGEST_SHARED_CHAIN = 8  # on a cluster, where a node that joins must find some left
_MOST_UNASKED = 256  # processes of a cluster that grows, where nobody said how many
_SECONDS_FOR_A_GPU = 900.0  # until a cluster that had none has started a node with one


@dataclass
class Outcome:
    """What the actors told the driver about the shards they finished."""

    told: set[int] = field(default_factory=set)
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


@dataclass(frozen=True)
class _Pool:
    """How many actors, and of which kind."""

    work: Work
    actors: int
    """There is room for so many now."""
    at_first: int
    """So many are asked for at once."""
    most: int
    """As nodes join."""
    resources: dict[str, Any]
    """What each asks of Ray."""


def _sized(config: TranslateConfig, work: Work, shards: int) -> _Pool:
    """Fit the pool to the machines that are up. On a cluster `--workers` is an upper bound; how many there are at a
    time is for Ray to find out.
    """
    gpus, cores = cluster_gpus(), cluster_cpus()
    use_gpu = bool(gpus) and config.gpu != "false"
    room = ACTORS_PER_GPU * gpus if use_gpu else cores
    most = actors = min(config.workers or room, shards)
    if not is_private():
        most = min(config.workers or max(room, _MOST_UNASKED), shards)
        actors = min(most, room)
    at_first = most if config.workers else actors  # what was asked for is known to the autoscaler from the beginning
    if use_gpu:
        work = on_gpu(work, config.batch_size, cores // actors)
        return _Pool(work, actors, at_first, most, {"num_cpus": 1, "num_gpus": 1 / math.ceil(actors / gpus)})
    # One more than a process has cores: while one pauses between two chains, another computes on its core too.
    threads = min(max(1, cores // actors), available_cpus()) + 1
    if config.batch_size not in (0, work.batch_size):
        log.info(
            "on CPUs %d tiles are computed at a time, whatever the --batch-size, so that it changes no bit",
            work.batch_size,
        )
    return _Pool(on_cores(work, threads), actors, at_first, most, {"num_cpus": 1})


def _chains(shards: Sequence[Shard], actors: int, longest: int) -> list[list[Shard]]:
    """Cut the list into chains, long ones first and single shards last, so that actors finish at the same time."""
    chains: list[list[Shard]] = []
    start = 0
    while start < len(shards):
        length = min(longest, max(1, (len(shards) - start) // (2 * actors)))
        chains.append(list(shards[start : start + length]))
        start += length
    return chains


@contextlib.contextmanager
def ray_workforce(config: TranslateConfig) -> Iterator[Callable[[Work, Remaining], Outcome]]:
    """Ray is running inside. Raises UsageError if the cluster cannot be joined or lacks what was asked for."""
    with ray_session():
        if config.gpu == "true" and not cluster_gpus():
            _wait_for_a_gpu()
        yield functools.partial(_translate_on_ray, config)


def _wait_for_a_gpu() -> None:
    if not is_private():
        log.info("no GPU is up; waiting up to %d minutes for the cluster to start one", _SECONDS_FOR_A_GPU // 60)
        if await_gpu(_SECONDS_FOR_A_GPU):
            return
    raise UsageError("--gpu true: the cluster has no GPU; pass --gpu auto or false")


def _translate_on_ray(config: TranslateConfig, work: Work, left: Remaining) -> Outcome:
    """Let a pool of actors do every shard of `left`."""
    pool = _sized(config, work, len(left.shards))
    log.info(
        "translating %d images on %d %s processes%s",
        left.images - left.images_done,
        pool.actors,
        pool.work.device,
        f", up to {pool.most} as nodes join" if pool.most > pool.actors else "",
    )
    quiet_data_context()
    columns = ("index", "manifest_uri", "row_group", "rows")
    blocks = [
        pa.table({name: [getattr(shard, name) for shard in chain] for name in columns})
        for chain in _chains(left.shards, pool.actors, _LONGEST_CHAIN if is_private() else _LONGEST_SHARED_CHAIN)
    ]
    dataset = ray.data.from_arrow(blocks).map_batches(
        MeteredShardTranslator,
        fn_constructor_kwargs={"work": pool.work},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=pool.most, initial_size=pool.at_first, max_tasks_in_flight_per_actor=2
        ),
        runtime_env={"env_vars": worker_environment()},
        **pool.resources,
    )
    if pool.most > pool.actors:
        _let_it_grow(dataset.context, pool.actors)
    dataset.context.target_max_block_size = 1  # every report travels at once instead of filling a block
    # Closed on every way out: an execution that outlives its Ray starts another one, and never ends.
    with contextlib.closing(iter(dataset.iter_rows())) as rows:  # type: ignore[type-var]
        first = list(itertools.islice(rows, 1))  # only now has an actor begun; start-up is no part of the rate
        began = max(0.0, time.time() - json.loads(first[0]["report"])["at"]) if first else 0.0
        with Progress(
            "translate", total=left.images, unit="images", done_before=left.images_done, seconds_before=began
        ) as progress:
            return collect(itertools.chain(first, rows), progress)


def _let_it_grow(context: ray.data.DataContext, at_once: int) -> None:
    """Let actors for which there is no room, up to `at_once` of them that nobody asked for, wait in Ray's own queue:
    its autoscaler sees them there, and a node that joins gets them at once. Ray Data's budget, which forbids that,
    learns of nodes three times a minute.
    """
    context.op_resource_reservation_enabled = False
    context.downstream_capacity_backpressure_ratio = None  # with no budget it takes a few unread reports for too many
    context.autoscaling_config.actor_pool_max_upscaling_delta = at_once


def collect(rows: Iterable[Mapping[str, Any]], progress: Progress) -> Outcome:
    """Add up the reports. Where an actor died Ray may repeat or swallow some: none is counted twice, and what was never
    told is read from the ledger afterwards. Raises P2PError if an actor says that the work must stop.
    """
    outcome = Outcome()
    seen: dict[int, int] = {}
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
        advanced = report["images"] - seen.get(shard, 0)
        if advanced > 0:
            seen[shard] = report["images"]
            progress.advance(advanced)
        if report["finished"] and shard not in outcome.told:
            outcome.told.add(shard)
            outcome.translated += report["translated"]
            outcome.kept += report["kept"]
            if report["failed"]:
                outcome.with_failures.add(shard)
            outcome.pixels += report["pixels"]
            outcome.output_bytes += report["output_bytes"]
            for stage, seconds in report["seconds"].items():
                outcome.stages[stage] = outcome.stages.get(stage, 0.0) + seconds
    outcome.seconds = max(0.0, last - began)
    return outcome
