"""One input of a translation: its name and where its bytes are."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

MAX_SHARD_ROWS = 256
"""Inputs of a shard, at most."""
WHOLE_FILE = -1
DAMAGED = -2
"""In place of a row: not an image, but what cannot be read of a file that holds images, from `offset` on."""
SIGNED = -3
"""In place of a row: the address, with its secret query, is only in the manifest, at `offset`."""
# Only bytes that are no ASCII are ever written so. A manifest's `\\x2e\\x2e/` would become `../` behind all checks.
_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


class Input(NamedTuple):
    """An image to translate. A tuple, since a corpus makes millions of them."""

    image_id: str
    """Path relative to the source, or the id its container gives it."""
    source_uri: str
    """The file that holds the bytes."""
    size: int = 0
    """Encoded bytes; 0 where the listing does not know."""
    offset: int = WHOLE_FILE
    """First byte inside a tar."""
    row_group: int = WHOLE_FILE
    """Row group of a Parquet file."""
    row: int = WHOLE_FILE
    """Row inside that row group."""
    reason: str = ""
    """`Kind: message` of what made it unreadable when it was listed; empty for an image."""
    version: int = 0
    """64 bits that change when the file is written anew; 0 where the listing does not know."""


def on_disk(name: str) -> str:
    """The name of which `p2p.storage.names.printable` made this one."""
    return _ESCAPED_BYTE.sub(lambda byte: os.fsdecode(bytes.fromhex(byte[1])), name)
