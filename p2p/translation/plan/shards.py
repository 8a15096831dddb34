"""What files are called that belong to one shard."""

from __future__ import annotations

import re

from p2p.storage.filesystems import join, list_names

_NAME = re.compile(r"shard-(\d{5,})\.[a-z]+")


def shard_uri(folder: str, shard: int, extension: str) -> str:
    """The address of a shard's own book-keeping file in `folder`."""
    return join(folder, f"shard-{shard:05d}.{extension}")


def shard_of(name: str) -> int | None:
    """The number in the name of a shard's file; None for other files."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def shards_in(folder: str) -> set[int]:
    """The shards that have a file in `folder`."""
    return {shard for shard in map(shard_of, list_names(folder)) if shard is not None}
