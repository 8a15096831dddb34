"""What the system says of processes. Their ids are used again, so that one is known by when it began as well."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def running_system() -> str:
    """The boot of this machine, and the namespace of its process ids. Empty where the system does not say."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""  # /proc is that of an outer namespace
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def start_time(pid: int) -> str | None:
    """When a process began, in ticks since the boot. Empty where none of that id runs, None where one does of which the
    system says nothing here.
    """
    found = _state_and_start(pid)
    return found and found[1]


def is_stopped(pid: int) -> bool:
    """Whether a process stands still, by SIGSTOP or a debugger."""
    found = _state_and_start(pid)
    return found is not None and found[0] in ("T", "t")


def _state_and_start(pid: int) -> tuple[str, str] | None:
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
        # One that has ended is a zombie until its parent has noticed.
        return ("", "") if state in ("Z", "X") else (state, fields[18])
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "", ""
        except PermissionError:
            pass
        return None
