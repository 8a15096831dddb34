"""A file that is written piece by piece and seen under its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import IO

from p2p.storage.creation import replace_object
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import SECONDS_BETWEEN_CHECKS, Holder, is_remote, open_filesystem, temporary_path

_ONE_REQUEST = 64 * 2**20
_UPLOAD_BLOCK = 16 * 2**20


class StagedFile:
    """Write to `.file`, then `publish`. Beside the target on a disk; in an unnamed local file before an upload."""

    def __init__(self, uri: str, fence: Holder | None = None) -> None:
        self._uri, self._fence = uri, fence
        self._filesystem, self._path = open_filesystem(uri)
        self._temporary = ""
        self.file: IO[bytes]
        with storage_errors(uri):
            if is_remote(uri):
                self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by publish or discard
            else:
                self._temporary = temporary_path(self._path, fence)
                self.file = open(self._temporary, "wb")  # noqa: SIM115

    def publish(self) -> int:
        """Show the file under its name. Returns its size in bytes. Raises LeaseLostError, StorageError."""
        with storage_errors(self._uri):
            self.file.flush()
            size = self.file.tell()
            if self._temporary:
                os.fsync(self.file.fileno())
                self.file.close()
                self._check()
                try:
                    os.replace(self._temporary, self._path)
                except FileNotFoundError:
                    self._check()  # the job that has taken over removed it
                    raise
            else:
                self._upload(size)
            return size

    def _check(self) -> None:
        if self._fence:
            self._fence.check()

    def _upload(self, size: int) -> None:
        self.file.seek(0)
        if size <= _ONE_REQUEST:
            if self._fence:
                self._fence.check(SECONDS_BETWEEN_CHECKS)
                replace_object(self._filesystem, self._path, self.file.read(), self._fence.check)
            else:
                self._filesystem.pipe_file(self._path, self.file.read())
        else:
            # Without autocommit the object appears at commit(), so an error on the way leaves nothing half there.
            target = self._filesystem.open(self._path, "wb", autocommit=False, block_size=_UPLOAD_BLOCK)
            try:
                shutil.copyfileobj(self.file, target, _UPLOAD_BLOCK)
                target.close()
                self._check()
            except BaseException:
                target.discard()
                raise
            target.commit()
        self.file.close()

    def discard(self) -> None:
        """Forget the file. Does nothing after `publish`."""
        with contextlib.suppress(OSError):  # closing writes what is left, for which a full disk has no room
            self.file.close()
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
