"""Reading Parquet that anybody may have written. Every reader in p2p opens its files here (a test holds that).

Arrow's extension types give a column's values behaviour of their own: of `ray.data.arrow_pickled_object`, which
`import ray.data` registers for the whole process, merely looking at a value (`as_py`, `to_pylist`) unpickles it and so
runs whatever the file's author wrote. Files that have such a type in any column, however deep, are refused before a
value is read.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p2p.errors import BadInputError, DamagedFileError, LongTextError, P2PError, UnsafeFileError
from p2p.storage.bounded import check_bytes, require_regular_file
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import arrow_filesystem, is_remote, open_filesystem
from p2p.storage.parquet_columns import find_path, is_binary, is_text

PLAIN_EXTENSION_TYPES = frozenset({"arrow.uuid", "arrow.json", "arrow.bool8"})
"""Implemented inside Arrow itself, with plain values: what other writers make of Parquet's own UUID and JSON."""
_RAY_TYPES = (
    "ray.data.arrow_pickled_object",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
)
MAX_ID_BYTES = 1024
"""As long as the key of an object may be."""
_MAX_UNCHECKED_ROWS = 100_000
MIN_IMAGE_BYTES = 8
"""Of a row with an image, compressed, on average in a file of many rows. Those without take next to nothing."""
MIN_ADDRESS_BYTES = 1
_TEXT_ROWS = 1024
_CELL_ROWS = 32
_CELL_BATCH_BYTES = 16 * 2**20
_LARGE_BYTES = 2**20  # equal values above it are one object, however many rows are kept
_SLACK_BYTES = 2**20  # for what a column has beside its values
_EXTENSION_NAME = b"ARROW:extension:name"  # kept in a field's metadata where the type is not registered


def unregister_ray_types() -> None:
    """Take back what `import ray.data` registers, so that such columns are mere bytes to any reader of this process.

    Ray Data itself works without: its blocks carry the types they were made with.
    """
    for name in _RAY_TYPES:
        with contextlib.suppress(pa.ArrowKeyError):
            pa.unregister_extension_type(name)


@contextlib.contextmanager
def open_parquet(
    uri: str,
    *,
    coalesce: bool = False,
    dictionaries: Sequence[str] = (),
    metadata: pq.FileMetaData | None = None,
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of unknown origin; columns that are read from it have plain values only.

    Args:
        uri: local path or any fsspec address.
        coalesce: read whole row groups in few large requests, without the read-ahead of fsspec's remote files.
        dictionaries: columns of text or bytes that are to be read as dictionaries: a value that repeats is held once.
        metadata: of this very file, so that its footer need not be read again.

    Raises:
        UnsafeFileError: a column has, or nests, an extension type that is not plain.
        DamagedFileError: the file is not Parquet, or what is read inside the `with` is broken.
        StorageError: the storage cannot be read.

    Example:
        >>> import pyarrow, pyarrow.parquet, tempfile
        >>> path = tempfile.NamedTemporaryFile(suffix=".parquet")
        >>> pyarrow.parquet.write_table(pyarrow.table({"pair_id": ["a"]}), path.name)
        >>> with open_parquet(path.name) as file:
        ...     file.read(columns=["pair_id"])["pair_id"].to_pylist()
        ['a']

    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(uri))
        stack.enter_context(damage_reported(uri))
        file = stack.enter_context(_open(uri, coalesce, dictionaries, metadata, stack))
        for field in file.schema_arrow:
            name = find_extension_type(field)
            if name is not None:
                raise UnsafeFileError(
                    f"{uri}: column {field.name!r} has the extension type {name!r}, whose values could run code when "
                    f"they are read; write the file again without that column"
                )
        yield file


def _open(
    uri: str,
    coalesce: bool,
    dictionaries: Sequence[str],
    metadata: pq.FileMetaData | None,
    stack: contextlib.ExitStack,
) -> pq.ParquetFile:
    unregister_ray_types()
    try:
        filesystem, path = open_filesystem(uri)
        require_regular_file(filesystem, path)
        compact = list(dictionaries) or None
        if not coalesce:
            arrow, path = arrow_filesystem(uri)
            return pq.ParquetFile(path, filesystem=arrow, metadata=metadata, read_dictionary=compact)
        options = {"cache_type": "none"} if is_remote(uri) else {}
        return pq.ParquetFile(
            stack.enter_context(filesystem.open(path, "rb", **options)), pre_buffer=True, read_dictionary=compact
        )
    except BadInputError as error:  # a pipe or device
        raise DamagedFileError(f"{uri}: {error}") from None
    except (P2PError, OSError, MemoryError, pa.ArrowException):
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # an extension type that rejects its own bytes
        raise DamagedFileError(f"{uri}: cannot be read as Parquet: {_in_one_line(error)}") from None


def check_row_count(file: pq.ParquetFile, uri: str, min_row_bytes: int) -> None:
    """Raise DamagedFileError for a file of more than 100,000 rows that is shorter than `min_row_bytes` bytes for each
    of them.

    Each row becomes an input, and a kilobyte can claim, or hold, any number of empty ones.
    """
    rows = sum(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))
    if rows > _MAX_UNCHECKED_ROWS:
        filesystem, path = open_filesystem(uri)
        size = filesystem.size(path)
        if size < rows * min_row_bytes:
            raise DamagedFileError(
                f"{uri}: has {rows} rows in {size} bytes, so most of them are empty; write it without those"
            )


def find_extension_type(field: pa.Field) -> str | None:
    """The name of an extension type that is not plain, in `field` or nested anywhere in it; None without."""
    metadata: dict[bytes, bytes] = field.metadata or {}
    name = metadata.get(_EXTENSION_NAME, b"").decode("utf-8", "replace")
    if name and name not in PLAIN_EXTENSION_TYPES:
        return name
    return _find_in_type(field.type)


def _find_in_type(kind: pa.DataType) -> str | None:
    if isinstance(kind, pa.BaseExtensionType):
        # `pa.ExtensionType` is the base of those that are written in Python, whatever they are called.
        if kind.extension_name not in PLAIN_EXTENSION_TYPES or isinstance(kind, pa.ExtensionType):
            return str(kind.extension_name)
        return _find_in_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _find_in_type(kind.value_type)
    nested = (find_extension_type(kind.field(index)) for index in range(kind.num_fields))
    return next((name for name in nested if name), None)


@contextlib.contextmanager
def damage_reported(uri: str) -> Iterator[None]:
    """Turn PyArrow's errors about damaged content into DamagedFileError; errors of the storage, and of memory, pass."""
    try:
        yield
    except MemoryError:  # ArrowMemoryError is an ArrowException too
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{uri}: cannot be read as Parquet: {_in_one_line(error)}") from None
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        raise DamagedFileError(f"{uri}: cannot be read as Parquet: {_in_one_line(error)}") from None


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_parquet(uri: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a whole file. Raises what `open_parquet` does, and DamagedFileError where one is missing."""
    with open_parquet(uri) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise DamagedFileError(
                f"{uri}: has no column {missing[0]!r}; its columns are {', '.join(file.schema_arrow.names)}"
            )
        return file.read(columns=list(columns))


def _has_text(kind: pa.DataType) -> bool:
    return is_text(kind) or is_binary(kind)


def read_text(
    uri: str, columns: Sequence[str], max_bytes: int = MAX_ID_BYTES, row_groups: Sequence[int] | None = None
) -> Iterator[list[list[str | None]]]:
    """Yield the values of some short columns, such as ids, as text: a list for each column, some rows at a time.

    Args:
        uri: a Parquet file.
        columns: names of columns of text, numbers, dates or the like; bytes are taken for text in UTF-8. `name.path` is
            that member of a struct, if it `find_path`s.
        max_bytes: longest value of a column of text; a file of 415 bytes can hold 400 MB of them.
        row_groups: numbers of those to read; None reads all.

    Raises:
        UnsafeFileError: as `open_parquet`.
        DamagedFileError: as `open_parquet`; also for nested values, and where a column is missing.
        LongTextError: for a longer value.

    """
    with open_parquet(uri) as file:
        schema, metadata = file.schema_arrow, file.metadata
        paths = {find_path(field) for field in schema} & set(columns)
        for name in columns:
            if name in paths:
                continue
            if schema.names.count(name) != 1:
                raise DamagedFileError(
                    f"{uri}: has no column {name!r} that is unique; there are {', '.join(schema.names)}"
                )
            if schema.field(name).type.num_fields:
                raise DamagedFileError(f"{uri}: column {name!r} holds {schema.field(name).type}, not plain values")
        for index in range(metadata.num_row_groups):
            _require_short(metadata.row_group(index), columns, max_bytes, uri)
    text = [name for name in columns if name in paths or _has_text(schema.field(name).type)]
    with open_parquet(uri, dictionaries=text, metadata=metadata) as file:
        for batch in file.iter_batches(batch_size=_TEXT_ROWS, columns=list(columns), row_groups=row_groups):
            values = [_values(batch, name) for name in columns]
            yield [
                short_text(found, f"{uri}: column {name!r}", max_bytes)
                for name, found in zip(columns, values, strict=True)
            ]


def _values(batch: pa.RecordBatch, path: str) -> pa.Array:
    """A column, or a member of a struct by `column.member`."""
    column, _, member = (path, "", "") if path in batch.schema.names else path.partition(".")
    return pc.struct_field(batch.column(column), member) if member else batch.column(column)


def _require_short(group: pq.RowGroupMetaData, columns: Sequence[str], max_bytes: int, uri: str) -> None:
    for index in range(group.num_columns):
        chunk = group.column(index)
        if (
            chunk.path_in_schema in columns
            and chunk.total_uncompressed_size > group.num_rows * max_bytes + _SLACK_BYTES
        ):
            raise LongTextError(f"{uri}: values of column {chunk.path_in_schema!r} have more than {max_bytes} bytes")


def short_text(values: pa.Array, what: str, max_bytes: int = MAX_ID_BYTES) -> list[str | None]:
    """Plain values as text. Raises LongTextError, which begins with `what`, for text of more than `max_bytes`
    bytes.
    """
    distinct = values.dictionary if pa.types.is_dictionary(values.type) else values
    if _has_text(distinct.type) and (pc.max(pc.binary_length(distinct)).as_py() or 0) > max_bytes:
        raise LongTextError(f"{what} holds a value of more than {max_bytes} bytes")
    found = to_python(values)
    return [
        None if value is None else value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in found
    ]


def read_cells(
    file: pq.ParquetFile,
    row_group: int,
    path: str,
    rows: Collection[int],
    max_bytes: int,
    *,
    before_row: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, bytes | BadInputError]]:
    """Yield (row, encoded image) for some rows of a row group, in their order, a few of them in memory at a time.

    Args:
        file: an open file.
        row_group: its number.
        path: a column, or `column.bytes` of a struct, as `find_bytes` returns.
        rows: numbers within the row group.
        max_bytes: larger images come as BadInputError; so do those that are null.
        before_row: if given, rows are decoded one at a time, and this is called with each of `rows` before that one,
            or what lies between it and the one before, is.

    """
    group = file.metadata.row_group(row_group)
    chunks = (group.column(index) for index in range(group.num_columns))
    # A dictionary's largest value may be that of every row, whatever the size that is stored.
    largest = max(
        (c.total_uncompressed_size for c in chunks if c.path_in_schema == path and c.has_dictionary_page), default=0
    )
    at_once = max(1, min(_CELL_ROWS, _CELL_BATCH_BYTES // max(1, largest)))
    start, last = 0, max(rows, default=-1)
    large: dict[bytes, bytes] = {}
    coming = sorted(rows) if before_row else []
    batches = file.iter_batches(batch_size=1 if before_row else at_once, row_groups=[row_group], columns=[path])
    while start <= last:
        if before_row is not None:
            before_row(coming[bisect.bisect_left(coming, start)])
        batch = next(batches, None)
        if batch is None:
            return
        values = _values(batch, path)
        for row in range(start, start + len(values)):
            if row in rows:
                data = _image(values[row - start], max_bytes)
                if isinstance(data, bytes) and len(data) > _LARGE_BYTES:
                    data = large.setdefault(data, data)
                yield row, data
        start += len(values)


def _image(value: pa.Scalar, max_bytes: int) -> bytes | BadInputError:
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    buffer = value.as_buffer() if value.is_valid else None
    if buffer is None:
        return BadInputError("EmptyFile", "the row holds no bytes")
    try:
        check_bytes(buffer.size, max_bytes)
    except BadInputError as error:
        return error
    return bytes(buffer.to_pybytes())


def to_python(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """A column's values as plain Python. Raises ArrowInvalid for those that Python cannot hold (a year after 9999)."""
    try:
        return values.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, TypeError, LookupError) as error:
        raise pa.ArrowInvalid(_in_one_line(error)) from None
