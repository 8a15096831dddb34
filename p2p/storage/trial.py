"""Work at which a process has ended before (a crash in a decoder, a hang, more memory than there is) is tried in a
process of its own, whose end shows which item is the reason.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from p2p.errors import BadInputError, ChildEndedError, P2PError
from p2p.storage.child import ChildProcess
from p2p.storage.deadline import DECODE_SECONDS

PROCESS_ENDED = "ProcessEnded"
"""Kind of a BadInputError at which processes end."""
_MEMORY_LEFT = 0.1
"""Share of the memory that a trial leaves free; without, the kernel or Ray would end other processes."""
_MIN_MEMORY = 2**30  # torch alone takes half of it
_CGROUP = Path("/sys/fs/cgroup")


def process_ended(what: str = "") -> BadInputError:
    """The error for an input at which processes end; `what` names it where nothing else does."""
    return BadInputError(
        PROCESS_ENDED,
        f"{what}the process that worked on it ended each time: a crash, a hang of more than {DECODE_SECONDS:g} s, or "
        "more memory than there is",
    )


def find_fatal_item(work: Callable[..., Iterable[Any]], *args: Any) -> int | None:
    """Go through `work(*args)` in another process, which is started for it and imports no more than that.

    Args:
        work: a module's function, whose items are thrown away.
        args: can be pickled.

    Returns:
        How many items it had yielded when the process ended; None if it finished, or raised an exception other than
        MemoryError, which the caller will meet too.

    Raises:
        P2PError: no process can be started.

    """
    count = 0
    with ChildProcess({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}) as child:
        try:
            for _ in child.run(_try_each, work, *args):
                count += 1
        except (ChildEndedError, MemoryError) as error:
            if isinstance(error, ChildEndedError) and not count:
                raise P2PError(
                    f"the process in which images are tried could not be started ({error}); free memory on that "
                    "machine and run the same command again"
                ) from None
            return count - 1
        except Exception:
            return None
    return None


def _try_each(work: Callable[..., Iterable[Any]], *args: Any) -> Iterator[None]:
    """Yield once at the start, and after each item of `work`."""
    _limit_memory()
    yield
    for _ in work(*args):
        yield


def _limit_memory() -> None:
    """Asking for more memory than there is raises MemoryError here, or else the kernel ends this process first."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        total, free = _memory()
        limit = max(_MIN_MEMORY, free - int(_MEMORY_LEFT * total))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _memory() -> tuple[int, int]:
    """Bytes of memory, in all and free, of this machine or of the container with less of it."""
    kib = {line.split(":")[0]: int(line.split()[1]) for line in _lines(Path("/proc/meminfo"))}
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    with contextlib.suppress(OSError, ValueError, KeyError):  # without a limit there is no file, or "max" in it
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        parts = dict(line.split() for line in _lines(_CGROUP / "memory.stat"))
        used -= int(parts["inactive_file"]) + int(parts["active_file"])
        total, free = min(total, limit), min(free, limit - used)
    return total, free


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()
