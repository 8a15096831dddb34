"""One writer for each output: real processes that start together, are killed, are stopped and wake up again."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from p2p.errors import ConfigError, LeaseLostError, OutputInUseError, StorageError
from p2p.storage import creation, filesystems, lease
from p2p.storage.filesystems import exists, join, list_names, read_bytes, write_bytes
from p2p.storage.lease import Lease, hold_lease, read_lease
from p2p.storage.processes import running_system, start_time

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
                assert said[holder].startswith(f"OutputInUseError output {output}: translate on ")
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
    assert said[-1] == "holds 2" and [words.split()[0] for words in said[:-1]] == ["OutputInUseError"] * 2


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
    with pytest.raises(OutputInUseError, match=r"writes there"), hold_lease(str(tmp_path), "output", "translate"):
        pass
    holder.process.kill()
    holder.process.wait()
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 1.0)
    with hold_lease(str(tmp_path), "output", "translate") as fence:
        assert fence.lease.attempt == 2


def test_one_that_runs_on_this_machine_is_named_at_once_with_its_last_sign_of_life(
    tmp_path: Path, start: Callable[..., Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold_lease(str(tmp_path), "output", "train") as fence:
        process = start(str(tmp_path)).process
        mine = dataclasses.replace(fence.lease, pid=process.pid, system=identity(process.pid))
        (tmp_path / lease.NAME).write_text(json.dumps(vars(mine)))
        monkeypatch.setattr(lease.time, "time", lambda: mine.renewed + 7)
        said = rf"train on .*, process {process.pid}, .* sign of life 7 s ago; wait"
        with pytest.raises(OutputInUseError, match=said) as refused:
            lease._acquire(str(tmp_path), "output", "translate")
        assert refused.value.exit_status == 2 and not refused.value.is_final, "the other may yet die"
        monkeypatch.undo()
        (tmp_path / lease.NAME).write_text(json.dumps(vars(fence.lease)))


def identity(pid: int) -> str:
    return f"{running_system()} {start_time(pid)}"


def test_one_that_ended_is_taken_over_from_at_once_before_its_parent_notices_and_where_its_id_is_used_again(
    tmp_path: Path,
    start: Callable[..., Holder],
    hold: Callable[[str], Holder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 1e9)
    first = hold(str(tmp_path))
    assert first.says() == "holds 1"
    first.process.kill()
    os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)
    with hold_lease(str(tmp_path), "output", "translate") as fence:
        assert fence.lease.attempt == 2
    for pid in (os.getpid(), start(str(tmp_path)).process.pid):  # which began at other times
        earlier = dataclasses.replace(fence.lease, pid=pid, system=f"{running_system()} 1")
        (tmp_path / lease.NAME).write_text(json.dumps(vars(earlier)))
        with hold_lease(str(tmp_path), "output", "translate") as next_one:
            assert next_one.lease.attempt == 3


def test_of_some_it_cannot_be_told_here_whether_they_live(
    tmp_path: Path, start: Callable[..., Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(*_: object) -> None:
        raise PermissionError

    with hold_lease(str(tmp_path), "output", "train") as fence:
        assert lease._is_running(fence.lease) is None, "it may be left of an earlier job of this process"
    process = start(str(tmp_path)).process
    other = dataclasses.replace(fence.lease, pid=process.pid, system=identity(process.pid))
    assert lease._is_running(other)
    assert lease._is_running(dataclasses.replace(other, system=f"another {other.system}")) is None
    assert lease._is_running(dataclasses.replace(other, system=running_system())) is None, "of an earlier version"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert lease._is_running(other) is None
    process.kill()
    process.wait()
    assert lease._is_running(other) is False
    monkeypatch.setattr(os, "kill", hidden)
    assert lease._is_running(other) is None


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
        later = dataclasses.replace(fence.lease, pid=1, attempt=2, started=fence.lease.started + 1)
        write_bytes(join(output, lease.NAME), json.dumps(vars(later)).encode())
    assert read_lease(output) == later, "somebody else's is left alone"


def test_so_is_one_of_a_job_that_came_after_the_one_that_took_over(output: str) -> None:
    """It is a first attempt again, where the job before it has ended and removed its lease."""
    with hold_lease(output, "output", "train") as fence:
        dead = dataclasses.replace(fence.lease, pid=2**22 + 1, started=fence.lease.started + 100)
    write_bytes(join(output, lease.NAME), json.dumps(vars(dead)).encode())
    with pytest.raises(LeaseLostError, match="attempt 1 now"), hold_lease(output, "output", "train") as fence:
        assert fence.lease.attempt == 2 and fence.lease.started > dead.started, "though its clock is behind"
        later = dataclasses.replace(fence.lease, pid=1, attempt=1, started=fence.lease.started + 1)
        write_bytes(join(output, lease.NAME), json.dumps(vars(later)).encode())


def test_a_job_whose_first_interruption_is_lost_is_interrupted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that comes between a thread's last look at signals and its waiting in the system."""
    lost: list[object] = []
    kill = signal.pthread_kill
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 1.0)
    monkeypatch.setattr(signal, "pthread_kill", lambda *words: kill(*words) if lost else lost.append(words))
    with pytest.raises(LeaseLostError), hold_lease(str(tmp_path), "output", "train") as fence:
        later = dataclasses.replace(fence.lease, pid=1, started=fence.lease.started + 1)
        write_bytes(join(str(tmp_path), lease.NAME), json.dumps(vars(later)).encode())
        threading.Event().wait(60)
        pytest.fail("nothing interrupted it")
    assert lost


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
        elsewhere = dataclasses.replace(fence.lease, pid=2**22 + 1, system=f"another {fence.lease.system}")
        (tmp_path / lease.NAME).write_text(json.dumps(vars(elsewhere)))
        watched: list[float] = []
        monkeypatch.setattr(lease, "_POLL_SECONDS", 0.0)
        monkeypatch.setattr(lease.time, "monotonic", lambda: watched.append(0) or 100.0 * len(watched))
        lease._wait_until_dead(str(tmp_path), elsewhere, "output")
        assert len(watched) > 1, "watched, not taken for dead at once"
        monkeypatch.undo()
        (tmp_path / lease.NAME).write_text(json.dumps(vars(fence.lease)))


def test_an_older_attempts_last_renewal_ends_nobody_and_any_other_lease_does(tmp_path: Path) -> None:
    """The clock of another machine may be behind."""
    mine = Lease(job="train", host="a", pid=1, attempt=2, started=100.0, renewed=100.0)
    fence = lease.Fence(str(tmp_path), mine)
    for other, is_lost in (
        (dataclasses.replace(mine, renewed=200.0), False),
        (dataclasses.replace(mine, pid=2, attempt=1, started=50.0), False),
        (dataclasses.replace(mine, pid=2, attempt=3, started=101.0), True),
        (dataclasses.replace(mine, pid=2, attempt=1, started=101.0), True),
        (dataclasses.replace(mine, pid=2, attempt=2, started=50.0), True),
    ):
        (tmp_path / lease.NAME).write_text(json.dumps(vars(other)))
        with pytest.raises(LeaseLostError) if is_lost else contextlib.nullcontext():
            fence.check()


@pytest.mark.parametrize("job", ["refused", "done"])
def test_folders_that_a_refused_job_made_go_with_it(tmp_path: Path, job: str) -> None:
    with hold_lease(str(tmp_path / "a" / "b"), "output", "train"):
        if job == "done":
            (tmp_path / "a" / "x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == (["a", "x"] if job == "done" else [])


def test_a_claim_that_its_job_died_of_is_removed_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 0.5)
    with hold_lease(str(tmp_path), "output", "train") as fence:
        dead = dataclasses.replace(fence.lease, host="another")
    (tmp_path / lease.NAME).write_text(json.dumps(vars(dead)))
    claim = tmp_path / f".p2p-lease-2-{int(dead.started)}"
    claim.write_text(json.dumps(vars(dataclasses.replace(dead, attempt=2, renewed=dead.renewed + 3600))))
    with hold_lease(str(tmp_path), "output", "train") as fence:
        assert fence.lease.attempt == 2 and not claim.exists()


def test_a_disk_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    uri = str(tmp_path / "x")
    assert write_bytes(uri, b"1", only_new=True) and not write_bytes(uri, b"2", only_new=True)
    assert read_bytes(uri) == b"1" and list_names(str(tmp_path)) == ["x"]
    monkeypatch.setattr(os, "replace", no_links)
    with pytest.raises(StorageError):
        write_bytes(str(tmp_path / "y"), b"1", only_new=True)
    assert list_names(str(tmp_path)) == ["x"], "an empty file would count as written"


def test_a_disk_that_is_full_is_not_one_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StorageError, match="no space left"):
        write_bytes(str(tmp_path / "x"), b"1", only_new=True)
    assert not list_names(str(tmp_path))


def test_a_link_that_nfs_was_asked_for_twice_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first request was lost, so the system sends another, which finds the link."""
    link = os.link

    def twice(*paths: str) -> None:
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", twice)
    uri = str(tmp_path / "x")
    assert write_bytes(uri, b"1", only_new=True) and not write_bytes(uri, b"1", only_new=True)
    assert list_names(str(tmp_path)) == ["x"]


@pytest.mark.parametrize("conflicts", [1, 99])
def test_a_write_that_met_another_is_sent_again(s3: Any, monkeypatch: pytest.MonkeyPatch, conflicts: int) -> None:
    """Nothing is there though the store has said 409: the other write did not come to its end."""
    left = [conflicts]
    store = filesystems.open_filesystem(s3.uri("x"))[0]
    put = store.pipe_file

    def meet(*words: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            said = {"Error": {"Code": "ConditionalRequestConflict"}, "ResponseMetadata": {"HTTPStatusCode": 409}}
            raise OSError(errno.EBUSY, "conflict") from ClientError(said, "PutObject")
        return put(*words, **options)

    monkeypatch.setattr(store, "pipe_file", meet)
    monkeypatch.setattr(creation, "_PAUSE", 0.01)
    if conflicts == 1:
        assert write_bytes(s3.uri("x"), b"1", only_new=True) and read_bytes(s3.uri("x")) == b"1" and left == [0]
    else:
        with pytest.raises(StorageError, match=r"s3://.*refuses this write again and again"):
            write_bytes(s3.uri("x"), b"1", only_new=True)


@pytest.mark.parametrize("how", ["the store", "its library"])
def test_a_store_without_conditional_writes_is_told_once_and_the_lease_alone_holds(
    s3: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    store = filesystems.open_filesystem(s3.uri("x"))[0]
    put = store.pipe_file

    def refuse(path: str, data: bytes, mode: str = "overwrite", **options: Any) -> Any:
        if mode == "overwrite":
            return put(path, data, **options)
        if how == "its library":
            raise NotImplementedError
        said = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
        raise OSError(errno.ENOSYS, "a header you provided implies functionality that is not implemented") from (
            ClientError(said, "PutObject")
        )

    creation.log_missing_conditions.cache_clear()
    monkeypatch.setattr(store, "pipe_file", refuse)
    with hold_lease(s3.uri("out"), "output", "train"):
        assert read_lease(s3.uri("out"))
        with pytest.raises(LeaseLostError), hold_lease(s3.uri("other"), "output", "train") as fence:
            later = dataclasses.replace(fence.lease, pid=1, started=fence.lease.started + 1)
            write_bytes(s3.uri("other", lease.NAME), json.dumps(vars(later)).encode())
    assert write_bytes(s3.uri("x"), b"1", only_new=True) and not write_bytes(s3.uri("x"), b"2", only_new=True)
    (line,) = [line for line in caplog.messages if "no conditional writes" in line]
    assert line.startswith("s3://: this store")


def test_what_is_no_lease_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{}")
    with pytest.raises(ConfigError, match="remove the file"), hold_lease(str(tmp_path), "output", "train"):
        pass


def test_a_file_is_created_once(output: str) -> None:
    uri = join(output, "x")
    assert write_bytes(uri, b"1", only_new=True) and not write_bytes(uri, b"2", only_new=True)
    assert read_bytes(uri) == b"1" and write_bytes(uri, b"3") and read_bytes(uri) == b"3"
    assert list_names(output) == ["x"]
