"""Joining Ray: the cluster that `RAY_ADDRESS` or `ray job submit` names, or a private local one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
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

from p2p.data.access import is_loopback, make_token, takes_jobs_of_anybody  # noqa: E402
from p2p.data.machine import available_cpus  # noqa: E402
from p2p.errors import P2PError, UsageError  # noqa: E402
from p2p.storage.parquet import unregister_ray_types  # noqa: E402
from p2p.storage.processes import start_time  # noqa: E402

unregister_ray_types()  # which importing ray.data has just registered

__all__ = ["PRIVATE", "ray", "ray_session"]
log = logging.getLogger("p2p")

# Ray places work by logical CPUs. A small machine lends more than it has, else readers and workers starve each other.
_LOGICAL_CPUS_PER_CORE = 2
_MIN_LOGICAL_CPUS = 4
_ANSWER_SECONDS = 5
_JOIN_SECONDS = 60.0  # until a cluster that is being started takes connections
_POLL_SECONDS = 0.5
_SECONDS_TO_EXIT = 10.0


PRIVATE = "p2p-private"


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
    own: dict[int, str] = {}  # of a private Ray: those that start with it, and what they start
    try:
        if os.environ.get("RAY_ADDRESS"):
            _join_cluster(os.environ["RAY_ADDRESS"])
        else:
            others = _descendants([os.getpid()])
            try:
                with _interrupted_afterwards():
                    _start_private()
            finally:  # of a start that fails, or is interrupted, a part may run already
                own = dict(_descendants([os.getpid()]).items() - others.items())
        _take_termination_for_an_interrupt()
        yield
    finally:
        own |= _descendants(list(own))
        ray.shutdown()
        _end_rest(own)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _descendants(parents: list[int]) -> dict[int, str]:
    """The processes below `parents`, and when each was started: an id may be given to another process later."""
    found: dict[int, str] = {}
    while parents:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parents.pop()}/task").iterdir():
                children = [int(child) for child in (task / "children").read_text().split()]
                found |= {child: start_time(child) or "" for child in children}
                parents += children
    return found


def _end_rest(processes: Mapping[int, str]) -> None:
    """Kill those of a private Ray that do not end by themselves: now and then one hangs in Ray's own exit."""
    until = time.monotonic() + _SECONDS_TO_EXIT
    while left := [pid for pid, started in processes.items() if started and start_time(pid) == started]:
        if time.monotonic() > until:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.1)


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


def _start_private() -> None:
    make_token()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # it has no nodes to lose
    # At Ray's 15 a training on two cores keeps 0.05 of its rate beside three busy processes of ordinary priority.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        ray.init(
            address="local",
            num_cpus=max(_MIN_LOGICAL_CPUS, _LOGICAL_CPUS_PER_CORE * available_cpus()),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace=PRIVATE,
        )
    except Exception as error:  # Ray raises plain ones, such as for a machine too busy to start it in time
        raise P2PError(
            f"Ray did not start on this machine ({_one_line(error)}). Its logs lie in "
            f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs; free disk and memory there, or try again "
            "when the machine is less busy"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _wait_until_it_listens(host: str, port: int) -> None:
    """Raises OSError if nobody takes a connection within a minute."""
    until, told = time.monotonic() + _JOIN_SECONDS, False
    while True:
        try:
            socket.create_connection((host, port), _ANSWER_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise
            if not told:
                told = True
                log.info("RAY_ADDRESS %s:%d: %s; waiting up to %g s for a cluster", host, port, error, _JOIN_SECONDS)
            time.sleep(_POLL_SECONDS)


def _join_cluster(address: str) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or raise UsageError: what is there depends on who set it."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # its dashboard shows trainings
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        if place.port:  # Ray itself does not say for what it waits, and ends the process where nobody listens
            _wait_until_it_listens(place.hostname or "", place.port)
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
