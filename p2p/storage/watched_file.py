"""A file of p2p's file systems as GDAL opens it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any

from p2p.errors import BadInputError, NotFoundError, P2PError, RefusedError
from p2p.storage.bounded import require_regular_file
from p2p.storage.deadline import Deadline
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import is_remote, open_filesystem
from p2p.storage.names import printable

_READ_AHEAD = 5 * 2**20


@contextlib.contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """As `storage_errors`; but what is wrong with this one file alone is a BadInputError."""
    try:
        with storage_errors(uri):
            yield
    except NotFoundError:
        raise BadInputError("NotFound", "no file lies at this address, or no longer") from None
    except RefusedError as error:
        raise BadInputError("Refused", printable(str(error))) from None


class WatchedFile:
    """One file of a file system, as GDAL sees it; remembers what went wrong there, which GDAL takes for a bad file."""

    def __init__(self, uri: str, deadline: Deadline | None = None) -> None:
        self.uri = uri
        self._deadline = deadline
        self._is_decoding = False
        self._fault: P2PError | MemoryError | None = None
        self._file: IO[bytes] | None = None
        with file_errors(uri):
            filesystem, path = open_filesystem(uri)
            require_regular_file(filesystem, path)
            details = filesystem.info(path)
            self.size = int(details["size"] or 0)
            changed = (
                details.get("ETag") or details.get("mtime") or details.get("LastModified") or details.get("updated")
            )
            self.modified = str(changed or "")
        self._filesystem, self._path = filesystem, path

    def open(self) -> _Opened:
        """A file object with a place of its own; all share what was read ahead."""
        if self._file is None:
            if is_remote(self.uri):
                options = {"block_size": _READ_AHEAD, "cache_type": "readahead", "size": self.size}
                self._file = self._filesystem.open(self._path, "rb", **options)
            else:
                self._file = open(self._path, "rb")  # noqa: SIM115 - closed by close
        return _Opened(self._file, self)

    def opener(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """What rasterio opens files with."""
        if path == "test":  # rasterio tries out what it was given
            return io.BytesIO()
        if path != "scene.tif" or "r" not in mode or "+" in mode:
            raise FileNotFoundError(path)
        try:
            with file_errors(self.uri):
                return self.open()
        except (P2PError, MemoryError) as error:
            self.note(error)
            raise OSError(str(error)) from None

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """While entered, GDAL works under the deadline."""
        with self._deadline or contextlib.nullcontext():
            self._is_decoding = True
            try:
                yield
            finally:
                self._is_decoding = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While entered, the deadline does not count: a storage that stalls is no fault of the image."""
        if self._deadline is None or not self._is_decoding:
            yield
            return
        self._deadline.__exit__()
        try:
            yield
        finally:
            self._deadline.__enter__()

    def note(self, error: P2PError | MemoryError) -> None:
        """Remember the first fault."""
        self._fault = self._fault or error

    def raise_fault(self) -> None:
        """Raise what the storage raised, if it did."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            with contextlib.suppress(Exception):
                self._file.close()


class _Opened(io.RawIOBase):
    """A file object whose errors are noted."""

    def __init__(self, file: IO[bytes], owner: WatchedFile) -> None:
        self._inner, self._owner = file, owner
        self._place = 0

    def read(self, size: int = -1) -> bytes:
        """As every file object does."""

        def read() -> bytes:
            self._inner.seek(self._place)
            return self._inner.read(size)

        data: bytes = self._noted(read)
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """As every file object does."""
        self._place = offset + {0: 0, 1: self._place, 2: self._owner.size}[whence]
        return self._place

    def tell(self) -> int:
        """As every file object does."""
        return self._place

    def _noted(self, call: Any, *args: Any) -> Any:
        try:
            with self._owner.waiting(), file_errors(self._owner.uri):
                return call(*args)
        except (P2PError, MemoryError) as error:
            self._owner.note(error)
            raise OSError(str(error)) from None
