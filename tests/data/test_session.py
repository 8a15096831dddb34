"""Joining a cluster that is not there, and whose turn it is where Ray is private."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

_JOIN = """
import sys
from dataclasses import dataclass
from p2p.cli import run_job
from p2p.data.session import ray_session

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

def job(config):
    with ray_session():
        return {}

sys.exit(run_job(Config, job))
"""


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nonsense"])
def test_a_dead_ray_address_is_one_line(address: str) -> None:
    with socket.socket() as free:  # bound and not listening: who connects is refused
        free.bind(("127.0.0.1", 0))
        named = address.format(port=free.getsockname()[1])
        process = subprocess.run(
            [sys.executable, "-c", _JOIN],
            env={**os.environ, "RAY_ADDRESS": named},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"error: RAY_ADDRESS {named}: cannot join")
    assert len(process.stderr.splitlines()) == 1


def test_what_a_private_ray_starts_interrupts_nobody_and_what_computes_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from p2p.data.session import compute_first, ray, ray_session

    policies = {}

    def work() -> None:
        policies["helper"] = os.sched_getscheduler(0)
        compute_first()
        policies["computing"] = os.sched_getscheduler(0)

    def start(**options: object) -> None:  # in the place of Ray's processes, which inherit the policy as threads do
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_session():
        policies["this process"] = os.sched_getscheduler(0)
    assert policies == {"helper": os.SCHED_BATCH, "computing": os.SCHED_OTHER, "this process": os.SCHED_OTHER}
