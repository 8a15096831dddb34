"""Tasks of Ray's: whether one is done for the first time or again since its process has ended, and running a single one
where images of unknown origin may be decoded.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from p2p.data.local import EARLIER_ATTEMPTS, MAX_ATTEMPTS, current_worker
from p2p.errors import P2PError, TaskFailedError

Result = TypeVar("Result")

_ADVICE = (
    "use machines with more memory for each CPU, or start Ray with fewer CPUs (ray start --num-cpus) and set "
    "RAY_ADDRESS, so that fewer tasks share the memory"
)


def count_earlier_attempts() -> int:
    """How many processes have ended over the current Ray task, of the current Ray actor, or as a LocalWorker; or 0."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return int(os.environ.get(EARLIER_ATTEMPTS, "0"))
    actor = ray.get_runtime_context().get_actor_id()
    if actor is None:
        worker: Any = ray._private.worker.global_worker
        return int(worker.core_worker.get_current_task_attempt_number())
    return int(ray._private.state.actors(actor_id=actor)["NumRestarts"])


def is_repeat(what: str) -> bool:
    """Whether a process has ended at this work before. `what` names the work.

    Ray repeats work at which its processes end for ever; raises TaskFailedError when that has been often enough.
    """
    earlier = count_earlier_attempts()
    if earlier >= MAX_ATTEMPTS:
        raise TaskFailedError(
            f"{earlier} processes have ended while they worked on {what}, though each image by itself does no harm; "
            f"if memory is short, {_ADVICE}"
        )
    return earlier > 0


@contextlib.contextmanager
def memory_reported(what: str) -> Iterator[None]:
    """Make a TaskFailedError with advice of a MemoryError inside: no image is to blame. `what` names the work."""
    try:
        yield
    except MemoryError as error:
        reason = " ".join(str(error).split()) or "out of memory"
        raise TaskFailedError(f"{what}: memory ran out ({reason}); {_ADVICE}") from None


def run_as_task(
    call: Callable[..., Result],
    *args: Any,
    num_cpus: float = 1,
    num_gpus: float = 0,
    retries: int = 1,
    seconds: float | None = None,
) -> Result:
    """`call(*args)` in a Ray task or a LocalWorker; where there is neither, in this process.

    The process that submits a job may hold rights that a worker has not, so it decodes nothing that strangers made.

    Args:
        call: a module's function.
        args: its arguments.
        num_cpus: what the task asks for.
        num_gpus: likewise.
        retries: how often it is repeated after its process has ended.
        seconds: how long to wait for it; None: for ever.

    Raises:
        TaskFailedError: its processes have ended, memory ran out, or the time was up.
        Exception: what `call` raises.

    """
    name = getattr(call, "__name__", str(call)).strip("_")
    if worker := current_worker():
        with memory_reported(name):
            return worker.call(call, *args, seconds=seconds, retries=retries)
    ray = sys.modules.get("ray")

    def work(*args: Any) -> Result:
        with memory_reported(name):
            return call(*args)

    if ray is None or not ray.is_initialized():
        return work(*args)
    remote = ray.remote(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_retries=retries,
        scheduling_strategy="DEFAULT",  # not in what a worker of Ray Train has reserved
    )
    reference = remote(work).remote(*args)
    try:
        result: Result = ray.get(reference, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)  # never one that may be over: Ray 2.60 then ends this process now and then
        raise TaskFailedError(f"the task {name} has not ended after {seconds:g} s") from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, P2PError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0]
        raise TaskFailedError(f"the processes of the task {name} have ended: {reason}") from None
    return result
