"""The files below a folder or prefix, in order, and which links among them are followed."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from p2p.storage.names import is_hidden, is_hidden_folder, printable

log = logging.getLogger("p2p")


def walk_files(
    filesystem: fsspec.AbstractFileSystem, top: str, seen: set[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and details of the files below `top`. On a local disk, `seen` are the real paths of the folders that need no
    link to be listed; None elsewhere. Links to these are not followed, and reported.
    """
    passed = _Passed()
    yield from _walk(filesystem, top, seen, passed)
    if passed.count:
        _log_passed(top, passed.first, passed.count - 1)


@dataclass
class _Passed:
    """Links that are not followed."""

    first: str = ""
    count: int = 0

    def add(self, link: str) -> None:
        self.first, self.count = self.first or link, self.count + 1


def _walk(
    filesystem: fsspec.AbstractFileSystem, top: str, seen: set[str] | None, passed: _Passed
) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder, subfolders, files in filesystem.walk(top, detail=True):
        for name in [name for name in subfolders if is_hidden_folder(name)]:
            del subfolders[name]
        for name in sorted(subfolders):  # walk follows the dictionary's order
            subfolders[name] = subfolders.pop(name)
        for name in sorted(files):
            whole = f"{folder.rstrip('/')}/{name}"
            if name and seen is not None and files[name]["islink"] and os.path.isdir(whole):
                real = os.path.realpath(whole)
                if is_hidden_folder(name):
                    continue
                if any(_is_below(real, other) or _is_below(other, real) for other in seen):
                    passed.add(f"{whole} -> {real}")
                    continue
                seen.add(real)
                yield from _walk(filesystem, whole, seen, passed)
            elif name and not is_hidden(name):
                yield whole, files[name]


@functools.cache  # a source may be listed several times
def _log_passed(top: str, link: str, others: int) -> None:
    more = f" and {others} more" if others else ""
    why = "not followed, since what they link to is listed without them or holds the source"
    log.info("%s: links to folders are %s: %s%s", top, why, printable(link), more)


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")
