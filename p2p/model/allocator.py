"""Keeps freed memory in the process, so that not every batch page-faults its buffers in again."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER_TRIM = 2**31 - 1
_GROW_BY = 64 * 2**20


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the kernel; call before the first large tensor.

    A forward pass of a batch allocates and frees hundreds of megabytes; by default each buffer is mapped and
    page-faulted anew. The process stays as large as it ever was. Returns False, and changes nothing, where the
    C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  only glibc has it; musl's mallopt would mean something else
        settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_TOP_PAD, _GROW_BY))
        return all(library.mallopt(setting, value) == 1 for setting, value in settings)
    return False
