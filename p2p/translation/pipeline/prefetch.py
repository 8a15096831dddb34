"""Doing work ahead of its consumer, bounded by count and by weight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class StageTimer:
    """Seconds by stage of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """`seconds` more were spent on `stage`."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def ahead(
    call: Callable[[In], Out],
    items: Iterable[In],
    executor: Executor | None,
    *,
    count: int,
    weigh: Callable[[In], int] = lambda item: 0,
    most_weight: int = 0,
    waited: Callable[[float], None] = lambda seconds: None,
) -> Iterator[Out]:
    """Yield `call(item)` for each item, in order, with at most `count` begun and not yet yielded.

    Nor do those weigh more than `most_weight` together, unless a single one does. Without an executor each call is made
    in this thread, when its turn comes. `waited` is told the seconds that this thread stood still for a result.
    """
    if executor is None:
        for item in items:
            yield call(item)
        return
    begun: deque[tuple[Future[Out], int]] = deque()
    held = 0

    def settle() -> Out:
        nonlocal held
        future, weight = begun.popleft()
        held -= weight
        if future.done():
            return future.result()
        started = time.perf_counter()
        result = future.result()
        waited(time.perf_counter() - started)
        return result

    try:
        for item in items:
            weight = weigh(item)
            while begun and (len(begun) >= count or held + weight > most_weight):
                yield settle()
            begun.append((executor.submit(call, item), weight))
            held += weight
            while begun and begun[0][0].done():
                yield settle()
        while begun:
            yield settle()
    finally:
        for future, _ in begun:
            future.cancel()
