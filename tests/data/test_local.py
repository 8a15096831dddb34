"""Small work in one child process: what comes back, and what becomes of processes that end."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import read_process

from p2p.data.local import EARLIER_ATTEMPTS, LocalWorker, current_worker, session, wants_ray
from p2p.data.tasks import count_earlier_attempts, run_as_task
from p2p.errors import BadInputError, TaskFailedError


def squares(log: str, fails_at: int = -1) -> Callable[[int], Iterator[tuple[int, int, int]]]:
    """Each number's square, by which process, and after how many earlier ones."""

    def call(number: int) -> Iterator[tuple[int, int, int]]:
        yield number**2, os.getpid(), count_earlier_attempts()
        with contextlib.suppress(FileExistsError):
            if number == fails_at:
                Path(log).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)

    return call


def ends(_: int) -> Iterator[int]:
    ctypes.string_at(0)
    yield 0


def always_ends() -> Callable[[int], Iterator[int]]:
    return ends


def starts_after(log: str, ends: int) -> Callable[[int], list[int]]:
    """The first processes end before they have begun."""
    with open(log, "a") as file:
        file.write(".")
    if os.path.getsize(log) <= ends:
        os.kill(os.getpid(), signal.SIGKILL)
    return lambda number: [number]


def refuses() -> Callable[[int], list[int]]:
    def call(number: int) -> list[int]:
        if number:
            raise BadInputError("Kind", "a reason")
        return [number]

    return call


def naps(log: str) -> None:
    with open(log, "a") as file:
        file.write("once ")
    time.sleep(60)


def environment() -> dict[str, str]:
    return dict(os.environ)


@pytest.fixture
def worker() -> Iterator[LocalWorker]:
    with session(small=True) as worker:
        assert worker is not None
        yield worker


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_from_one_other_process(worker: LocalWorker, tmp_path: Path, threads: int) -> None:
    found = list(worker.map(squares, (str(tmp_path / "log"),), range(7), threads=threads))
    assert [square for square, _, _ in found] == [number**2 for number in range(7)]
    (pid,) = {pid for _, pid, _ in found}
    assert pid not in (os.getpid(), 0)
    assert worker.call(os.getpid) == pid, "started once"


@pytest.mark.parametrize("threads", [1, 3])
def test_another_process_goes_on_where_one_ended(worker: LocalWorker, tmp_path: Path, threads: int) -> None:
    found = list(worker.map(squares, (str(tmp_path / "log"), 2), range(5), threads=threads))
    assert list(dict.fromkeys(square for square, _, _ in found)) == [0, 1, 4, 9, 16]
    again = [attempts for square, _, attempts in found if square == 4]
    assert again[-1] == 1, "the second process knows that one has ended over this batch"
    if threads == 1:
        assert found[-1][2] == 0, "and over no other"


def test_a_batch_that_ends_every_process_ends_the_work(worker: LocalWorker) -> None:
    with pytest.raises(TaskFailedError, match=r"SIGSEGV.*memory"):
        list(worker.map(always_ends, (), [1]))


def test_processes_may_end_before_they_have_begun_but_not_for_ever(worker: LocalWorker, tmp_path: Path) -> None:
    assert list(worker.map(starts_after, (str(tmp_path / "few"), 3), [5], max_attempts=math.inf)) == [5]
    with pytest.raises(TaskFailedError, match="SIGKILL"):
        list(worker.map(starts_after, (str(tmp_path / "all"), 99), [5], max_attempts=math.inf))


def test_an_error_comes_back_as_it_was_raised(worker: LocalWorker) -> None:
    with pytest.raises(BadInputError, match="a reason") as found:
        list(worker.map(refuses, (), [0, 1, 2]))
    assert found.value.kind == "Kind"


def test_a_call_that_takes_too_long_or_ends_its_process_is_given_up(worker: LocalWorker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    worker.call(environment)  # so that the time does not go by while the process starts and imports this module
    with pytest.raises(TaskFailedError, match="SIGKILL"):
        worker.call(naps, str(log), seconds=1.5)
    assert log.read_text() == "once ", "what took too long is not begun again"
    with pytest.raises(TaskFailedError, match="SIGSEGV"):
        worker.call(ctypes.string_at, 0)
    assert worker.call(abs, -3) == 3, "the next call has a process again"


def test_single_tasks_go_to_the_worker_of_the_session() -> None:
    assert current_worker() is None and run_as_task(os.getpid) == os.getpid()
    with session(small=True) as worker:
        assert current_worker() is worker and run_as_task(os.getpid) != os.getpid()
        told: dict[str, Any] = run_as_task(environment)
    assert current_worker() is None
    assert told["MALLOC_ARENA_MAX"] == "1" and told[EARLIER_ATTEMPTS] == "0"


def test_nothing_is_left_of_a_session(worker: LocalWorker) -> None:
    with session(small=True) as inner:
        assert inner is not None
        pid = inner.call(os.getpid)
        assert "p2p.storage.child" in read_process(pid, "cmdline")
    assert "p2p.storage.child" not in read_process(pid, "cmdline")


def test_ray_is_used_where_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.data.local.sys.modules", {})
    assert not wants_ray() and wants_ray(workers=2)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert wants_ray()
