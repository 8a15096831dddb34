"""The machine: its cores, and the environment of processes that compute. Without Ray."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

_CPU_LIMIT = "/sys/fs/cgroup/cpu.max"  # of a container, as "QUOTA PERIOD" in microseconds, or "max PERIOD"


def available_cpus() -> int:
    """Cores this process may use: those it is allowed on, and no more than its container's limit allows."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, Path(_CPU_LIMIT).read_text(encoding="ascii").split())
        allowed = min(allowed, max(1, math.ceil(quota / period)))
    return allowed


_WORKER_ENVIRONMENT = {
    # OpenMP's threads spin while they wait for one another at the hundreds of barriers of an update, and burn the time
    # of the core that their partner needs. Measured on two cores, batch 8: beside one busy process 2.95 instead of 2.2
    # pairs/s, by itself 5.1 instead of 4.7; a tiny network beside several 30 to 46 instead of 1 to 4.
    "GOMP_SPINCOUNT": "1000",
    # glibc keeps what is freed, where it would give the hundreds of megabytes of each batch back to the kernel and
    # fault them in again, a twentieth of both cores in training. One arena: those of threads give back regardless.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


def worker_environment() -> dict[str, str]:
    """Variables that a process which computes with torch starts with, for Ray's `runtime_env`: libgomp and glibc read
    them when they are loaded. Each can be overridden from outside.
    """
    return {name: os.environ.get(name, value) for name, value in _WORKER_ENVIRONMENT.items()}
