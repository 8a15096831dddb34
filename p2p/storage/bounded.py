"""Reading encoded images whose bytes are counted as they come, whatever a listing says of their size."""

from __future__ import annotations

import os
import stat

import fsspec
from fsspec.implementations.local import LocalFileSystem

from p2p.errors import BadInputError
from p2p.storage.error_mapping import http_status, storage_errors

DEFAULT_MAX_BYTES = 256 * 2**20
"""Encoded images of more bytes are refused, if nothing else is asked for; it bounds what one task holds."""


def read_limited(filesystem: fsspec.AbstractFileSystem, path: str, limit: int, uri: str) -> bytes:
    """The whole content of one encoded image. Raises BadInputError for more than `limit` bytes, and as
    `require_regular_file` does.
    """
    with storage_errors(uri):
        require_regular_file(filesystem, path)
        is_local = isinstance(filesystem, LocalFileSystem)
        data = _read_local(path, limit) if is_local else _read_object(filesystem, path, limit + 1)
    check_bytes(len(data), limit)
    return data


def check_bytes(size: int, limit: int) -> None:
    """Raise BadInputError for an encoded image of more than `limit` bytes."""
    if size > limit:
        raise BadInputError("FileTooLarge", f"more than the {limit} bytes allowed for one image (max_bytes)")


def require_regular_file(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Raise BadInputError for a pipe, socket or device on a local disk: opening or reading one may never end."""
    if isinstance(filesystem, LocalFileSystem):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is refused when it is read
            raise BadInputError("NotAFile", "a pipe, socket or device, not a regular file")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_local(path: str, limit: int) -> bytes:
    """A local file's content, cut off soon after `limit` bytes."""
    with open(path, "rb", opener=_open_without_waiting) as file:  # since it was looked at it may have become a pipe
        size = os.fstat(file.fileno()).st_size
        check_bytes(size, limit)
        data = file.read(size + 1)
        if len(data) > size:  # it grows, or the system does not say its size
            data += file.read(limit + 1 - len(data))
        return data


def _read_object(filesystem: fsspec.AbstractFileSystem, path: str, count: int) -> bytes:
    """The first `count` bytes of an object, fewer where it ends before, in one request."""
    # gcsfs would ask for the parts of a long range side by side, also for those behind the object's end.
    options = {"concurrency": 1} if "gs" in filesystem.protocol else {}
    try:
        return bytes(filesystem.cat_file(path, start=0, end=count, **options))
    except Exception as error:
        if 416 in (http_status(error), getattr(error, "code", None)):  # no byte of an empty object can be asked for
            return b""
        raise
