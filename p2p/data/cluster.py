"""What the Ray that is running has: its CPUs and GPUs, and the settings under which datasets are built."""

from __future__ import annotations

import logging

from p2p.data.machine import available_cpus
from p2p.data.session import PRIVATE, ray

log = logging.getLogger("p2p")


def _cluster_resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def is_private() -> bool:
    """Whether Ray is this process's own: no node can join or leave it, and nobody else uses it."""
    return bool(ray.get_runtime_context().namespace == PRIVATE)


def cluster_cpus() -> int:
    """Cores for compute-bound actors: this machine's on a private Ray, the cluster's CPUs otherwise."""
    if is_private():
        return available_cpus()
    return max(1, int(_cluster_resources().get("CPU", 1)))


def cluster_gpus() -> int:
    """GPUs of the cluster."""
    return int(_cluster_resources().get("GPU", 0))


def cpus_per_gpu() -> int:
    """Cores beside each of the cluster's GPUs, on the node that has the fewest; nodes without a GPU do not count."""
    if is_private():
        return max(1, available_cpus() // cluster_gpus())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return max(1, min((int(node.get("CPU", 0) / node["GPU"]) for node in nodes if node.get("GPU")), default=1))


def gpu_node_memory() -> int:
    """Bytes by which Ray places work on the node with a GPU that has the least. Needs Ray."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return min((int(node.get("memory", 0)) for node in nodes if node.get("GPU")), default=0)


def spread_over_gpus(processes: int, gpus: int) -> tuple[int, int]:
    """How many of `processes` to start on `gpus` GPUs, and how many on each.

    Ray fills one GPU before it takes the next, so where they share GPUs each must get the same number.

    >>> spread_over_gpus(12, 8), spread_over_gpus(17, 8), spread_over_gpus(3, 8)
    ((8, 1), (16, 2), (3, 1))
    """
    each = max(1, processes // gpus)
    return min(processes, each * gpus), each


_SECONDS_FOR_GPUS = 900.0  # until a cluster that had too few has started nodes with them


def await_gpus(count: int) -> bool:
    """Whether Ray has so many GPUs. A cluster that has fewer is asked for them, so that it may start from none, and
    gets 15 minutes.
    """
    if cluster_gpus() >= count:
        return True
    if is_private():
        return False
    log.info("waiting up to %d minutes for the cluster to have %d GPU(s)", _SECONDS_FOR_GPUS // 60, count)
    wanted = ray.util.placement_group([{"GPU": 1}] * count)
    try:
        return bool(wanted.wait(_SECONDS_FOR_GPUS))
    finally:
        ray.util.remove_placement_group(wanted)


def smallest_node_cpus() -> float:
    """CPUs by which Ray places work on the smallest node that takes any; a private Ray has more of them than cores.
    Needs Ray.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    counts = (node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"])
    return min((float(count) for count in counts if count), default=1.0)


TRAINERS_SHARE = 0.5
"""The part of a node's CPUs, as Ray counts them to place work, that a training's workers together may ask for."""


def reader_cpus() -> float:
    """What a task that reads for a training asks for: no more than workers leave on the smallest node."""
    return min(1.0, (1 - TRAINERS_SHARE) * smallest_node_cpus())


def quiet_data_context() -> ray.data.DataContext:
    """The settings every dataset here is built under; call before building one."""
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else only its text would come back from the worker
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # Ray's own; its log file keeps everything, and errors are raised here
            handler.setLevel(logging.CRITICAL)
    context.memory_usage_poll_interval_s = None  # walking a gigabyte's page table every second, for what nobody reads
    context.execution_no_progress_timeout_s = -1  # a slow training step or validation is no fault
    return context
