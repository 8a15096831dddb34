"""What workers say on their way to the user's terminal: a small actor they post to and the driver reads."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.metrics import Gauge

from p2p.errors import P2PError
from p2p.progress import Progress

log = logging.getLogger("p2p")
_SECONDS_BETWEEN_READS = 1.0
_GAUGES = {
    "images_seen": "pairs trained on so far",
    "step": "optimiser steps taken, at the end of the last epoch",
    "images_per_second": "pairs per second, in the last epoch",
    "data_wait": "share of the last epoch in which a worker stood still for data",
}


@ray.remote(num_cpus=0)
class Board:
    """Lives as long as a training job, through restarts of its workers.

    It also tells Prometheus, through Ray, how the run `output` goes: `ray_p2p_train_…`, labelled with `output`.
    """

    def __init__(self, output: str) -> None:
        self._gauges = {name: Gauge(f"p2p_train_{name}", what, ("output",)) for name, what in _GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"output": output})
        self._lines: list[str] = []
        self._images_seen: int | None = None
        self._note = ""
        self._failure: P2PError | None = None

    def say(self, *lines: str) -> None:
        """Lines for the log."""
        self._lines += lines

    def progress(self, images_seen: int, note: str) -> None:
        """How far training is."""
        self._images_seen, self._note = images_seen, note
        self._gauges["images_seen"].set(images_seen)

    def measured(self, row: dict[str, Any]) -> None:
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

    def read(self) -> tuple[list[str], int | None, str]:
        """Lines since the last call, images seen, and a note to show beside the progress."""
        lines, self._lines = self._lines, []
        return lines, self._images_seen, self._note


def last_words(error: Exception) -> str:
    """The line of Ray's long messages that says what happened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].split(". ")[0][:300]


class LostWorkers(UserCallback):
    """Tells the board why workers are started again; runs in Ray Train's controller."""

    def __init__(self, board: Any, most_restarts: int) -> None:
        self._board, self._most_restarts = board, most_restarts
        self._failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray after workers failed, before it starts them again."""
        del run_context
        self._failures += 1
        again = f"starting the workers again ({self._failures} of {self._most_restarts})"
        if self._failures > self._most_restarts:
            again = "that was once too often"
        for rank, error in sorted(worker_exceptions.items()):
            if isinstance(error, P2PError) and not error.may_pass:
                continue  # ends the job, which says so
            self._board.say.remote(f"worker {rank} was lost: {last_words(error)}; {again}")


class ProgressThread:
    """Shows in this process what the board holds, until the `with` block ends."""

    def __init__(self, board: Any, total_images: int) -> None:
        self._board, self._total = board, total_images
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="p2p-progress", daemon=True)

    def __enter__(self) -> ProgressThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        with ExitStack() as stack:
            progress: Progress | None = None
            last = False
            while not last:
                last = self._ended.wait(_SECONDS_BETWEEN_READS)
                lines, images_seen, note = ray.get(self._board.read.remote())
                for line in lines:
                    log.info("%s", line)
                if images_seen is None:
                    continue
                if progress is None:  # the rate counts from the first batch, not from the start of Ray
                    progress = stack.enter_context(
                        Progress("training", total=self._total, unit="img", done_before=images_seen)
                    )
                progress.advance(images_seen - progress.done, note)
