"""When a training looks whether it was asked to stop, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2p.training import stop
from p2p.training.stop import StopRequestedError, StopSignal


class Looks:
    """A training of one rank whose clock only its steps and pauses move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.stop_requested, self.looks = 0.0, False, 0
        monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(stop.ray, "get", lambda answer: answer)
        monkeypatch.setattr(stop.ray.train, "get_preemption_info", lambda: None)
        reporter, trainer = SimpleNamespace(stop_requested=SimpleNamespace(remote=self._look)), SimpleNamespace()
        trainer.rank, trainer.world = 0, 1
        self.signal = StopSignal(reporter, trainer)  # type: ignore[arg-type]

    def _look(self) -> bool:
        self.looks += 1
        return self.stop_requested

    def step(self, seconds: float) -> None:
        keeper: Any = None
        self.now += seconds
        self.signal.check(keeper)


def test_the_first_step_after_a_slow_end_of_an_epoch_looks_although_steps_are_quick(monkeypatch):
    training = Looks(monkeypatch)
    for _ in range(100):
        training.step(0.001)
    training.stop_requested = True
    training.step(0.001)  # no second has gone by
    training.now += 5.0  # validation, checkpoint, report
    training.signal.start_epoch()
    with pytest.raises(StopRequestedError):
        training.step(0.001)


def test_steps_of_which_the_first_are_quick_are_looked_at_soon(monkeypatch):
    """A GPU's first steps of an epoch are only queued."""
    training = Looks(monkeypatch)
    training.step(0.001)
    training.stop_requested = True
    with pytest.raises(StopRequestedError):
        for _ in range(4):
            training.step(0.3)


def test_looks_are_a_second_apart(monkeypatch):
    training = Looks(monkeypatch)
    for _ in range(1000):
        training.step(0.1)
    assert 100 <= training.looks <= 110
