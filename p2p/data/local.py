"""Small work without Ray: one child process does what Ray's workers would, and is started again where it ends.

Starting Ray takes longer than many a job: one image is translated in half a second. The same functions do the work, so
that outputs, ledgers and what becomes of damaged inputs are the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

from p2p.data.machine import worker_environment
from p2p.errors import ChildEndedError, TaskFailedError
from p2p.storage.child import ChildProcess

Batch = TypeVar("Batch")
Result = TypeVar("Result")

EARLIER_ATTEMPTS = "P2P_EARLIER_ATTEMPTS"
"""The variable that tells a child process how many have ended over the batch that it begins with."""
MAX_ATTEMPTS = 8
"""Memory that others use up ends a process now and then; after so many ends it is the work that does it."""
log = logging.getLogger("p2p")


def wants_ray(workers: int = 0) -> bool:
    """Whether the user asked for Ray, by RAY_ADDRESS (as `ray job submit` does) or `workers`, or runs one already."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS") or workers or (ray and ray.is_initialized()))


class LocalWorker:
    """A child process that works through batches, and its successors."""

    def __init__(self) -> None:
        self._child: ChildProcess | None = None

    def map(
        self,
        make: Callable[..., Callable[[Batch], Iterable[Result]]],
        args: Sequence[Any],
        batches: Sequence[Batch],
        threads: int = 1,
        max_attempts: float = MAX_ATTEMPTS,
    ) -> Iterator[Result]:
        """Yield what `make(*args)(batch)` yields for each batch, in order.

        Where the process ends, another goes on with the batches that were not done; their results may come twice.

        Args:
            make: a module's function or class, called once in each process.
            args: for it; can be pickled.
            batches: likewise.
            threads: batches that are worked on at once.
            max_attempts: processes that may end over one batch; infinite where the work itself counts them.

        Raises:
            TaskFailedError: processes ended over the same batch again and again.
            Exception: what the call raises.

        """
        done = attempts = not_started = 0
        while done < len(batches):
            try:
                for is_result, value in self._start(attempts).run(_work, make, args, batches[done:], threads):
                    if is_result:
                        yield value
                    else:
                        done, attempts = done + 1, 0
            except ChildEndedError as error:
                self.close()
                attempts += 1
                not_started = 0 if error.started else not_started + 1
                if attempts > max_attempts or not_started > MAX_ATTEMPTS:
                    raise TaskFailedError(
                        f"{error}; if memory is short, free some and run the same command again"
                    ) from None
                log.info("%s; another goes on", error)

    def call(
        self, function: Callable[..., Result], *args: Any, seconds: float | None = None, retries: int = 1
    ) -> Result:
        """`function(*args)` in the process. Raises TaskFailedError if that ends, or takes more than `seconds`.

        Where a process ends before that time, the call is made again in a new one, up to `retries` times.
        """
        started = time.monotonic()
        while True:
            try:
                result: Result
                (result,) = self._start(0).run(_call, function, args, seconds=seconds)
            except ChildEndedError as error:
                self.close()
                if not retries or (seconds is not None and time.monotonic() - started >= seconds):
                    raise TaskFailedError(str(error)) from None
                retries -= 1
            else:
                return result

    def _start(self, attempts: int) -> ChildProcess:
        if self._child is None:
            self._child = ChildProcess({**worker_environment(), EARLIER_ATTEMPTS: str(attempts)})
        return self._child

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _work(
    make: Callable[..., Callable[[Batch], Iterable[Result]]],
    args: Sequence[Any],
    batches: Sequence[Batch],
    threads: int,
) -> Iterator[tuple[bool, Any]]:
    """Yield (True, result) for each result, and (False, None) after the last one of each batch."""
    call = make(*args)
    with ThreadPoolExecutor(threads) as pool:
        found = map(call, batches) if threads == 1 else pool.map(lambda batch: list(call(batch)), batches)
        for number, results in enumerate(found, 1):
            for result in results:
                yield True, result
            yield False, None
            if number >= threads:  # those that were worked on when an earlier process ended are through
                os.environ[EARLIER_ATTEMPTS] = "0"


def _call(function: Callable[..., Result], args: Sequence[Any]) -> Iterator[Result]:
    yield function(*args)


_CURRENT: ContextVar[LocalWorker | None] = ContextVar("local worker", default=None)


def leave_local_worker() -> None:
    """End the worker of the session around this call: its work goes to Ray."""
    if worker := _CURRENT.get():
        worker.close()
        _CURRENT.set(None)


def current_worker() -> LocalWorker | None:
    """The worker of the session around this call, if it is one without Ray."""
    return _CURRENT.get()


@contextlib.contextmanager
def session(*, small: bool) -> Iterator[LocalWorker | None]:
    """There are workers inside: one LocalWorker for small work, else Ray's (None). Raises what `ray_session` does."""
    if not small:
        from p2p.data.session import ray_session

        with ray_session():
            yield None
        return
    worker = LocalWorker()
    token = _CURRENT.set(worker)
    try:
        yield worker
    finally:
        _CURRENT.reset(token)
        worker.close()
