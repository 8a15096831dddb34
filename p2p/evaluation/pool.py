"""Rows in, one result per pair out: by one child process for little work, else by actors of Ray."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from p2p.data.local import LocalWorker
from p2p.data.machine import available_cpus, worker_environment
from p2p.data.order import Row
from p2p.errors import ConfigError
from p2p.evaluation.evaluator import CHUNK_PAIRS, EvaluationTask, Evaluator, evaluate_rows
from p2p.model.engine import choose_device
from p2p.model.networks import Generator
from p2p.progress import Progress

log = logging.getLogger("p2p")
MIN_CHUNK = 8
_MAX_ACTORS_PER_GPU, _CORES_PER_ACTOR = 8, 2
Results = list[dict[str, Any]]
"""One row per pair, in stored order."""


def measure_rows(worker: LocalWorker | None, gpu: str, task: EvaluationTask, rows: Sequence[Row]) -> Results:
    """Measure `rows` in the child process, or without one on Ray. The number of processes or threads changes no bit."""
    return _in_child(worker, gpu, task, rows) if worker else _on_ray(gpu, task, rows)


def _chunks(rows: Sequence[Row], processes: int) -> list[Sequence[Row]]:
    """Small enough that every process has one."""
    share = -(-len(rows) // max(1, processes))
    size = min(CHUNK_PAIRS, max(MIN_CHUNK, -(-share // MIN_CHUNK) * MIN_CHUNK))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _in_child(worker: LocalWorker, gpu: str, task: EvaluationTask, rows: Sequence[Row]) -> Results:
    device = choose_device(gpu).type
    log.info("evaluating %d pairs on the %s in one process, without starting Ray: they are few", len(rows), device)
    threads = available_cpus() if device == "cpu" else 1
    batches = [
        {"group": np.array([group for group, _ in chunk]), "row": np.array([row for _, row in chunk])}
        for chunk in _chunks(rows, threads)
    ]
    sized = dataclasses.replace(task, device=device)
    return _collect(worker.map(evaluate_rows, (sized,), batches, threads=min(threads, len(batches))), len(rows))


def _size_pool(gpus: int, chunks: int) -> tuple[int, float]:
    """How many processes, and the share of a GPU of each (0 without)."""
    from p2p.data.cluster import cluster_cpus, cpus_per_gpu, spread_over_gpus

    if gpus:  # each decodes in one thread, so it takes several to keep a GPU busy
        each = min(_MAX_ACTORS_PER_GPU, max(1, cpus_per_gpu() // _CORES_PER_ACTOR))
        actors, per_gpu = spread_over_gpus(min(each * gpus, chunks), gpus)
        return actors, 1 / per_gpu
    return min(cluster_cpus(), chunks), 0


def _on_ray(gpu: str, task: EvaluationTask, rows: Sequence[Row]) -> Results:
    import ray.data

    from p2p.data.cluster import cluster_cpus, cluster_gpus, quiet_data_context

    gpus = cluster_gpus() if gpu != "false" else 0
    if gpu == "true" and not gpus:
        raise ConfigError("gpu", "true: the cluster has no GPU; use auto or false")
    chunks = _chunks(rows, 1 if gpus else cluster_cpus())
    actors, gpu_share = _size_pool(gpus, len(chunks))
    sized = dataclasses.replace(
        task,
        device="cuda" if gpus else "cpu",
        generator=ray.put(task.generator) if isinstance(task.generator, Generator) else None,
        round_trip=ray.put(task.round_trip) if isinstance(task.round_trip, Generator) else None,
    )
    quiet_data_context()
    blocks = [pa.table({"group": [group for group, _ in chunk], "row": [row for _, row in chunk]}) for chunk in chunks]
    dataset = ray.data.from_arrow(blocks).map_batches(
        Evaluator,
        fn_constructor_kwargs={"task": sized},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpu_share,
        runtime_env={"env_vars": worker_environment()},
    )
    return _collect(dataset.iter_rows(), len(rows))


def _collect(results: Iterable[dict[str, Any]], total: int) -> Results:
    found: dict[Row, dict[str, Any]] = {}
    with Progress("evaluate", total=total, unit="pairs") as progress:
        for row in results:
            found[int(row["group"]), int(row["row"])] = row
            progress.advance(1)
    return [found[place] for place in sorted(found)]
