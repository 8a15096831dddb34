"""Joining Ray: the cluster that `RAY_ADDRESS` or `ray job submit` names, or a private local one."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import logging
import math
import os
import secrets
import signal
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

# Read by Ray at import, so they stand before it. Each can be overridden from outside.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # it also paces every start, report and end, 2 s at a time
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray.data  # noqa: E402
from ray.util import placement_group, remove_placement_group  # noqa: E402

from p2p.errors import P2PError, UsageError  # noqa: E402
from p2p.storage.parquet import unregister_ray_types  # noqa: E402

unregister_ray_types()  # which importing ray.data has just registered

log = logging.getLogger("p2p")

# Ray places work by logical CPUs. A small machine lends more than it has, else readers and workers starve each other.
_LOGICAL_CPUS_PER_CORE = 2
_MIN_LOGICAL_CPUS = 4
_ANSWER_SECONDS = 5


_CPU_LIMIT = "/sys/fs/cgroup/cpu.max"  # of a container, as "QUOTA PERIOD" in microseconds, or "max PERIOD"


def available_cpus() -> int:
    """Cores this process may use: those it is allowed on, and no more than its container's limit allows."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, Path(_CPU_LIMIT).read_text(encoding="ascii").split())
        allowed = min(allowed, max(1, math.ceil(quota / period)))
    return allowed


def _cluster_resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def is_private() -> bool:
    """Whether Ray is this process's own: no node can join or leave it, and nobody else uses it. Needs Ray."""
    return bool(ray.get_runtime_context().namespace == _PRIVATE)


def cluster_cpus() -> int:
    """Cores for compute-bound actors: this machine's on a private Ray, the cluster's CPUs otherwise. Needs Ray."""
    if is_private():
        return available_cpus()
    return max(1, int(_cluster_resources().get("CPU", 1)))


def cluster_gpus() -> int:
    """GPUs of the cluster. Needs Ray."""
    return int(_cluster_resources().get("GPU", 0))


def await_gpu(seconds: float) -> bool:
    """Ask the cluster for a GPU and wait for one to be up, so that a cluster may start from none. Needs Ray."""
    wanted = placement_group([{"GPU": 1}])
    try:
        return bool(wanted.wait(seconds))
    finally:
        remove_placement_group(wanted)


def smallest_node_cpus() -> float:
    """CPUs by which Ray places work on the smallest node that takes any; a private Ray has more of them than cores.
    Needs Ray.
    """
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    counts = (node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"])
    return min((float(count) for count in counts if count), default=1.0)


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


TRAINERS_SHARE = 0.5
"""The part of a node's CPUs, as Ray counts them to place work, that a training's workers together may ask for."""


def reader_cpus() -> float:
    """What a task that reads for a training asks for: no more than workers leave on the smallest node. Needs Ray."""
    return min(1.0, (1 - TRAINERS_SHARE) * smallest_node_cpus())


_PRIVATE = "p2p-private"


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Ray is running inside. A private Ray started here is stopped at the end; one found running is left alone.

    Raises UsageError where `RAY_ADDRESS` names no cluster that can be joined, P2PError where a private Ray does not
    start.
    """
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        if os.environ.get("RAY_ADDRESS"):
            _join_cluster(os.environ["RAY_ADDRESS"])
        else:
            with _interrupted_afterwards():
                _start_private()
        _take_termination_for_an_interrupt()
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Control-C inside is answered at the end, some seconds later: Ray may crash if it is interrupted as it starts."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


def _take_termination_for_an_interrupt() -> None:
    """Schedulers end jobs by SIGTERM. Ray's own answer ends its processes beneath the job, which then dies of it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def make_token() -> None:
    """Make ~/.ray/auth_token, the token that this user's private Rays ask for, unless there is one already.

    Ray would make it too, but readable by whomever the umask lets. Whoever reads it can run programs as this user.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written: Ray says so
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # its mode is 600
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)  # refused where there is a token, such as that of a job begun at the same time


def _start_private() -> None:
    make_token()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # it has no nodes to lose
    try:
        ray.init(
            address="local",
            num_cpus=max(_MIN_LOGICAL_CPUS, _LOGICAL_CPUS_PER_CORE * available_cpus()),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace=_PRIVATE,
        )
    except Exception as error:  # Ray raises plain ones, such as for a machine too busy to start it in time
        raise P2PError(
            f"Ray did not start on this machine ({_one_line(error)}). Its logs lie in "
            f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs; free disk and memory there, or try again "
            "when the machine is less busy"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _join_cluster(address: str) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or raise UsageError: what is there depends on who set it."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # its dashboard shows trainings
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        if place.port:  # Ray itself tries for two minutes before it says that nobody listens
            socket.create_connection((place.hostname, place.port), _ANSWER_SECONDS).close()
        context = ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises all kinds
        raise UsageError(
            f"RAY_ADDRESS {address}: cannot join a Ray cluster there ({_one_line(error)}). Check that it runs and that "
            "its token is at hand (RAY_AUTH_MODE, RAY_AUTH_TOKEN), or unset RAY_ADDRESS to use this machine alone"
        ) from None
    dashboard = context.dashboard_url
    if dashboard and not is_loopback(dashboard) and takes_jobs_of_anybody(dashboard):
        log.warning(
            "the cluster's dashboard at %s answers without a token: whoever reaches it can run programs there. Start "
            "Ray with RAY_AUTH_MODE=token, or its dashboard on 127.0.0.1",
            dashboard,
        )


def is_loopback(place: str) -> bool:
    """Whether HOST:PORT is reached from the same machine alone."""
    host = urlsplit(f"//{place}").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def takes_jobs_of_anybody(dashboard: str) -> bool:
    """Whether the dashboard at HOST:PORT answers a question about jobs that comes without a token."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(f"http://{dashboard}/api/jobs/p2p", timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code not in (401, 403)  # 404: it has looked for that job
    except (OSError, http.client.HTTPException):
        return False  # nobody can reach it from here
    return True


def quiet_data_context() -> ray.data.DataContext:
    """The settings every dataset here is built under; call before building one."""
    context = ray.data.DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its log file keeps everything
            handler.setLevel(logging.ERROR)
    context.memory_usage_poll_interval_s = None  # walking a gigabyte's page table every second, for what nobody reads
    context.execution_no_progress_timeout_s = -1  # a slow training step or validation is no fault
    return context
