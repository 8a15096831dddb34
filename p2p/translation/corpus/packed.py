"""Corpora that hold many images per file: Parquet data sets and WebDataset tars, listed by their indexes.

A file that is damaged, among others, is one more input, which fails: it may hold any number of images, none of which
can be named. What can be read of it is translated.
"""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import pyarrow as pa

from p2p.errors import BadInputError, DamagedFileError, UsageError
from p2p.storage.bounded import require_regular_file
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import FileInfo, is_hidden, open_filesystem
from p2p.storage.images import SUFFIXES
from p2p.storage.parquet import MIN_IMAGE_BYTES, check_row_count, find_bytes, open_parquet, read_text
from p2p.storage.tars import read_members
from p2p.translation.corpus.formats import Kind, kind_of, list_kind
from p2p.translation.corpus.inputs import DAMAGED, Input

log = logging.getLogger("p2p")

_ID_COLUMNS = ("image_id", "pair_id", "id")
_HEADER_BLOCK = 2**20  # a tar's headers lie between its images; less would be one request per image
_FOOTERS_AHEAD = 8
_MOST_READS_OF_A_ROW_GROUP = 8

Groups = list[tuple[int, int]]
"""Rows and stored bytes of each row group."""


def find_image_column(schema: pa.Schema, name: str) -> str | None:
    """The path of the bytes in column `name` (`image`, or `image.bytes` of a struct), or None if it has none."""
    return find_bytes(schema.field(name)) if schema.names.count(name) == 1 else None


def find_image_columns(schema: pa.Schema) -> dict[str, str]:
    """The columns that hold images, perhaps, with the path of their bytes. Some files have 100,000 columns."""
    fields = Counter(schema.names)
    found = ((field.name, find_bytes(field)) for field in schema if fields[field.name] == 1)
    return {name: path for name, path in found if path is not None}


def choose_image_column(schema: pa.Schema, wanted: str, input_side: str, uri: str) -> str:
    """The column path that holds the images. Raises UsageError naming the candidates."""
    if wanted != "auto":
        found = find_image_column(schema, wanted)
        if found is None:
            raise UsageError(
                f"--image-column {wanted}: {uri} has no such column of bytes; its columns are {', '.join(schema.names)}"
            )
        return found
    candidates = find_image_columns(schema)
    for name in ("image", "bytes", input_side, "input"):
        if name in candidates:
            return candidates[name]
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if not candidates:
        raise UsageError(f"--source {uri}: none of its columns ({', '.join(schema.names)}) holds image bytes")
    raise UsageError(f"--source {uri}: pass --image-column, one of {', '.join(candidates)}")


def _choose_id_column(schema: pa.Schema, wanted: str, uri: str) -> str | None:
    if wanted in ("auto", "none"):
        return next((name for name in _ID_COLUMNS if name in schema.names and wanted == "auto"), None)
    if wanted not in schema.names:
        raise UsageError(f"--id-column {wanted}: {uri} has no such column; its columns are {', '.join(schema.names)}")
    return wanted


@dataclass(frozen=True)
class ParquetCorpus:
    """A Parquet data set with a column of encoded images."""

    uri: str
    files: tuple[str, ...]
    image_column: str
    id_column: str | None
    smallest_shard: int

    @classmethod
    def open(
        cls, uri: str, files: Sequence[str], image_column: str = "auto", id_column: str = "auto", input_side: str = "a"
    ) -> ParquetCorpus:
        """Read the first footer with images to choose columns. Raises UsageError where there is no image column."""
        file, schema, groups = _first_with_images(files)
        column = choose_image_column(schema, image_column, input_side, file)
        most_rows = max((rows for rows, _ in groups), default=0)
        ids = _choose_id_column(schema, id_column, file)
        return cls(uri, tuple(files), column, ids, -(-most_rows // _MOST_READS_OF_A_ROW_GROUP))

    def items(self) -> Iterator[Input]:
        """One input per row, from footers and the id column only. Its id is that column's, else `file#row`.

        Tables without any images, such as p2p itself writes beside data sets, are left out.
        """
        tables = []
        with ThreadPoolExecutor(_FOOTERS_AHEAD) as pool:
            for start in range(0, len(self.files), _FOOTERS_AHEAD):
                some = self.files[start : start + _FOOTERS_AHEAD]
                for file, footer in zip(some, pool.map(_footer_or_damage, some), strict=True):
                    if isinstance(footer, DamagedFileError):
                        yield unreadable_parquet(file, self.uri, footer)
                    elif find_image_columns(footer[0]):
                        yield from self._rows(file, *footer)
                    else:
                        tables.append(file)
        if tables:
            log.warning("%d Parquet files without images are left out, such as %s", len(tables), tables[0])

    def _rows(self, file: str, schema: pa.Schema, groups: Groups) -> Iterator[Input]:
        ids = self._ids(file)
        try:
            self._require_columns(file, schema)
            for index, (rows, size) in enumerate(groups):
                each = size // max(rows, 1)
                for row, image_id in zip(range(rows), ids, strict=False):
                    yield Input(image_id, file, each, row_group=index, row=row)
        except DamagedFileError as error:
            yield unreadable_parquet(file, self.uri, error)

    def _require_columns(self, file: str, schema: pa.Schema) -> None:
        if self.image_column not in find_image_columns(schema).values():
            raise DamagedFileError(
                f"{file}: has no column {self.image_column} of bytes, which other files of the data set have"
            )
        if self.id_column and self.id_column not in schema.names:
            raise DamagedFileError(f"{file}: has no column {self.id_column}, which other files of the data set have")

    def _ids(self, file: str) -> Iterator[str]:
        """The id of each row; where the column has none, the file's path and the row's number. Raises
        DamagedFileError.
        """
        numbered = (f"{_relative(file, self.uri)}#{number}" for number in count())
        if not self.id_column:
            yield from numbered
            return
        for (values,) in read_text(file, [self.id_column]):
            for value in values:
                number = next(numbered)
                yield value or number


def unreadable_parquet(file: str, root: str, error: DamagedFileError | None = None) -> Input:
    """The input that stands for all that a Parquet file below `root` may hold, which cannot be read."""
    found = error or _footer_or_damage(file)
    reason = (
        f"{found.kind}: {found}"
        if isinstance(found, DamagedFileError)
        else "DamagedFile: its Parquet could not be read"
    )
    return Input(_relative(file, root), file, row=DAMAGED, reason=reason)


def _first_with_images(files: Sequence[str]) -> tuple[str, pa.Schema, Groups]:
    """The first file with an image column, or else the first that can be read. Raises UsageError if none can."""
    first = None
    for file in files:
        footer = _footer_or_damage(file)
        if isinstance(footer, DamagedFileError):
            continue
        if find_image_columns(footer[0]):
            return file, *footer
        first = first or (file, *footer)
    return first or (files[0], read_schema(files[0]), [])


def _relative(file: str, root: str) -> str:
    return posixpath.basename(file) if file == root else file[len(root.rstrip("/")) + 1 :]


def read_schema(file: str) -> pa.Schema:
    """The columns of a Parquet file. Raises UsageError for a file that is not Parquet, or not safe to read."""
    try:
        return _footer(file)[0]
    except DamagedFileError as error:
        raise UsageError(f"--source {error}") from None


def holds_images(file: str) -> bool | None:
    """Whether a Parquet file has a column of bytes; None where nobody can tell: it is damaged, or not safe to read."""
    footer = _footer_or_damage(file)
    return None if isinstance(footer, DamagedFileError) else bool(find_image_columns(footer[0]))


def _footer(file: str) -> tuple[pa.Schema, Groups]:
    """Schema and row groups. Raises DamagedFileError."""
    with open_parquet(file) as parquet:
        if find_image_columns(parquet.schema_arrow):
            check_row_count(parquet, file, MIN_IMAGE_BYTES)
        footer = parquet.metadata
        groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
        return parquet.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups]


def _footer_or_damage(file: str) -> tuple[pa.Schema, Groups] | DamagedFileError:
    try:
        return _footer(file)
    except DamagedFileError as error:
        return error


@dataclass(frozen=True)
class TarCorpus:
    """WebDataset tars, their members found by a scan of the headers and read later by byte range."""

    uri: str
    smallest_shard: int = 1
    image_column: str = ""

    def items(self) -> Iterator[Input]:
        """One input per image member; its id is the member's name, below the tar's name if there are several tars."""
        for file in list_kind(self.uri, Kind.TAR, holds_images):
            if kind_of(file.path) is Kind.PARQUET:
                yield unreadable_parquet(file.uri, self.uri)
                continue
            alone = file.uri == self.uri
            yield from _members(file, "" if alone else f"{file.path[: -len('.tar')]}/", alone)


def _members(file: FileInfo, prefix: str, alone: bool) -> Iterator[Input]:
    """The images of a tar. Raises UsageError for one that is `alone` and no tar at all."""
    position = 0
    try:
        with storage_errors(file.uri):
            filesystem, path = open_filesystem(file.uri)
            require_regular_file(filesystem, path)
            with filesystem.open(path, "rb", block_size=_HEADER_BLOCK) as raw:
                for member in read_members(raw, file.uri):
                    is_cut = 0 < file.size < member.end
                    position = member.start if is_cut else member.end
                    hidden = is_hidden(posixpath.basename(member.name))
                    begins = not member.size or not 0 < file.size <= member.start  # a bucket refuses to read behind it
                    is_image = member.kind in ("file", "sparse") and member.name.lower().endswith(SUFFIXES)
                    if is_image and begins and not hidden:
                        # One byte more than there is tells that it is cut off; what a header claims may be anything.
                        size = min(member.size, file.size - member.start + 1) if is_cut else member.size
                        yield Input(prefix + member.name.removeprefix("./"), file.uri, size, offset=member.start)
    except (BadInputError, DamagedFileError) as error:
        if alone and not position:
            raise UsageError(f"--source {file.uri}: not a readable tar: {error}") from None
        why = str(error).removeprefix(f"{file.uri}: ")
        reason = (
            f"DamagedFile: when it was listed, this was cut off or damaged at byte {position} ({why}); what could be "
            f"read before is translated, what follows is not"
        )
        yield Input(file.path, file.uri, offset=position, row=DAMAGED, reason=reason)
