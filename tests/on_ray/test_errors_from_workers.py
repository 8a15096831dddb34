"""What a worker raises reaches the user as the worker meant it, whatever Ray wraps around it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import descendants, pids, read_process

from p2p.errors import BadInputError, P2PError, StorageError, UsageError


@dataclass(frozen=True, kw_only=True)
class WorkConfig:
    """Work on something."""


def raise_in_task(error: Exception) -> None:
    import ray

    @ray.remote
    def task() -> None:
        raise error

    ray.get(task.remote())


def raise_in_dataset(error: Exception) -> None:
    from p2p.data.cluster import quiet_data_context
    from p2p.data.session import ray

    def rows(batch: dict[str, Any]) -> dict[str, Any]:
        raise error

    quiet_data_context()
    ray.data.range(1).map_batches(rows).materialize()


_WORKS_FOR_EVER = """
import sys, threading
from dataclasses import dataclass
from pathlib import Path
from p2p.cli import run_job
from p2p.data.session import ray, ray_session

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

def job(config):
    with ray_session():
        ray.get(ray.remote(work).remote(sys.argv[1]))

def work(started):
    Path(started).touch()
    threading.Event().wait()

sys.exit(run_job(Config, job, []))
"""


@pytest.mark.parametrize("raise_in_worker", [raise_in_task, raise_in_dataset])
@pytest.mark.parametrize(
    "error, status",
    [
        (UsageError("--lr nan: give a number"), 2),
        (StorageError("s3://bucket: access denied"), 1),
        (BadInputError("OddWidth", "17 wide"), 1),
    ],
)
def test_an_error_of_a_worker_is_one_line(
    ray_cluster: None, run_cli: Any, raise_in_worker: Any, error: P2PError, status: int
) -> None:
    outcome = run_cli(WorkConfig, lambda config: raise_in_worker(error))
    assert (outcome.status, outcome.summary) == (status, None)
    assert outcome.stderr.splitlines()[-1] == f"error: {error}"
    assert "Traceback" not in outcome.stderr


def test_a_secret_in_a_workers_error_is_taken_out(ray_cluster: None, run_cli: Any) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    outcome = run_cli(WorkConfig, lambda config: raise_in_task(RuntimeError(f"cannot sign with {secret}")))
    assert outcome.status == 1
    assert "RuntimeError: cannot sign with ***" in outcome.stderr
    assert secret not in outcome.stderr + outcome.stdout


def marked(mark: Path) -> list[int]:
    return [pid for pid in pids() if f"P2P_TEST_MARK={mark}" in read_process(pid, "environ")]


def a_worker_works(job: subprocess.Popen[str], started: Path) -> bool:
    return started.exists()


def ray_is_starting(job: subprocess.Popen[str], started: Path) -> bool:
    return any("gcs_server" in read_process(pid, "cmdline") for pid in descendants(job.pid))


@pytest.mark.parametrize(
    "moment, number",
    list(itertools.product((a_worker_works, ray_is_starting), (signal.SIGTERM, signal.SIGINT))),
)
def test_a_job_that_is_told_to_end_is_one_line_and_leaves_no_process(tmp_path: Path, moment: Any, number: int) -> None:
    started = tmp_path / "started"
    with subprocess.Popen(
        [sys.executable, "-c", _WORKS_FOR_EVER, str(started)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "P2P_TEST_MARK": str(tmp_path)},  # which all that it starts inherits
        # A shell that runs the tests in the background has them ignore the signal, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as job:
        while not moment(job, started):
            assert job.poll() is None
            time.sleep(0.05)
        assert job.pid in marked(tmp_path)
        job.send_signal(number)
        stdout, stderr = job.communicate(timeout=60)
    assert (job.returncode, stdout) == (1, "")
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.endswith("interrupted; the same command does what is missing\n")
    deadline = time.monotonic() + 30
    while (left := marked(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
