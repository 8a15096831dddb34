"""Which columns of a Parquet file hold encoded images, and why others do not."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from p2p.errors import BadInputError
from p2p.storage.formats import SUFFIXES, format_of

_MAX_REASONS = 4
_MAX_ADDRESS = 4096  # bytes
_BASE64_IMAGE = re.compile(rb"data:image/|/9j/|iVBORw0KGgo|UklGR|R0lGOD")
_NAMES_OF_IMAGES = ("image", "images", "img", "picture", "photo", "bytes", "data", "base64", "jpg", "png")
_NAMES_OF_ADDRESSES = ("source_uri", "uri", "url", "path", "file", "image_url", "image_path", "file_name")


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of this type are bytes of any length."""
    types = pa.types
    if types.is_dictionary(kind):
        return is_binary(kind.value_type)
    return any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view))


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text."""
    types = pa.types
    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view))


def _member(field: pa.Field, name: str) -> pa.DataType | None:
    """The type of a member of a struct; None without."""
    index = field.type.get_field_index(name) if pa.types.is_struct(field.type) else -1
    return field.type.field(index).type if index >= 0 else None


def find_bytes(field: pa.Field) -> str | None:
    """Where a column holds encoded images, perhaps: its own name if it is binary, `name.bytes` for a struct with a
    binary field `bytes` (as Hugging Face datasets have), None for anything else.
    """
    if is_binary(field.type):
        return str(field.name)
    kind = _member(field, "bytes")
    return f"{field.name}.bytes" if kind is not None and is_binary(kind) else None


def path_of_bytes(file: pq.ParquetFile, column: str) -> str | None:
    """As `find_bytes` of a column of that name in this file; None also where none or several have it."""
    schema = file.schema_arrow
    return find_bytes(schema.field(column)) if schema.names.count(column) == 1 else None


def find_path(field: pa.Field) -> str | None:
    """`name.path` for a struct with the path of an image, as Hugging Face datasets have; None for anything else."""
    kind = _member(field, "path")
    return f"{field.name}.path" if kind is not None and is_text(kind) and _member(field, "bytes") is not None else None


def find_images(file: pq.ParquetFile) -> dict[str, str]:
    """The columns that may hold encoded images, with the path of their bytes; not those of which every row has a path
    instead. Some files have 100,000 columns.
    """
    schema, metadata = file.schema_arrow, file.metadata
    names = Counter(schema.names)
    found = {field.name: find_bytes(field) for field in schema if names[field.name] == 1}
    empty = _without_values(metadata, {path for name, path in found.items() if path and path != name})
    return {name: path for name, path in found.items() if path and path not in empty}


def find_empty(file: pq.ParquetFile) -> set[str]:
    """The columns that could hold encoded images, or paths of them, and hold neither in any row."""
    schema, metadata = file.schema_arrow, file.metadata
    names = Counter(schema.names)
    fields = [field for field in schema if names[field.name] == 1 and find_bytes(field)]
    parts = {field.name: {path for path in (find_bytes(field), find_path(field)) if path} for field in fields}
    empty = _without_values(metadata, {path for paths in parts.values() for path in paths})
    return {name for name, paths in parts.items() if paths <= empty}


def _without_values(metadata: pq.FileMetaData, paths: set[str]) -> set[str]:
    """Those of the columns that are null in all rows, by the statistics; none of a file without rows."""
    empty = set(paths) if metadata.num_rows else set()
    for number in range(metadata.num_row_groups):
        if not empty:  # mostly after the first of perhaps 100,000
            break
        group = metadata.row_group(number)
        chunks = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
        for path in list(empty):
            facts = chunks[path].statistics if path in chunks else None
            if facts is None or facts.null_count != group.num_rows:
                empty.discard(path)
    return empty


def why_no_images(schema: pa.Schema, look: Callable[[str], bytes] = lambda name: b"") -> str:
    """What the columns hold instead of encoded images, and what to do, for a message; empty if that is plain.

    `look` gives one value of a column of text or bytes; empty where that is unknown.
    """
    reasons = (f"column {field.name!r} {reason}" for field in schema if (reason := _why_not(field, look)))
    twice = (f"{count} columns are called {name!r}" for name, count in Counter(schema.names).items() if count > 1)
    return "; ".join(islice(chain(reasons, twice), _MAX_REASONS))


def _why_not(field: pa.Field, look: Callable[[str], bytes]) -> str:
    types, kind = pa.types, field.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_list_view(kind):
        inner = kind.value_type
        if is_binary(inner) or (types.is_struct(inner) and find_bytes(pa.field("", inner))):
            return "holds lists of images; write one image in each row"
        return "holds lists of numbers, perhaps pixels; encode them as PNG" if _is_numeric(inner) else ""
    if types.is_fixed_size_binary(kind):
        return _why_not_of_equal_size(kind.byte_width, look(field.name))
    if find_path(field):
        return "holds paths and no bytes; give the folder of those images, or translate this one file as a manifest"
    if types.is_map(kind) or (types.is_struct(kind) and find_bytes(field) is None):
        return "holds other columns; write their images as a column of their own"
    if types.is_null(kind):
        return "holds nothing in any row"
    return _why_not_text(field.name.lower(), look(field.name)) if is_text(kind) else ""


def _why_not_of_equal_size(width: int, value: bytes) -> str:
    with contextlib.suppress(BadInputError):
        what = f"a {format_of(value).name} perhaps, and what fills it up"
        return f"holds {width} bytes in every row, {what}; write each image as bytes of its own length"
    return f"holds {width} bytes in every row: raw pixels perhaps, no encoded images; encode them as PNG"


def _why_not_text(name: str, value: bytes) -> str:
    if _BASE64_IMAGE.match(value):
        return "holds images in base64, as text; decode them to bytes"
    text = value[:_MAX_ADDRESS].decode("utf-8", "replace").lower()
    if text.startswith(("http://", "https://", "s3://", "gs://")) or text.endswith(SUFFIXES):
        return "holds addresses and no bytes; give the folder of those images, or translate one such file as a manifest"
    if name in _NAMES_OF_IMAGES:
        return "holds text; decode it to bytes if it is base64"
    if name in _NAMES_OF_ADDRESSES:
        return "holds addresses; translate takes one such file as a manifest"
    return ""


def _is_numeric(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else kind
    return bool(pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_list(inner))
