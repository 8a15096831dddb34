"""A limit on the time that one image may take, which holds for a decoder that hangs in C code as well."""

from __future__ import annotations

import faulthandler
import functools
import signal
import sys
import threading

DECODE_SECONDS = 120.0
"""No image takes that long: the largest one allowed is decoded in five seconds."""


class Deadline:
    """While entered, by any number of threads, the process ends if nothing enters or leaves for so many seconds.

    The clock is the system's (`SIGALRM`), since a decoder that hangs may hold Python's lock, and since it is set twice
    for each image. Where the process was goes to stderr.
    """

    def __init__(self, seconds: float) -> None:
        if sys.__stderr__ is not None:
            faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
        self._seconds = seconds
        self._inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._move(1)

    def __exit__(self, *error: object) -> None:
        self._move(-1)

    def _move(self, step: int) -> None:
        with self._lock:
            self._inside += step
            signal.setitimer(signal.ITIMER_REAL, self._seconds if self._inside else 0)


@functools.cache
def decode_deadline() -> Deadline:
    """The one under which this process decodes: a process has one such clock."""
    return Deadline(DECODE_SECONDS)
