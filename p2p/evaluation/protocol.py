"""What the figures of an evaluation depend on, and in one line: its signature."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from p2p.storage.pixels import Pixels

_DIGITS = 8
"""Of a hash in a signature."""


def pixels_digest(pixels: Pixels) -> str:
    """SHA-256, in hexadecimal, of an image: its shape, its type and its values."""
    found = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    found.update(pixels.tobytes())
    return found.hexdigest()


def data_digest(pair_ids: Sequence[str], target_digests: Sequence[str]) -> str:
    """SHA-256 of the pairs that were measured: their ids and their targets' pixels, in stored order."""
    found = hashlib.sha256()
    for pair_id, digest in zip(pair_ids, target_digests, strict=True):
        found.update(f"{pair_id}\0{digest}\n".encode())
    return found.hexdigest()


def package_version() -> str:
    """Of the installed p2p; `unknown` where its sources are used as they are."""
    try:
        return importlib.metadata.version("p2p")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def signature(protocol: Mapping[str, Any]) -> str:
    """One line that names all that the figures depend on, the generator apart.

    Example:
        >>> signature({"version": "1", "n": 9, "data": "s3://b/maps", "split": "val", "data_digest": "3fa1c2d4e5",
        ...            "direction": "AtoB", "region": "crop", "size": 256, "norm_mode": "running", "dropout": False,
        ...            "seed": 0, "precision": "bf16", "outputs": "memory", "palette": None, "inception": None,
        ...            "lpips": None, "round_trip": None})
        'p2p1|n9|maps/val:3fa1c2d4|AtoB|crop256|norm:running|dropout:false|bf16|memory'

    """
    data = str(protocol["data"]).rstrip("/").rpartition("/")[2]
    parts = [
        f"p2p{protocol['version']}",
        f"n{protocol['n']}",
        f"{data}/{protocol['split']}:{protocol['data_digest'][:_DIGITS]}",
        str(protocol["direction"]),
        f"{protocol['region']}{protocol['size']}",
        f"norm:{protocol['norm_mode']}",
        f"dropout:{protocol['seed']}" if protocol["dropout"] else "dropout:false",
        str(protocol["precision"]),
        str(protocol["outputs"]),
    ]
    if palette := protocol["palette"]:
        digest = hashlib.sha256(json.dumps(palette).encode()).hexdigest()
        parts.append(f"palette{len(palette)}:{digest[:_DIGITS]}")
    if inception := protocol["inception"]:
        parts.append(f"{inception['resize']}:{inception['sha256'][:_DIGITS]}")
    if lpips := protocol["lpips"]:
        parts.append(f"lpips:{lpips['net']}:{lpips['sha256'][:_DIGITS]}")
    if round_trip := protocol["round_trip"]:
        parts.append(f"round_trip:{round_trip[:_DIGITS]}")
    return "|".join(parts)
