"""Corpora that hold many images per file: Parquet data sets and WebDataset tars, listed by their indexes."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq

from p2p.errors import UsageError
from p2p.storage.filesystems import arrow_filesystem, is_hidden, list_files, open_filesystem, storage_errors
from p2p.storage.images import SUFFIXES
from p2p.translation.inputs import Input

_ID_COLUMNS = ("image_id", "pair_id", "id")
_NO_IMAGES = ("errors/", "ledger/", "manifest/")  # what p2p writes beside images
_HEADER_BLOCK = 2**20  # a tar's headers lie between its images; less would be one request per image
_FOOTERS_AHEAD = 8
_MOST_READS_OF_A_ROW_GROUP = 8


def find_image_column(schema: pa.Schema, name: str) -> str | None:
    """The path of the bytes in column `name` (`image`, or `image.bytes` of a struct), or None if it has none."""
    if name not in schema.names:
        return None
    kind = schema.field(name).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return name
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        return f"{name}.bytes"
    return None


def choose_image_column(schema: pa.Schema, wanted: str, input_side: str, uri: str) -> str:
    """The column path that holds the images. Raises UsageError naming the candidates."""
    if wanted != "auto":
        found = find_image_column(schema, wanted)
        if found is None:
            raise UsageError(
                f"--image-column {wanted}: {uri} has no such column of bytes; its columns are {', '.join(schema.names)}"
            )
        return found
    candidates = [name for name in schema.names if find_image_column(schema, name)]
    for name in ("image", "bytes", input_side, "input"):
        if name in candidates:
            return str(find_image_column(schema, name))
    if len(candidates) == 1:
        return str(find_image_column(schema, candidates[0]))
    if not candidates:
        raise UsageError(f"--source {uri}: none of its columns ({', '.join(schema.names)}) holds image bytes")
    raise UsageError(f"--source {uri}: pass --image-column, one of {', '.join(candidates)}")


@dataclass(frozen=True)
class ParquetCorpus:
    """A Parquet data set with a column of encoded images."""

    uri: str
    files: tuple[str, ...]
    image_column: str
    id_column: str | None
    smallest_shard: int

    @classmethod
    def open(cls, uri: str, files: Sequence[str], wanted_column: str, input_side: str) -> ParquetCorpus:
        """Read the first footer to choose columns. Raises UsageError where there is no image column."""
        kept = [file for file in files if not _relative(file, uri).startswith(_NO_IMAGES)]
        if not kept:
            raise UsageError(f"--source {uri}: no Parquet files with images are there")
        schema, groups = _footer(kept[0])
        column = choose_image_column(schema, wanted_column, input_side, kept[0])
        id_column = next((name for name in _ID_COLUMNS if name in schema.names), None)
        most_rows = max((rows for rows, _ in groups), default=0)
        return cls(uri, tuple(kept), column, id_column, -(-most_rows // _MOST_READS_OF_A_ROW_GROUP))

    def items(self) -> Iterator[Input]:
        """One input per row, from footers and the id column only. Its id is that column's, else `file#row`."""
        with ThreadPoolExecutor(_FOOTERS_AHEAD) as pool:
            for start in range(0, len(self.files), _FOOTERS_AHEAD):
                some = self.files[start : start + _FOOTERS_AHEAD]
                for file, (schema, groups) in zip(some, pool.map(_footer, some), strict=True):
                    self._require_columns(file, schema)
                    ids = self._ids(file) if self.id_column else (f"{_relative(file, self.uri)}#{n}" for n in count())
                    for index, (rows, size) in enumerate(groups):
                        each = size // max(rows, 1)
                        for row, image_id in zip(range(rows), ids, strict=False):
                            yield Input(image_id, file, each, row_group=index, row=row)

    def _require_columns(self, file: str, schema: pa.Schema) -> None:
        for column in filter(None, (self.image_column.partition(".")[0], self.id_column)):
            if column not in schema.names:
                raise UsageError(f"--source {file} has no column {column}, which other files of the data set have")

    def _ids(self, file: str) -> Iterator[str]:
        filesystem, path = arrow_filesystem(file)
        with storage_errors(file), pq.ParquetFile(path, filesystem=filesystem) as parquet:
            for batch in parquet.iter_batches(columns=[self.id_column]):
                yield from (str(value) for value in batch.column(0).to_pylist())


def _relative(file: str, root: str) -> str:
    return posixpath.basename(file) if file == root else file[len(root.rstrip("/")) + 1 :]


def read_schema(file: str) -> pa.Schema:
    """The columns of a Parquet file. Raises UsageError for a file that is not Parquet."""
    return _footer(file)[0]


def _footer(file: str) -> tuple[pa.Schema, list[tuple[int, int]]]:
    """Schema and, per row group, (rows, stored bytes). Raises UsageError for a file that is not Parquet."""
    filesystem, path = arrow_filesystem(file)
    with storage_errors(file):
        try:
            with pq.ParquetFile(path, filesystem=filesystem) as parquet:
                footer = parquet.metadata
                groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
                return parquet.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups]
        except pa.ArrowInvalid as error:
            raise UsageError(f"--source {file}: not a Parquet file: {error}") from None


@dataclass(frozen=True)
class TarCorpus:
    """WebDataset tars, their members found by a scan of the headers and read later by byte range."""

    uri: str
    smallest_shard: int = 1
    image_column: str = ""

    def items(self) -> Iterator[Input]:
        """One input per image member; its id is the member's name, below the tar's name if there are several tars."""
        for file in list_files(self.uri, (".tar",)):
            prefix = "" if file.uri == self.uri else file.path[: -len(".tar")]
            with storage_errors(file.uri):
                filesystem, path = open_filesystem(file.uri)
                with filesystem.open(path, "rb", block_size=_HEADER_BLOCK) as raw:
                    yield from self._members(raw, file.uri, prefix)

    def _members(self, raw: object, uri: str, prefix: str) -> Iterator[Input]:
        try:
            with tarfile.open(fileobj=raw, mode="r:") as tar:  # type: ignore[call-overload]
                for member in tar:
                    hidden = is_hidden(posixpath.basename(member.name))
                    if member.isfile() and not hidden and member.name.lower().endswith(SUFFIXES):
                        name = member.name.removeprefix("./")
                        yield Input(f"{prefix}/{name}" if prefix else name, uri, member.size, offset=member.offset_data)
                    tar.members = []  # else the tar remembers every member it has seen
        except tarfile.ReadError as error:
            raise UsageError(f"--source {uri}: not a readable tar: {error}") from None
