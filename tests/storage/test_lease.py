"""One writer for each output: real processes that start together, are killed, are stopped and wake up again."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2p.errors import ConfigError, LeaseLostError
from p2p.storage import lease
from p2p.storage.filesystems import exists, join, list_names, read_bytes, write_bytes
from p2p.storage.lease import Lease, hold_lease, read_lease

# At a line on its stdin it takes the lease, at the next one or the end it lets go, as many rounds as it is told; the
# seconds of the module are shortened.
HOLDER = """
import sys
from p2p.errors import P2PError
from p2p.storage import lease
lease.RENEWAL_SECONDS, lease._WATCH_SECONDS, lease.EXPIRY_SECONDS = 0.2, 1.0, 4.0
for _ in range(int(sys.argv[2])):
    sys.stdin.readline()
    status = 0
    try:
        with lease.hold_lease(sys.argv[1], "output", "translate") as fence:
            print("holds", fence.lease.attempt, flush=True)
            sys.stdin.readline()
            fence.check()
        print("has let go", flush=True)
    except P2PError as error:
        print(type(error).__name__, error, flush=True)
        status = error.exit_status
sys.exit(status)
"""


class Holder:
    """A process that holds, or tries to hold, the lease of an output."""

    def __init__(self, output: str, rounds: int = 1) -> None:
        words = [sys.executable, "-c", HOLDER, output, str(rounds)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def go_on(self) -> None:
        """To take the lease, or to let it go."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        """Let it go on to its end. Returns its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@pytest.fixture
def start() -> Iterator[Callable[..., Holder]]:
    started: list[Holder] = []

    def start(output: str, rounds: int = 1) -> Holder:
        started.append(Holder(output, rounds))
        return started[-1]

    yield start
    for holder in started:
        holder.process.kill()
        holder.process.wait()


@pytest.fixture
def hold(start: Callable[..., Holder]) -> Callable[[str], Holder]:
    def hold(output: str) -> Holder:
        holder = start(output)
        holder.go_on()
        return holder

    return hold


def test_of_processes_that_start_together_one_holds_the_lease(output: str, start: Callable[..., Holder]) -> None:
    rounds = 3
    holders = [start(output, rounds) for _ in range(4)]
    for _ in range(rounds):
        for holder in holders:
            holder.go_on()
        said = {holder: holder.says() for holder in holders}
        (winner,) = [holder for holder, words in said.items() if words == "holds 1"]
        for holder in holders:
            if holder is not winner:
                assert said[holder].startswith(f"ConfigError output {output}: translate on ")
                assert f"process {winner.process.pid}, attempt 1 writes there" in said[holder]
        winner.go_on()
        assert winner.says() == "has let go"
        assert not exists(join(output, lease.NAME))
    assert [holder.end() for holder in holders] == [0 if holder is winner else 2 for holder in holders]


def test_the_next_attempt_takes_over_from_one_that_was_killed(output: str, hold: Callable[[str], Holder]) -> None:
    first = hold(output)
    assert first.says() == "holds 1"
    first.process.kill()
    first.process.wait()
    heirs = [hold(output) for _ in range(3)]
    said = sorted(heir.says() for heir in heirs)
    assert said[-1] == "holds 2" and [words.split()[0] for words in said[:-1]] == ["ConfigError"] * 2


def test_one_that_stood_still_is_taken_over_and_publishes_nothing_when_it_wakes(
    output: str, hold: Callable[[str], Holder]
) -> None:
    first = hold(output)
    assert first.says() == "holds 1"
    first.process.send_signal(signal.SIGSTOP)
    second = hold(output)
    assert second.says() == "holds 2"
    first.process.send_signal(signal.SIGCONT)
    assert first.says().startswith(f"LeaseLostError {output} is written by translate on ")
    assert first.process.wait(30) == 1
    assert second.end() == 0


def test_another_machine_is_watched_before_it_counts_as_dead(
    tmp_path: Path, hold: Callable[[str], Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its clock says."""
    holder = hold(str(tmp_path))
    assert holder.says() == "holds 1"
    monkeypatch.setattr(lease.socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(lease.time, "time", lambda: 1e10)
    with pytest.raises(ConfigError, match=r"writes there"), hold_lease(str(tmp_path), "output", "translate"):
        pass
    holder.process.kill()
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 1.0)
    with hold_lease(str(tmp_path), "output", "translate") as fence:
        assert fence.lease.attempt == 2


def test_a_lease_says_who_holds_it_and_is_gone_afterwards(output: str) -> None:
    with hold_lease(output, "output", "train") as fence:
        found = read_lease(output)
        assert isinstance(found, Lease) and (found.job, found.pid, found.attempt) == ("train", os.getpid(), 1)
        fence.check()
    assert read_lease(output) is None
    with pytest.raises(KeyboardInterrupt), hold_lease(output, "output", "train"):
        raise KeyboardInterrupt
    assert read_lease(output) is None


def test_a_lease_of_a_later_attempt_is_the_end_of_this_one(output: str) -> None:
    with (
        pytest.raises(LeaseLostError, match="process 1, attempt 2 now"),
        hold_lease(output, "output", "train") as fence,
    ):
        later = dataclasses.replace(fence.lease, pid=1, attempt=2)
        write_bytes(join(output, lease.NAME), json.dumps(vars(later)).encode())
    assert read_lease(output) == later, "somebody else's is left alone"


def test_a_fence_looks_again_on_a_machine_that_started_later(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path), "output", "train") as fence:
        fence.check()
        fence._checked += 10_000  # as the clock of a machine that has been up for longer
        elsewhere = pickle.loads(pickle.dumps(fence))
        elsewhere.check(seconds=5)
    with pytest.raises(LeaseLostError, match="its lease is gone"):
        elsewhere.check()


def test_hosts_of_one_name_are_no_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process id of another container says nothing here."""
    with hold_lease(str(tmp_path), "output", "train") as fence:
        elsewhere = dataclasses.replace(fence.lease, pid=2**22 + 1, system="another", renewed=fence.lease.renewed)
        (tmp_path / lease.NAME).write_text(json.dumps(vars(elsewhere)))
        watched: list[float] = []
        monkeypatch.setattr(lease, "_POLL_SECONDS", 0.0)
        monkeypatch.setattr(lease.time, "monotonic", lambda: watched.append(0) or 100.0 * len(watched))
        lease._wait_until_dead(str(tmp_path), elsewhere, "output")
        assert len(watched) > 1, "watched, not taken for dead at once"
        monkeypatch.undo()
        (tmp_path / lease.NAME).write_text(json.dumps(vars(fence.lease)))


def test_a_disk_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    uri = str(tmp_path / "x")
    assert write_bytes(uri, b"1", only_new=True) and not write_bytes(uri, b"2", only_new=True)
    assert read_bytes(uri) == b"1" and list_names(str(tmp_path)) == ["x"]


def test_what_is_no_lease_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{}")
    with pytest.raises(ConfigError, match="remove the file"), hold_lease(str(tmp_path), "output", "train"):
        pass


def test_a_file_is_created_once(output: str) -> None:
    uri = join(output, "x")
    assert write_bytes(uri, b"1", only_new=True) and not write_bytes(uri, b"2", only_new=True)
    assert read_bytes(uri) == b"1" and write_bytes(uri, b"3") and read_bytes(uri) == b"3"
    assert list_names(output) == ["x"]
