"""What p2p writes as JSON, any strict parser reads: numbers that are not finite become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


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
