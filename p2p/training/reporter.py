"""An actor through which workers report to the job that started them, and the job asks them to stop."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.metrics import Gauge

from p2p.errors import P2PError
from p2p.progress import Progress

log = logging.getLogger("p2p")
_GAUGES = {
    "images_seen": "pairs trained on so far",
    "step": "optimiser steps taken, at the end of the last epoch",
    "images_per_second": "pairs per second, in the last epoch",
    "data_wait": "share of the last epoch in which a worker waited for data",
}


@ray.remote(num_cpus=0)
class RunReporter:
    """Lives as long as a training job, through restarts of its workers.

    It also reports to Prometheus, through Ray, how the run `output` goes: `ray_p2p_train_…`, labelled with `output`.
    """

    def __init__(self, output: str, max_preemptions: int) -> None:
        self._max_preemptions = max_preemptions
        self._gauges = {name: Gauge(f"p2p_train_{name}", what, ("output",)) for name, what in _GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"output": output})
        self._lines: list[str] = []
        self._images_seen: int | None = None
        self._note = ""
        self._failure: P2PError | None = None
        self._stop_requested = False
        self._preemptions = 0

    def log(self, *lines: str) -> None:
        """Lines for the user's terminal."""
        self._lines += lines

    def progress(self, images_seen: int, note: str) -> None:
        """How far training is."""
        self._images_seen, self._note = images_seen, note
        self._gauges["images_seen"].set(images_seen)

    def metrics(self, row: dict[str, Any]) -> None:
        """The numbers of an epoch, or of a part of one."""
        for name, gauge in self._gauges.items():
            if row.get(name) is not None:
                gauge.set(row[name])

    def fail(self, error: P2PError) -> None:
        """Training cannot go on, and a restart would not help."""
        self._failure = self._failure or error

    def failure(self) -> P2PError | None:
        """What `fail` was called with first."""
        return self._failure

    def preempted(self, step: int) -> None:
        """A node will be taken away, and a checkpoint of `step` is saved."""
        self._preemptions += 1
        self.log(
            f"a node is about to be taken away: saved step {step}; the workers start again elsewhere, from what is "
            f"saved by then ({self._preemptions} of {self._max_preemptions})"
        )

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and end."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Whether they were asked to."""
        return self._stop_requested

    def read(self) -> tuple[list[str], int | None, str]:
        """Lines since the last call, images seen (None until training has begun), and a note beside the progress."""
        lines, self._lines = self._lines, []
        return lines, self._images_seen, self._note


def last_line(error: BaseException) -> str:
    """The last line of an error's message: of Ray's long ones the reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].split(". ")[0][:300]


def is_preemption(error: BaseException) -> bool:
    """Whether a worker was lost with a node that Ray had been told to drain."""
    return isinstance(error, ray.exceptions.RayActorError) and bool(error.preempted)


class LostWorkers(UserCallback):
    """Reports why workers are started again; runs in Ray Train's controller."""

    def __init__(self, reporter: Any, max_failures: int) -> None:
        self._reporter, self._max_failures = reporter, max_failures
        self._failures = 0
        self._preempted: set[tuple[int, str]] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray after workers failed, before it starts them again."""
        del run_context
        if any(is_preemption(error) for error in worker_exceptions.values()):
            # Not counted among failures; Ray may call this again and again until it starts the others elsewhere.
            for rank, error in sorted(worker_exceptions.items()):
                if is_preemption(error) and (rank, str(error)) not in self._preempted:
                    self._preempted.add((rank, str(error)))
                    self._reporter.log.remote(f"worker {rank} went with its node; the workers start again elsewhere")
            return
        self._failures += 1
        again = f"starting the workers again ({self._failures} of {self._max_failures})"
        if self._failures > self._max_failures:
            again = "no restart is left"
        for rank, error in sorted(worker_exceptions.items()):
            if isinstance(error, P2PError) and not error.retryable:
                continue  # ends the job, which names it
            self._reporter.log.remote(f"worker {rank} was lost: {last_line(error)}; {again}")


class Display:
    """Shows in this process what a reporter holds: lines in the log, and progress. A context manager."""

    def __init__(self, reporter: Any, total_images: int) -> None:
        self._reporter, self._total = reporter, total_images
        self._progress: Progress | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)

    @property
    def has_begun(self) -> bool:
        """Whether training had begun when this was last refreshed."""
        return self._progress is not None

    def refresh(self, timeout: float | None = None) -> None:
        """Show what is new. Raises RayError where the reporter is lost or, within `timeout` seconds, says nothing."""
        lines, images_seen, note = ray.get(self._reporter.read.remote(), timeout=timeout)
        for line in lines:
            log.info("%s", line)
        if images_seen is None:
            return
        if self._progress is None:  # the rate counts from the first batch, not from the start of Ray
            self._progress = Progress("training", total=self._total, unit="img", done_before=images_seen)
            self._progress.__enter__()
        self._progress.advance(images_seen - self._progress.done, note)
