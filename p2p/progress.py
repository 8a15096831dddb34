"""Progress with a rate and an ETA: a live bar on a terminal, plain periodic lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from p2p.errors import quote_controls

log = logging.getLogger("p2p")
_SECONDS_BETWEEN_LINES = 10.0


def format_duration(seconds: float) -> str:
    """Seconds -> `42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Counts `unit`s of work done out of `total` (None where it is not known).

    The rate counts this attempt only: work an earlier attempt did goes into `done_before`. `seconds_before` tells how
    long ago the work began whose first units are counted now.
    """

    def __init__(
        self, label: str, *, total: int | None, unit: str, done_before: int = 0, seconds_before: float = 0.0
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._done_before = done_before
        self._last_line = time.monotonic()
        self._started = self._last_line - seconds_before
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._bar.add_task(quote_controls(self.label), total=self.total, completed=self.done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            log.info("%s", self.describe())

    @property
    def rate(self) -> float:
        """Units per second of this attempt."""
        return (self.done - self._done_before) / max(time.monotonic() - self._started, 1e-9)

    def describe(self, note: str = "") -> str:
        """One line: what is done, how fast, and when the rest will be."""
        share = f"/{self.total} ({self.done / self.total:.0%})" if self.total else ""
        line = f"{self.label}: {self.done}{share} {self.unit}, {self.rate:.1f} {self.unit}/s"
        if self.total and self.rate > 0 and self.done < self.total:
            line += f", ETA {format_duration((self.total - self.done) / self.rate)}"
        return f"{line}  {note}".rstrip()

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside the rate."""
        self.done += count
        if self._bar is not None:
            shown = f"{self.rate:.1f} {self.unit}/s  {note}"
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=quote_controls(shown))
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info("%s", self.describe(note))
