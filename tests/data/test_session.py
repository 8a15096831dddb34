"""What a terminal shows while Ray starts, and whose turn it is where Ray is private."""

from __future__ import annotations

import os
import threading

import pytest

from p2p.data.session import without_level_told


def test_only_one_line_of_ray_is_kept_from_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), without_level_told():
        os.write(2, b"one\n[I 1 1] logging.cc:303: Set ray log level from environment variable X to 3\ntwo\n")
        raise KeyboardInterrupt
    os.write(2, b"three\n")
    assert capfd.readouterr().err == "one\ntwo\nthree\n"


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
