"""Parquet data sets of images, listed by their footers.

A file that is damaged, among others, is one more input, which fails: it may hold any number of images, none of which
can be named. What can be read of it is translated.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count

import pyarrow as pa

from p2p.errors import ConfigError, DamagedFileError
from p2p.storage.filesystems import FileInfo
from p2p.storage.parquet import MIN_IMAGE_BYTES, check_row_count, open_parquet, read_text
from p2p.storage.parquet_columns import find_images, find_path, is_text, why_no_images
from p2p.translation.corpus.inputs import DAMAGED, Input

log = logging.getLogger("p2p")

_ID_COLUMNS = ("image_id", "pair_id", "id")
_FOOTERS_AHEAD = 8
_MAX_READS_PER_ROW_GROUP = 8


@dataclass(frozen=True)
class _Footer:
    """What of a file's metadata is needed."""

    schema: pa.Schema
    row_groups: list[tuple[int, int]]
    """Rows and stored bytes of each."""
    image_columns: list[str]
    """Those that may hold images."""


def _read_footer(file: str) -> _Footer | DamagedFileError:
    try:
        with open_parquet(file) as parquet:
            groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
            footer = _Footer(
                parquet.schema_arrow,
                [(group.num_rows, group.total_byte_size) for group in groups],
                list(find_images(parquet)),
            )
            if footer.image_columns:
                check_row_count(parquet, file, MIN_IMAGE_BYTES)
            return footer
    except DamagedFileError as error:
        return error


def text_columns(file: str) -> tuple[list[str], str]:
    """The columns of a Parquet file that may hold addresses, and why others hold no images. Raises ConfigError for a
    file that is not Parquet, or not safe to read.
    """
    footer = _read_footer(file)
    if isinstance(footer, DamagedFileError):
        raise ConfigError("source", str(footer))
    return address_columns(footer.schema), why_no_images(footer.schema)


def address_columns(schema: pa.Schema) -> list[str]:
    """Names of columns of text, and of paths within structs."""
    return [path for field in schema if (path := field.name if is_text(field.type) else find_path(field))]


def holds_images(file: str) -> bool | None:
    """Whether a Parquet file has a column of bytes; None if that is unknown: it is damaged, or not safe to read."""
    footer = _read_footer(file)
    return None if isinstance(footer, DamagedFileError) else bool(footer.image_columns)


def _choose_image_column(footer: _Footer, wanted: str, input_side: str, uri: str) -> str:
    """The column of images. Raises ConfigError naming the candidates."""
    candidates, columns = footer.image_columns, ", ".join(footer.schema.names)
    if wanted != "auto":
        if wanted not in candidates:
            why = why_no_images(footer.schema)
            raise ConfigError(
                "image_column",
                f"{wanted}: {uri} has no such column of bytes; its columns are {columns}" + (f"; {why}" if why else ""),
            )
        return wanted
    for name in ("image", "bytes", input_side, "input"):
        if name in candidates:
            return name
    if not candidates:
        why = why_no_images(footer.schema)
        raise ConfigError(
            "source", f"{uri}: none of its columns ({columns}) holds image bytes" + (f"; {why}" if why else "")
        )
    if len(candidates) == 1:
        return next(iter(candidates))
    raise ConfigError("source", f"{uri}: pass --image-column, one of {', '.join(candidates)}")


def _choose_id_column(schema: pa.Schema, wanted: str, uri: str) -> str | None:
    if wanted == "none":
        return None
    if wanted == "auto":
        return next((name for name in _ID_COLUMNS if name in schema.names), None)
    if wanted not in schema.names:
        columns = ", ".join(schema.names)
        raise ConfigError("id_column", f"{wanted}: {uri} has no such column; its columns are {columns}")
    return wanted


@dataclass(frozen=True)
class ParquetCorpus:
    """A Parquet data set with a column of encoded images."""

    uri: str
    files: tuple[FileInfo, ...]
    image_column: str
    id_column: str | None
    min_shard_rows: int

    @classmethod
    def open(
        cls,
        uri: str,
        files: Sequence[FileInfo],
        image_column: str = "auto",
        id_column: str = "auto",
        input_side: str = "a",
    ) -> ParquetCorpus:
        """Read the first footer with images to choose columns. Raises ConfigError where there is no image column."""
        file, footer = _first_with_images([file.uri for file in files])
        column = _choose_image_column(footer, image_column, input_side, file)
        max_rows = max((rows for rows, _ in footer.row_groups), default=0)
        ids = _choose_id_column(footer.schema, id_column, file)
        return cls(uri, tuple(files), column, ids, -(-max_rows // _MAX_READS_PER_ROW_GROUP))

    def items(self) -> Iterator[Input]:
        """One input per row, from footers and the id column only. Its id is that column's, else `file#row`.

        Tables without any images, such as p2p itself writes beside data sets, are left out.
        """
        tables = []
        with ThreadPoolExecutor(_FOOTERS_AHEAD) as pool:
            for start in range(0, len(self.files), _FOOTERS_AHEAD):
                files = self.files[start : start + _FOOTERS_AHEAD]
                for file, footer in zip(files, pool.map(_read_footer, (file.uri for file in files)), strict=True):
                    if isinstance(footer, DamagedFileError):
                        yield unreadable_parquet(file, self.uri, footer)
                    elif footer.image_columns:
                        yield from self._rows(file, footer)
                    else:
                        tables.append(file.uri)
        if tables:
            log.warning("%d Parquet files without images are left out, such as %s", len(tables), tables[0])

    def _rows(self, file: FileInfo, footer: _Footer) -> Iterator[Input]:
        version = file.version
        ids = self._ids(file.uri)
        try:
            if self.image_column not in footer.image_columns:
                raise DamagedFileError(
                    f"{file.uri}: has no column {self.image_column} of bytes, which other files of the data set have; "
                    f"its columns are {', '.join(footer.schema.names)}"
                )
            if self.id_column and self.id_column not in footer.schema.names:
                raise DamagedFileError(
                    f"{file.uri}: has no column {self.id_column}, which other files of the data set have"
                )
            for index, (rows, size) in enumerate(footer.row_groups):
                for row, image_id in zip(range(rows), ids, strict=False):
                    yield Input(image_id, file.uri, size // rows, row_group=index, row=row, version=version)
        except DamagedFileError as error:
            yield unreadable_parquet(file, self.uri, error)

    def _ids(self, file: str) -> Iterator[str]:
        """The id of each row, or the file's path and the row's number. Raises DamagedFileError."""
        name = _relative(file, self.uri)
        if not self.id_column:
            return (f"{name}#{number}" for number in count())
        values = (value for (values,) in read_text(file, [self.id_column]) for value in values)
        return (value or f"{name}#{number}" for number, value in enumerate(values))


def unreadable_parquet(file: FileInfo, root: str, error: DamagedFileError | None = None) -> Input:
    """The input in place of all that a Parquet file below `root`, which cannot be read, may hold."""
    found = error or _read_footer(file.uri)
    reason = "DamagedFile: its Parquet could not be read"
    if isinstance(found, DamagedFileError):
        reason = f"{found.kind}: {found}"
    return Input(_relative(file.uri, root), file.uri, row=DAMAGED, reason=reason, version=file.version)


def _first_with_images(files: Sequence[str]) -> tuple[str, _Footer]:
    """The first file with an image column, or else the first that can be read. Raises ConfigError if none can."""
    footers = ((file, _read_footer(file)) for file in files)
    readable = ((file, footer) for file, footer in footers if isinstance(footer, _Footer))
    first = next(readable, None)
    if first is None:
        raise ConfigError("source", str(_read_footer(files[0])))
    return next((found for found in chain([first], readable) if found[1].image_columns), first)


def _relative(file: str, root: str) -> str:
    return posixpath.basename(file) if file == root else file[len(root.rstrip("/")) + 1 :]
