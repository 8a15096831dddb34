"""Locations of encoded images, and reading them: files, archive members, Parquet cells."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow.parquet as pq

from p2p.errors import BadInputError, DamagedFileError, NotFoundError, P2PError, RefusedError
from p2p.preparation.windows import RasterWindow, read_window
from p2p.storage.bounded import DEFAULT_MAX_BYTES, check_bytes
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import open_filesystem, read_bytes
from p2p.storage.names import printable
from p2p.storage.parquet import open_parquet, read_cells
from p2p.storage.parquet_columns import find_images, path_of_bytes

_ZIP_ENCRYPTED = 0x1


@dataclass(frozen=True)
class File:
    """A file of its own."""

    address: str

    @property
    def uri(self) -> str:
        """What names it to a person."""
        return printable(self.address)


@dataclass(frozen=True)
class _Member:
    """The file `name` of an archive."""

    archive: str
    name: str

    @property
    def uri(self) -> str:
        """What names it to a person."""
        return printable(f"{self.archive}#{self.name}")


@dataclass(frozen=True)
class Range(_Member):
    """`size` bytes from `start` on in a plain tar."""

    start: int
    size: int


@dataclass(frozen=True)
class ZipMember(_Member):
    """A member of a zip archive, by its number there: names may stand in it more than once."""

    number: int


@dataclass(frozen=True)
class Chunk(_Member):
    """`size` bytes from `start` on in a numbered chunk of a stream that was read once, start to end."""

    chunk: int
    start: int
    size: int


@dataclass(frozen=True)
class Cell:
    """One value of a Parquet file; a binary, or a struct with a binary field `bytes`."""

    file: str
    row_group: int
    row: int
    column: str

    @property
    def uri(self) -> str:
        """What names it to a person."""
        return printable(f"{self.file}#{self.row_group}/{self.row}/{self.column}")


@dataclass(frozen=True)
class Drawing:
    """A pair of the synthetic city, drawn rather than fetched. Pixels."""

    seed: int
    index: int
    height: int
    width: int

    @property
    def uri(self) -> str:
        """What names it to a person."""
        return f"synthetic:city?seed={self.seed}&size={self.width}x{self.height}#{self.index}"


Location = File | Range | ZipMember | Chunk | Cell | Drawing | RasterWindow


def check_zip_member(info: zipfile.ZipInfo) -> None:
    """Raise BadInputError unless a zip's member can be read a bounded piece at a time, and without a password."""
    if info.flag_bits & _ZIP_ENCRYPTED:
        raise BadInputError("EncryptedMember", "it is encrypted; pack the archive without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInputError(
            "UnsupportedCompression",
            f"it is compressed by method {info.compress_type} of zip (12 is bzip2, 14 LZMA, 93 Zstandard); pack the "
            "archive with deflate, or without compression",
        )


def open_zip(file: IO[bytes], uri: str) -> zipfile.ZipFile:
    """Read the list of a zip's members. Raises DamagedFileError if there is none that can be read."""
    try:
        with storage_errors(uri):
            return zipfile.ZipFile(file)
    except (P2PError, MemoryError):
        raise
    except Exception as error:  # on a damaged list, zipfile raises anything
        reason = str(error) or type(error).__name__
        raise DamagedFileError(f"{uri}: not a whole zip archive: {reason}; fetch it again") from None


class SourceReader:
    """Reads locations, keeping the archive and the row group it last used open. Threads may share it.

    `chunk` gives the bytes of a numbered chunk. Images of more than `max_bytes` bytes are refused. `row_by_row`: of a
    Parquet file no row is decoded ahead of its turn, since one may end the process.
    """

    def __init__(
        self,
        chunk: Callable[[int], memoryview] | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        row_by_row: bool = False,
    ) -> None:
        self._chunk = chunk
        self._max_bytes, self._row_by_row = max_bytes, row_by_row
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._columns: dict[str, tuple[tuple[str, int, int], Iterator[tuple[int, bytes | BadInputError]]]] = {}
        self._footers: dict[str, pq.FileMetaData] = {}  # the last one: of 100,000 row groups it takes long to read
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[SourceReader], tuple[None, int, bool]]:
        """For another process, with nothing open; chunks stay with this one."""
        return SourceReader, (None, self._max_bytes, self._row_by_row)

    def __call__(self, where: Location) -> bytes:
        """The bytes at `where`. Raises BadInputError where they are missing or damaged, StorageError otherwise."""
        try:
            match where:
                case File(address):
                    return read_bytes(address, self._max_bytes)
                case Range(size=0):
                    return b""  # a bucket that is asked for no bytes sends the whole object
                case Range(archive, _, start, size):
                    check_bytes(size, self._max_bytes)
                    with storage_errors(archive):
                        filesystem, path = open_filesystem(archive)
                        return bytes(filesystem.cat_file(path, start=start, end=start + size))
                case ZipMember(archive, name, number):
                    return self._unzip(archive, name, number)
                case Chunk(_, _, chunk, start, size):
                    check_bytes(size, self._max_bytes)
                    assert self._chunk is not None, "chunks stay with the process that located them"
                    return bytes(self._chunk(chunk)[start : start + size])
                case Cell():
                    return self._cell(where)
                case RasterWindow():
                    return read_window(where)
                case Drawing():
                    raise AssertionError("a drawing has no bytes")
        except NotFoundError:
            raise BadInputError("Missing", "it was listed and is not there: removed, or a link to nothing") from None
        except DamagedFileError as error:
            raise BadInputError(error.kind, str(error)) from None

    def _unzip(self, archive: str, name: str, number: int) -> bytes:
        with self._lock, storage_errors(archive):
            if archive not in self._zips:
                filesystem, path = open_filesystem(archive)
                self._zips[archive] = open_zip(filesystem.open(path, "rb"), archive)
            infos = self._zips[archive].infolist()
            if number >= len(infos) or infos[number].filename != name:
                raise BadInputError("Missing", "the archive is not the one any more that was listed")
            info = infos[number]
            check_bytes(info.file_size, self._max_bytes)
            check_zip_member(info)
            try:
                with storage_errors(archive), self._zips[archive].open(info) as member:
                    return member.read(info.file_size + 1)  # it stops there, whatever the compressed bytes expand to
            except MemoryError:
                raise
            except Exception as error:  # on a damaged member, zipfile raises anything, and seeks anywhere
                if isinstance(error, P2PError) and not isinstance(error, RefusedError):
                    raise
                raise BadInputError("DamagedMember", f"cannot be read out of its archive: {error}") from None

    def _cell(self, where: Cell) -> bytes:
        """Cells are asked for in the order of their rows, so a column is read on from where it was."""
        with self._lock:
            before, found = self._columns.get(where.column, (None, iter(())))
            if before is None or before[:2] != (where.file, where.row_group) or before[2] >= where.row:
                found = _read_on(where, self._max_bytes, self._footers, self._row_by_row)
            self._columns.pop(where.column, None)  # what raises an error cannot be read on from
            gone = BadInputError("Missing", "the row was listed and is gone now")
            data = next((data for row, data in found if row == where.row), gone)
            self._columns[where.column] = (where.file, where.row_group, where.row), found
        if isinstance(data, BadInputError):
            raise data
        return data


def _read_on(
    where: Cell, max_bytes: int, footers: dict[str, pq.FileMetaData], row_by_row: bool
) -> Iterator[tuple[int, bytes | BadInputError]]:
    """The rows of a column from `where` to the end of its row group. Keeps the file's footer, and only that."""
    with open_parquet(where.file, metadata=footers.get(where.file)) as parquet:
        footers.clear()
        footers[where.file] = parquet.metadata
        path = path_of_bytes(parquet, where.column)
        if path is not None and where.row_group < parquet.num_row_groups:
            rows = range(where.row, parquet.metadata.row_group(where.row_group).num_rows)
            before_row = (lambda row: None) if row_by_row else None
            yield from read_cells(parquet, where.row_group, path, rows, max_bytes, before_row=before_row)


def image_columns(file: pq.ParquetFile) -> list[str]:
    """The columns that can hold encoded images: `a` and `b` if both are there, else all, in order."""
    found = list(find_images(file))
    return ["a", "b"] if {"a", "b"} <= set(found) else found
