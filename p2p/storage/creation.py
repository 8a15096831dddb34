"""Writing a file only where none is yet, or only in place of what was seen there: of several processes one succeeds."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable

import fsspec

from p2p.errors import StorageError
from p2p.storage.error_mapping import http_status

log = logging.getLogger("p2p")

_ATTEMPTS, _PAUSE = 5, 1.0  # seconds; stores ask for a write that met another to be sent again
_RESERVED_SECONDS = 60.0  # after which the process that wanted to create a file has died
RESERVED_PREFIX = ".p2p-new-"
"""How the names of files begin that keep others from creating a file meanwhile, on disks without links."""
_OTHER_TROUBLE = {errno.ENOENT, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
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
    folder, name = os.path.split(path)
    # Not under the name itself: a process that is killed here would leave an empty file that counts as whole.
    reserved = os.path.join(folder, f"{RESERVED_PREFIX}{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}")
    while True:
        try:
            os.close(os.open(reserved, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                os.utime(temporary)  # the disk's own clock, whatever this machine's says
                if os.stat(temporary).st_mtime - os.stat(reserved).st_mtime > _RESERVED_SECONDS:
                    os.unlink(reserved)  # of a process that was killed
                    continue
            if os.path.lexists(path):
                return False
            time.sleep(_PAUSE)
    try:
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(reserved)


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


def replace_object(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes, check: Callable[[], None]) -> None:
    """Write an object of a bucket; where one is there, `check` is called first. It raises if that is no longer allowed.

    So a request that was sent before, and that arrives late, replaces nothing.
    """
    try:
        filesystem.pipe_file(path, data, mode="create")
    except (OSError, TypeError, NotImplementedError) as error:
        is_there = isinstance(error, FileExistsError) or http_status(error) in (409, 412)
        if isinstance(error, OSError) and not is_there and http_status(error) != 501:
            raise
        check()
        filesystem.pipe_file(path, data)


def replace_object_seen(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes, etag: str) -> None:
    """Write an object of a bucket in place of the one with that tag; where another is there by now, write nothing.

    Without a tag, or where the store has no conditional writes, it is written anyway.
    """
    if etag:
        try:
            filesystem.pipe_file(path, data, IfMatch=etag)
            return
        except (OSError, TypeError, NotImplementedError) as error:
            if http_status(error) in (409, 412):
                return
            if isinstance(error, OSError) and http_status(error) != 501:
                raise
    filesystem.pipe_file(path, data)


def _create_without_conditions(filesystem: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    log_missing_conditions(filesystem.unstrip_protocol(path).partition("://")[0])
    if filesystem.exists(path):
        return False
    filesystem.pipe_file(path, data)
    return True


@functools.cache
def log_missing_conditions(protocol: str) -> None:
    """Say once that a store cannot keep two jobs from writing one object."""
    log.warning(
        "%s://: this store has no conditional writes, so two jobs that start on one output within a second may not "
        "notice each other",
        protocol,
    )
