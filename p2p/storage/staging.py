"""A file that is written piece by piece and seen under its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from typing import IO

from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import TEMPORARY_PREFIX, is_remote, open_filesystem

_ONE_REQUEST = 64 * 2**20
_UPLOAD_BLOCK = 16 * 2**20


class StagedFile:
    """Write to `.file`, then `publish`. Beside the target on a disk; in an unnamed local file before an upload."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._filesystem, self._path = open_filesystem(uri)
        self._temporary = ""
        self.file: IO[bytes]
        with storage_errors(uri):
            if is_remote(uri):
                self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by publish or discard
            else:
                folder = os.path.dirname(self._path)
                os.makedirs(folder, exist_ok=True)
                self._temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
                self.file = open(self._temporary, "wb")  # noqa: SIM115

    def publish(self) -> int:
        """Show the file under its name. Returns its size in bytes."""
        with storage_errors(self._uri):
            self.file.flush()
            size = self.file.tell()
            if self._temporary:
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self._temporary, self._path)
            else:
                self._upload(size)
            return size

    def _upload(self, size: int) -> None:
        self.file.seek(0)
        if size <= _ONE_REQUEST:
            self._filesystem.pipe_file(self._path, self.file.read())
        else:
            # Without autocommit the object appears at commit(), so an error on the way leaves nothing half there.
            target = self._filesystem.open(self._path, "wb", autocommit=False, block_size=_UPLOAD_BLOCK)
            try:
                shutil.copyfileobj(self.file, target, _UPLOAD_BLOCK)
                target.close()
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
