"""Joining a cluster that is not there, who may use a private one, and on how many cores work runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from p2p.data import session
from p2p.data.access import is_loopback, takes_jobs_of_anybody

_JOIN = """
import os, sys
from dataclasses import dataclass
from p2p.cli import run_job
from p2p.data import session
from p2p.data.session import ray_session

session._JOIN_SECONDS = 1.0

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

def job(config):
    with ray_session():
        return {}

for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    assert run_job(Config, job, []) == 2
del os.environ["RAY_ADDRESS"]
os.environ["RAY_TMPDIR"] = "/proc/nowhere"
assert run_job(Config, job, []) == 1
"""


def test_a_ray_that_cannot_be_joined_or_started_is_one_line() -> None:
    with socket.socket() as free:  # bound and not listening: who connects is refused
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
        addresses = [place, f"ray://{place}", "nonsense"]
        done = subprocess.run(
            [sys.executable, "-c", _JOIN, *addresses], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    waited = [line for line in done.stderr.splitlines() if "waiting up to" in line]
    told = [line for line in done.stderr.splitlines() if line not in waited]
    assert len(waited) == 2 and all(place in line for line in waited), waited
    assert len(told) == len(addresses) + 1, told
    assert told.pop().startswith("error: Ray did not start on this machine (")
    for line, address in zip(told, addresses, strict=True):
        assert line.startswith(f"error: RAY_ADDRESS {address}: cannot join")


def test_a_cluster_that_comes_up_slowly_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as slow:  # bound and not listening: who connects is refused
        slow.bind(("127.0.0.1", 0))

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                slow.listen()

        handler = Handler()
        logging.getLogger("p2p").addHandler(handler)
        try:
            with caplog.at_level("INFO", "p2p"):
                session._wait_until_it_listens(*slow.getsockname())
        finally:
            logging.getLogger("p2p").removeHandler(handler)
    assert "waiting up to 60 s for a cluster" in caplog.text


_START = """
import os
from p2p.data.session import ray, ray_session

def work():
    return os.getpid(), os.nice(0)

os.umask(0o022)
with ray_session():
    process, priority = ray.get(ray.remote(work).remote())
    assert process != os.getpid() and priority == os.nice(0)
"""


@pytest.mark.ray
def test_a_private_ray_works_at_the_priority_of_its_job_and_nobody_else_reads_its_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _START], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (token,) = (tmp_path / ".ray").iterdir()
    assert (token.name, stat.S_IMODE(token.stat().st_mode)) == ("auth_token", 0o600)
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "setting", ["RAY_AUTH_MODE=disabled", "RAY_AUTH_TOKEN=of-a-cluster", "RAY_AUTH_TOKEN_PATH=/elsewhere", ""]
)
def test_a_token_is_made_only_where_there_is_none(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2p.data.access import make_token

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE")
    if setting:
        monkeypatch.setenv(*setting.split("="))
        make_token()
        assert list(tmp_path.iterdir()) == []
    else:
        make_token()
        token = tmp_path / ".ray" / "auth_token"
        made = token.read_text()
        make_token()
        assert len(made) == 64 and token.read_text() == made
        assert [file.name for file in token.parent.iterdir()] == [token.name]


@pytest.mark.parametrize(("limit", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), (None, 8)])
def test_a_container_has_the_cores_that_its_limit_comes_to(
    limit: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p2p.data import machine

    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(machine, "_CPU_LIMIT", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.available_cpus() == cores


@pytest.mark.parametrize(
    "place, expected",
    [("127.0.0.1:8265", True), ("localhost:1", True), ("[::1]:1", True), ("192.0.2.2:8265", False), ("head:1", False)],
)
def test_who_can_reach_a_dashboard(place: str, expected: bool) -> None:
    assert is_loopback(place) is expected


@pytest.mark.parametrize("status, expected", [(200, True), (404, True), (401, False), (403, False)])
def test_a_dashboard_that_asks_for_a_token_takes_no_jobs_of_anybody(status: int, expected: bool) -> None:
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert takes_jobs_of_anybody(f"127.0.0.1:{server.server_port}") is expected
        thread.join()
    assert not takes_jobs_of_anybody(f"127.0.0.1:{server.server_port}"), "nobody answers"


_LINGERS = """
import os, signal
from p2p.data import session
from p2p.data.session import ray, ray_session

session._SECONDS_TO_EXIT = 1.0

@ray.remote
class Stuck:
    def stop(self):
        os.kill(os.getpid(), signal.SIGSTOP)  # ends by nothing but SIGKILL, as one that hangs in Ray's own exit

    def pid(self):
        return os.getpid()

with ray_session():
    stuck = Stuck.remote()
    pid = ray.get(stuck.pid.remote())
    print(pid)
    stuck.stop.remote()
    while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "T":
        pass
"""


@pytest.mark.ray
def test_no_process_of_a_private_ray_is_left(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _LINGERS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


_HALF_STARTED = """
import contextlib, signal, subprocess, sys
from p2p.data import session

session._SECONDS_TO_EXIT = 0.0
started = []

def start():
    started.append(subprocess.Popen(["sleep", "1000"]))
    if sys.argv[1] == "refused":
        raise session.P2PError("too busy")
    signal.raise_signal(signal.SIGINT)

session._start_private = start
with contextlib.suppress(session.P2PError, KeyboardInterrupt), session.ray_session():
    raise AssertionError("it has not started")
try:
    print(started[0].wait(timeout=30))
finally:
    started[0].kill()
"""


@pytest.mark.parametrize("how", ["refused", "interrupted"])
def test_what_a_private_ray_has_started_before_its_start_failed_is_ended(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HALF_STARTED, how], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{-signal.SIGKILL}\n"), done.stderr
