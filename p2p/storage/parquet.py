"""Reading Parquet that anybody may have written. Every reader in p2p opens its files here (a test holds that).

Arrow's extension types give a column's values behaviour of their own: of `ray.data.arrow_pickled_object`, which
`import ray.data` registers for the whole process, merely looking at a value (`as_py`, `to_pylist`) unpickles it and so
runs whatever the file's author wrote. Files that have such a type in any column, however deep, are refused before a
value is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from p2p.errors import Damaged, P2PError, UnsafeFileError
from p2p.storage.filesystems import arrow_filesystem, is_remote, open_filesystem, storage_errors

PLAIN_EXTENSION_TYPES = frozenset({"arrow.uuid", "arrow.json", "arrow.bool8"})
"""Implemented inside Arrow itself, with plain values: what other writers make of Parquet's own UUID and JSON."""
_RAY_TYPES = (
    "ray.data.arrow_pickled_object",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
)
_EXTENSION_NAME = b"ARROW:extension:name"  # kept in a field's metadata where the type is not registered


def unregister_ray_types() -> None:
    """Take back what `import ray.data` registers, so that such columns are mere bytes to any reader of this process.

    Ray Data itself works without: its blocks carry the types they were made with.
    """
    for name in _RAY_TYPES:
        with contextlib.suppress(pa.ArrowKeyError):
            pa.unregister_extension_type(name)


@contextlib.contextmanager
def open_parquet(uri: str, *, coalesce: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of unknown origin; columns that are read from it have plain values only.

    Args:
        uri: local path or any fsspec address.
        coalesce: read whole row groups in few large requests, without the read-ahead of fsspec's remote files.

    Raises:
        UnsafeFileError: a column has, or nests, an extension type that is not plain.
        Damaged: the file is not Parquet, or what is read inside the `with` is broken.
        StorageError: the storage cannot be read.

    Example:
        >>> with open_parquet("pairs.parquet") as file:
        ...     ids = file.read(columns=["pair_id"])

    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(uri))
        stack.enter_context(damage_reported(uri))
        file = stack.enter_context(_open(uri, coalesce, stack))
        for field in file.schema_arrow:
            name = find_extension_type(field)
            if name is not None:
                raise UnsafeFileError(
                    f"{uri}: column {field.name!r} has the extension type {name!r}, whose values could run code when "
                    f"they are read; write the file again without that column"
                )
        yield file


def _open(uri: str, coalesce: bool, stack: contextlib.ExitStack) -> pq.ParquetFile:
    unregister_ray_types()
    try:
        if not coalesce:
            filesystem, path = arrow_filesystem(uri)
            return pq.ParquetFile(path, filesystem=filesystem)
        filesystem, path = open_filesystem(uri)
        options = {"cache_type": "none"} if is_remote(uri) else {}
        return pq.ParquetFile(stack.enter_context(filesystem.open(path, "rb", **options)), pre_buffer=True)
    except (P2PError, OSError, MemoryError, pa.ArrowException):
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # an extension type that rejects its own bytes
        raise Damaged(f"{uri}: cannot be read as Parquet: {_in_one_line(error)}") from None


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
    """Turn what PyArrow says of damaged content into Damaged. Trouble with the storage, or memory, passes."""
    try:
        yield
    except MemoryError:  # ArrowMemoryError is an ArrowException too
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Damaged(f"{uri}: cannot be read as Parquet: {_in_one_line(error)}") from None
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        raise Damaged(f"{uri}: cannot be read as Parquet: {_in_one_line(error)}") from None


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_parquet(uri: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a whole file. Raises what `open_parquet` does, and Damaged where one is missing."""
    with open_parquet(uri) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise Damaged(f"{uri}: has no column {missing[0]!r}; its columns are {', '.join(file.schema_arrow.names)}")
        return file.read(columns=list(columns))


def find_bytes(field: pa.Field) -> str | None:
    """Where a column holds encoded images, perhaps: its own name if it is binary, `name.bytes` for a struct with a
    binary field `bytes` (as Hugging Face datasets have), None for anything else.
    """
    if _is_binary(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if _is_binary(field.type.field("bytes").type) else None
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def to_python(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """A column's values as plain Python. Raises ArrowInvalid for those that Python cannot hold (a year after 9999)."""
    try:
        return values.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, TypeError, LookupError) as error:
        raise pa.ArrowInvalid(_in_one_line(error)) from None
