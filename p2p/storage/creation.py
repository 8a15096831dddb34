"""Writing a file only where none is yet: of several processes that try at a time, one succeeds."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time

import fsspec

from p2p.errors import StorageError
from p2p.storage.error_mapping import http_status

log = logging.getLogger("p2p")

_ATTEMPTS, _PAUSE = 5, 1.0  # seconds; stores ask for a write that met another to be sent again
_OTHER_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
"""What is no sign that a disk has no links."""


def create_file(temporary: str, path: str) -> bool:
    """Give a whole local file its name, unless that is taken. Returns whether it was given."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return os.stat(temporary).st_nlink > 1  # NFS has sent the request twice, since its first answer was lost
    except OSError as error:  # exFAT, many network mounts and FUSE have no links
        if error.errno in _OTHER_TROUBLE:
            raise
        return _create_without_links(temporary, path)
    os.unlink(temporary)
    return True


def _create_without_links(temporary: str, path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(path)  # still empty
        raise
    return True


def create_object(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    """Write an object of a bucket, unless one of that name is there with other content. Returns whether it is there.

    Raises OSError, and StorageError where the store goes on refusing though nothing is there.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        try:
            filesystem.pipe_file(path, data, mode="create")
        except (OSError, TypeError, NotImplementedError) as error:
            status = http_status(error)
            if isinstance(error, FileExistsError) or status in (409, 412):
                # Something is there, or being written at this moment; or this very request has been sent twice.
                with contextlib.suppress(FileNotFoundError):
                    return bool(filesystem.cat_file(path) == data)
                continue
            if isinstance(error, OSError) and status != 501:
                raise
            return _create_without_conditions(filesystem, path, data)
        return True
    raise StorageError(
        f"{filesystem.unstrip_protocol(path)}: the store refuses this write again and again, though nothing is there"
    )


def _create_without_conditions(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    _log_missing_conditions(filesystem.unstrip_protocol(path).partition("://")[0])
    if filesystem.exists(path):
        return False
    filesystem.pipe_file(path, data)
    return True


@functools.cache
def _log_missing_conditions(protocol: str) -> None:
    log.warning(
        "%s://: this store has no conditional writes, so two jobs that start on one output within a second may not "
        "notice each other",
        protocol,
    )
