"""The pool of Ray actors that translates a large corpus: how many there are, and what each asks for. Needs Ray."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from p2p.data.cluster import (
    await_gpus,
    cluster_cpus,
    cluster_gpus,
    cpus_per_gpu,
    is_private,
    quiet_data_context,
    spread_over_gpus,
)
from p2p.data.machine import available_cpus, worker_environment
from p2p.data.session import ray, ray_session
from p2p.errors import ConfigError
from p2p.translation.config import TranslateConfig
from p2p.translation.pipeline.metering import MeteredShardTranslator
from p2p.translation.plan.resume import RemainingWork
from p2p.translation.pool import (
    ACTORS_PER_GPU,
    CORES_PER_SCENE,
    MAX_CHAIN,
    SHARD_COLUMNS,
    Outcome,
    chains_of,
    follow,
    on_cores,
    on_gpu,
)
from p2p.translation.work import Work

log = logging.getLogger("p2p")

_MAX_SHARED_CHAIN = 8  # on a cluster, where a node that joins must find some left
_MAX_DEFAULT_WORKERS = 256  # processes of a cluster that grows, where nobody said how many


@dataclass(frozen=True)
class _Pool:
    """How many actors, and of which kind."""

    work: Work
    actors: int
    """There is room for so many now."""
    initial_actors: int
    """So many are asked for at once."""
    max_actors: int
    """As nodes join."""
    resources: dict[str, Any]
    """What each asks of Ray."""


def _size_pool(config: TranslateConfig, work: Work, shards: int) -> _Pool:
    """Fit the pool to the machines that are up. On a cluster `--workers` is an upper bound; how many there are at a
    time is for Ray to find out.
    """
    gpus, cores = cluster_gpus(), cluster_cpus()
    cpus = min(CORES_PER_SCENE, available_cpus()) if config.format == "geotiff" and not config.workers else 1
    use_gpu = bool(gpus) and config.gpu != "false"
    room = ACTORS_PER_GPU * gpus if use_gpu else max(1, cores // cpus)
    max_actors = actors = min(config.workers or room, shards)
    if not is_private():
        max_actors = min(config.workers or max(room, _MAX_DEFAULT_WORKERS), shards)
        actors = min(max_actors, room)
    if use_gpu:
        actors, per_gpu = spread_over_gpus(actors, gpus)
        max_actors = actors if is_private() else max_actors
    initial_actors = (
        max_actors if config.workers else actors
    )  # what was asked for is known to the autoscaler from the beginning
    if use_gpu:
        work = on_gpu(work, config.batch_size, cpus_per_gpu() // per_gpu)
        return _Pool(work, actors, initial_actors, max_actors, {"num_cpus": 1, "num_gpus": 1 / per_gpu})
    # One more than a process has cores: while one pauses between two chains, another computes on its core too.
    threads = min(max(1, cores // actors), available_cpus()) + 1
    if config.batch_size not in (0, work.batch_size):
        log.info(
            "on CPUs %d tiles are computed at a time, whatever the --batch-size, so that it changes no bit",
            work.batch_size,
        )
    return _Pool(on_cores(work, threads), actors, initial_actors, max_actors, {"num_cpus": cpus})


@contextlib.contextmanager
def ray_workforce(config: TranslateConfig) -> Iterator[Callable[[Work, RemainingWork], Outcome]]:
    """Ray is running inside. Raises UsageError if the cluster cannot be joined or lacks what was asked for."""
    with ray_session():
        if config.gpu == "true" and not await_gpus(1):
            raise ConfigError("gpu", "true: the cluster has no GPU; use auto or false")
        yield functools.partial(_translate_on_ray, config)


def _translate_on_ray(config: TranslateConfig, work: Work, left: RemainingWork) -> Outcome:
    """Let a pool of actors do every shard of `left`."""
    pool = _size_pool(config, work, len(left.units))
    log.info(
        "translating %d %s on %d %s processes%s",
        len(left.units) if left.sections is not None else left.images - left.images_done,
        "sections of scenes" if left.sections is not None else "images",
        pool.actors,
        pool.work.device,
        f", up to {pool.max_actors} as nodes join" if pool.max_actors > pool.actors else "",
    )
    quiet_data_context()
    blocks = [
        pa.table({name: [getattr(shard, name) for shard in chain] for name in SHARD_COLUMNS})
        for chain in chains_of(left.units, pool.actors, MAX_CHAIN if is_private() else _MAX_SHARED_CHAIN)
    ]
    dataset = ray.data.from_arrow(blocks).map_batches(
        MeteredShardTranslator,
        fn_constructor_kwargs={"work": pool.work},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=pool.max_actors, initial_size=pool.initial_actors, max_tasks_in_flight_per_actor=2
        ),
        runtime_env={"env_vars": worker_environment()},
        **pool.resources,
    )
    if pool.max_actors > pool.actors:
        _let_it_grow(dataset.context, pool.actors)
    dataset.context.target_max_block_size = 1  # every report travels at once instead of filling a block
    # Closed on every way out: an execution that outlives its Ray starts another one, and never ends.
    with contextlib.closing(iter(dataset.iter_rows())) as rows:  # type: ignore[type-var]
        return follow(rows, left)


def _let_it_grow(context: ray.data.DataContext, at_once: int) -> None:
    """Let actors for which there is no room, up to `at_once` of them that nobody asked for, wait in Ray's own queue:
    its autoscaler sees them there, and a node that joins gets them at once. Ray Data's budget, which forbids that,
    learns of nodes three times a minute.
    """
    context.op_resource_reservation_enabled = False
    context.downstream_capacity_backpressure_ratio = None  # with no budget it takes a few unread reports for too many
    context.autoscaling_config.actor_pool_max_upscaling_delta = at_once
