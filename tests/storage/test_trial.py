"""Work that ends its process: found out at which item, by processes that really end."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p.errors import BadInputError, P2PError
from p2p.storage import trial
from p2p.storage.deadline import Deadline
from p2p.storage.trial import PROCESS_ENDED, find_fatal_item, process_ended


def endings(what: str, place: int, log: str = "") -> Iterator[int]:
    """Five items, at one of which something happens."""
    for number in range(5):
        if number == place:
            happen(what, log)
        yield number
        sys.stdout.write("no answer\n")


def happen(what: str, log: str) -> None:
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crashes":
        ctypes.string_at(0)
    if what == "hangs":
        with Deadline(0.3):
            ctypes.PyDLL(None).sleep(300)  # with Python's lock held
    if what == "memory":
        bytearray(2**62)
    if what == "leaves":
        os._exit(0)
    if what == "bad":
        raise BadInputError("Kind", "a reason")
    if what == "tells":
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        Path(log).write_text(f"{os.getpid()} {limit} {'ray' in sys.modules} {'torch' in sys.modules}")


@pytest.mark.parametrize("what", ["killed", "crashes", "hangs", "memory", "leaves"])
@pytest.mark.parametrize("place", [0, 3])
def test_the_item_is_found_at_which_a_process_ends(what: str, place: int) -> None:
    assert find_fatal_item(endings, what, place) == place


@pytest.mark.parametrize("what", ["nothing", "bad"])
def test_work_that_comes_to_its_end_or_to_an_error_has_none(what: str) -> None:
    assert find_fatal_item(endings, what, 2) is None


def test_work_is_done_in_another_process_that_has_less_memory_than_there_is(tmp_path: Path) -> None:
    assert find_fatal_item(endings, "tells", 1, str(tmp_path / "log")) is None
    pid, limit, has_ray, has_torch = (tmp_path / "log").read_text().split()
    total, free = trial._memory()
    assert int(pid) != os.getpid()
    assert 0 < int(limit) < total and free <= total
    assert (has_ray, has_torch) == ("False", "False")


def test_a_process_that_cannot_start_is_no_items_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(P2PError, match="could not be started"):
        find_fatal_item(endings, "nothing", 0)


def test_the_error_says_what_may_have_happened() -> None:
    error = process_ended("pair 'x': ")
    assert error.kind == PROCESS_ENDED
    assert str(error).startswith("pair 'x': the process") and "120 s" in str(error)
