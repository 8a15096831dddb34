"""Files that somebody who means harm could put into a corpus. Each is made where it is needed, and is small."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

_RAY_OBJECT = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}


class _Touch:
    """Unpickling it makes an empty file."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self._path, "w")


def png(shade: int = 90, side: int = 64) -> bytes:
    """A plain image."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _object(name: str) -> pa.Field:
    return pa.field(name, pa.large_binary(), metadata=_RAY_OBJECT)


_BYTES = pa.field("bytes", pa.binary())
_FIELDS: dict[str, tuple[pa.Field, ...]] = {
    "plain": (_object("image"),),
    "beside": (pa.field("image", pa.binary()), _object("extra")),
    "id": (pa.field("image", pa.binary()), _object("image_id")),
    "pair_id": (pa.field("a", pa.binary()), pa.field("b", pa.binary()), _object("pair_id")),
    "address": (_object("uri"),),
    "address_id": (pa.field("uri", pa.string()), _object("image_id")),
    "sides": (_object("a"), _object("b")),
    "struct": (pa.field("image", pa.struct([_object("bytes")])),),
    "struct_beside": (pa.field("image", pa.struct([_BYTES, _object("extra")])),),
    "struct_struct": (pa.field("image", pa.struct([_BYTES, pa.field("s", pa.struct([_object("x")]))])),),
    "list": (pa.field("image", pa.binary()), pa.field("extra", pa.list_(_object("item")))),
    "large_list": (pa.field("image", pa.binary()), pa.field("extra", pa.large_list(_object("item")))),
    "fixed_list": (pa.field("image", pa.binary()), pa.field("extra", pa.list_(_object("item"), 1))),
    "map": (pa.field("image", pa.binary()), pa.field("extra", pa.map_(pa.string(), _object("value")))),
    "status": (pa.field("image_id", pa.string()), _object("status")),
}
PICKLE_VARIANTS = tuple(_FIELDS)
"""Where in a table the column stands whose values run code."""


def pickled_table(variant: str, ran: Path, rows: int = 3) -> pa.Table:
    """A table that makes the file `ran` as soon as its values are looked at by who has imported ray.data."""
    harm = pickle.dumps(_Touch(ran))

    def value(field: pa.Field) -> object:
        kind = field.type
        if field.metadata:
            return harm
        if pa.types.is_struct(kind):
            return {inner.name: value(inner) for inner in kind}
        if pa.types.is_map(kind):
            return [("key", harm)]
        if kind.num_fields:
            return [harm]
        return png() if pa.types.is_binary(kind) else "x.png"

    fields = _FIELDS[variant]
    plain = [pa.array([value(field)] * rows, field.type) for field in fields]
    return pa.Table.from_arrays(plain, schema=pa.schema(fields))
