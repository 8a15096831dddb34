"""Where the encoded bytes of an image lie, and fetching them: files, archive members, Parquet cells."""

from __future__ import annotations

import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from p2p.errors import BadInput, Damaged, NotFound
from p2p.storage.filesystems import open_filesystem, read_bytes, storage_errors
from p2p.storage.names import printable
from p2p.storage.parquet import find_bytes, open_parquet

MAX_IMAGE_BYTES = 256 * 2**20
"""Encoded images larger than this are refused unread; it bounds what one task holds."""


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
    """A member of a zip archive."""


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


Location = File | Range | ZipMember | Chunk | Cell | Drawing


def check_size(size: int) -> None:
    """Raise BadInput for an image too large to be held."""
    if size > MAX_IMAGE_BYTES:
        raise BadInput("FileTooLarge", f"{size} bytes are more than the {MAX_IMAGE_BYTES} allowed for one image")


class Fetcher:
    """Reads locations, keeping the archive and the row group it last used open. Threads may share it.

    `chunk` gives the bytes of a numbered chunk.
    """

    def __init__(self, chunk: Callable[[int], memoryview] | None = None) -> None:
        self._chunk = chunk
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._row_group: tuple[str, int] | None = None
        self._table: pa.Table | None = None
        self._lock = threading.Lock()

    def __call__(self, where: Location) -> bytes:
        """The bytes at `where`. Raises BadInput where they are missing or damaged, StorageError otherwise."""
        try:
            match where:
                case File(address):
                    return read_bytes(address)
                case Range(archive, _, start, size):
                    with storage_errors(archive):
                        filesystem, path = open_filesystem(archive)
                        return bytes(filesystem.cat_file(path, start=start, end=start + size))
                case ZipMember(archive, name):
                    return self._unzip(archive, name)
                case Chunk(_, _, chunk, start, size):
                    assert self._chunk is not None, "a chunk was located, but nobody holds the chunks"
                    return bytes(self._chunk(chunk)[start : start + size])
                case Cell(file, row_group, row, column):
                    return self._cell(file, row_group, row, column)
                case Drawing():
                    raise AssertionError("a drawing has no bytes")
        except NotFound:
            raise BadInput("Missing", "the file was listed and is gone now") from None
        except Damaged as error:
            raise BadInput(error.kind, str(error)) from None

    def _unzip(self, archive: str, name: str) -> bytes:
        with self._lock, storage_errors(archive):
            if archive not in self._zips:
                filesystem, path = open_filesystem(archive)
                self._zips[archive] = zipfile.ZipFile(filesystem.open(path, "rb"))
            try:
                with self._zips[archive].open(name) as member:
                    data = member.read(MAX_IMAGE_BYTES + 1)  # a header may lie about the size
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                raise BadInput("DamagedMember", f"cannot be read out of its archive: {error}") from None
        check_size(len(data))
        return data

    def _cell(self, file: str, row_group: int, row: int, column: str) -> bytes:
        with self._lock:
            if self._row_group != (file, row_group):
                with open_parquet(file) as parquet:
                    columns = image_columns(parquet.schema_arrow)
                    self._table = parquet.read_row_group(row_group, columns=columns)
                self._row_group = (file, row_group)
            assert self._table is not None
            value: Any = self._table.column(column)[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise BadInput("EmptyFile", f"column {column} is null")
        check_size(len(value))
        return bytes(value)


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns that can hold encoded images: `a` and `b` if both are there, else all, in order."""
    found = [field.name for field in schema if find_bytes(field)]
    return ["a", "b"] if {"a", "b"} <= set(found) else found
