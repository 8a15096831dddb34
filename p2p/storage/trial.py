"""Work at which a process has ended before (a crash in a decoder, a hang, more memory than there is) is tried in a
process of its own: that one may end, and then it is known at which item.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from p2p.errors import BadInputError, P2PError
from p2p.storage.deadline import DECODE_SECONDS

PROCESS_ENDED = "ProcessEnded"
"""Kind of a BadInputError at which processes end."""
_STARTED, _ITEM, _FINISHED = b"s", b"i", b"f"
_PR_SET_PDEATHSIG = 1
_MEMORY_LEFT = 0.1
"""Share of the memory that a trial leaves alone: the kernel or Ray would end other processes."""
_MIN_MEMORY = 512 * 2**20
_CGROUP = Path("/sys/fs/cgroup")


def process_ended(what: str = "") -> BadInputError:
    """The error for an input at which processes end; `what` names it where the message stands alone."""
    return BadInputError(
        PROCESS_ENDED,
        f"{what}the process that worked on it ended each time: a crash, a hang of more than {DECODE_SECONDS:g} s, or "
        "more memory than there is",
    )


def find_fatal_item(work: Callable[..., Iterable[Any]], *args: Any) -> int | None:
    """Go through `work(*args)` in another process, which is started for it (not forked) and imports no more than that.

    Returns how many items it had yielded when the process ended; None if it came to its end, or to an exception other
    than MemoryError, which the caller will meet too. Args:

        work: a module's function, whose items are thrown away.
        args: can be pickled.

    Raises P2PError if no process can be started.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "p2p.storage.trial"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    try:
        answers, _ = process.communicate(pickle.dumps((work, args)))
    except BaseException:
        process.kill()
        process.wait()
        raise
    if not answers.startswith(_STARTED):
        raise P2PError(
            f"the process in which images are tried could not be started (status {process.returncode}); "
            "free memory on that machine and run the same command again"
        )
    return None if answers.endswith(_FINISHED) else answers.count(_ITEM)


def _end_with_parent() -> None:
    """A worker that is killed leaves no process behind. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory() -> None:
    """More than there is becomes a MemoryError here, before it ends a neighbour; or else this process goes first."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        total, free = _memory()
        limit = max(_MIN_MEMORY, free - int(_MEMORY_LEFT * total))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _memory() -> tuple[int, int]:
    """Bytes of memory, in all and free, of this machine or of the container with less of it."""
    kib = {line.split(":")[0]: int(line.split()[1]) for line in _lines(Path("/proc/meminfo"))}
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    with contextlib.suppress(OSError, ValueError, KeyError):  # without a limit there is no file, or it says "max"
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        parts = dict(line.split() for line in _lines(_CGROUP / "memory.stat"))
        used -= int(parts["inactive_file"]) + int(parts["active_file"])
        total, free = min(total, limit), min(free, limit - used)
    return total, free


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()


def main() -> None:
    """The process: work on stdin, one byte for each item to stdout."""
    _end_with_parent()
    faulthandler.enable()
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)  # whatever a library prints is no answer
        work, args = pickle.loads(sys.stdin.buffer.read())  # by the process that started this one
        _limit_memory()
        answers.write(_STARTED)
        try:
            for _ in work(*args):
                answers.write(_ITEM)
        except MemoryError:
            os._exit(1)
        except Exception:  # who has asked goes on to do the same, and tells of it
            pass
        answers.write(_FINISHED)


if __name__ == "__main__":
    main()
