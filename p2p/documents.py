"""JSON documents. What p2p writes, any strict parser reads: numbers that are not finite become null. What it reads may
be anybody's, so everything is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from p2p.errors import DamagedFileError

MAX_JSON_BYTES = 64 * 2**20
"""A longer document is refused: parsed, it takes ten times its length. Those of p2p are thousands of bytes long."""
_MAX_INT = 2**63 - 1

Record = TypeVar("Record")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy or torch scalar
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def to_json(document: Any, indent: int | None = None) -> str:
    """JSON text of `document`. Mappings, sequences and array scalars are taken apart, other objects become text."""
    return json.dumps(_plain(document), indent=indent, allow_nan=False)


def parse_json(data: bytes | str, name: str) -> Any:
    """The JSON document in `data`. Raises DamagedFileError, which names it `name`, for anything else, however odd."""
    if len(data) > MAX_JSON_BYTES:
        raise DamagedFileError(f"{name}: a JSON document of {len(data)} bytes, more than {MAX_JSON_BYTES}")
    try:
        return json.loads(data)
    except RecursionError:
        raise DamagedFileError(f"{name}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise DamagedFileError(f"{name}: not valid JSON: {error}") from None


def parse_json_object(data: bytes | str, name: str) -> dict[str, Any]:
    """As `parse_json`, of an object. Raises DamagedFileError for a list or a plain value too."""
    document = parse_json(data, name)
    if not isinstance(document, dict):
        raise DamagedFileError(f"{name}: expected a JSON object, found {type(document).__name__}")
    return document


def check_fields(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless each of `values` that is named in `wanted` is of its type there.

    Types are bool, int (64 bits), float (finite), str, dict, list, None, Literal, unions and tuples; lists of JSON
    count as tuples.
    """
    for name, value in values.items():
        if name in wanted and not _fits(value, wanted[name]):
            raise ValueError(f"{name} is {reprlib.repr(value)}")


def build(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """The dataclass `kind` made of JSON `values`; lists become tuples.

    Raises ValueError that names the first field that is of another type, unknown, or missing without having a default.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = sorted(set(values) - {field.name for field in fields})
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(unknown[:3])}")
    for field in fields:
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and field.name not in values:
            raise ValueError(f"{field.name} is missing")
    check_fields(values, typing.get_type_hints(kind))
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in inner)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        if inner[-1] is Ellipsis:
            return all(_fits(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if type(value) is int and wanted in (int, float):
        return abs(value) <= _MAX_INT
    if wanted is float:
        return type(value) is float and math.isfinite(value)
    return type(value) is (types.NoneType if wanted is None else wanted)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
