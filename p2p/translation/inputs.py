"""One input of a translation: its name and where its bytes lie."""

from __future__ import annotations

from typing import NamedTuple

WHOLE_FILE = -1


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
