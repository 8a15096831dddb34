"""Doing work ahead of its consumer, bounded by count and by weight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def prefetch(
    call: Callable[[In], Out],
    items: Iterable[In],
    executor: Executor | None,
    *,
    count: int,
    weigh: Callable[[In], int] = lambda item: 0,
    max_weight: int = 0,
    waited: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Out]:
    """Yield `call(item)` for each item, in order, with at most `count` started and not yet yielded.

    Nor do they weigh more than `max_weight` together, unless a single one does. Without an executor each call is made
    in this thread, when its turn comes. `waited` is called with the seconds that this thread waited for a result.
    """
    if executor is None:
        for item in items:
            yield call(item)
        return
    started: deque[tuple[Future[Out], int]] = deque()
    held = 0

    def take_first() -> Out:
        nonlocal held
        future, weight = started.popleft()
        held -= weight
        if future.done():
            return future.result()
        before = time.perf_counter()
        result = future.result()
        waited(time.perf_counter() - before)
        return result

    try:
        for item in items:
            weight = weigh(item)
            while started and (len(started) >= count or held + weight > max_weight):
                yield take_first()
            started.append((executor.submit(call, item), weight))
            held += weight
            while started and started[0][0].done():
                yield take_first()
        while started:
            yield take_first()
    finally:
        for future, _ in started:
            future.cancel()
