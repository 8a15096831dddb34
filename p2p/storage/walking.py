"""The files below a folder or prefix, in order, and which links among them are followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import fsspec

from p2p.storage.names import is_hidden, is_hidden_folder


def walk_files(
    filesystem: fsspec.AbstractFileSystem, top: str, seen: set[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and details of the files below `top`. On a local disk, `seen` are the real paths of the folders that need no
    link to be listed; None elsewhere.
    """
    for folder, subfolders, files in filesystem.walk(top, detail=True):
        for name in [name for name in subfolders if is_hidden_folder(name)]:
            del subfolders[name]
        for name in sorted(subfolders):  # walk follows the dictionary's order
            subfolders[name] = subfolders.pop(name)
        for name in sorted(files):
            whole = f"{folder.rstrip('/')}/{name}"
            if name and seen is not None and files[name]["islink"] and os.path.isdir(whole):
                real = os.path.realpath(whole)
                if is_hidden_folder(name) or any(_is_below(real, other) or _is_below(other, real) for other in seen):
                    continue
                seen.add(real)
                yield from walk_files(filesystem, whole, seen)
            elif name and not is_hidden(name):
                yield whole, files[name]


def _is_below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")
