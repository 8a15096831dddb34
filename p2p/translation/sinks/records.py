"""What a sink is given, and what every sink can do."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol


class Record(NamedTuple):
    """One translated image, encoded."""

    image_id: str
    image: bytes
    width: int
    height: int
    source_uri: str
    milliseconds: float
    """Time spent on this image: decoding, its share of the network's batches, encoding."""


class ShardWriter(Protocol):
    """Takes the images of one shard. Nothing is visible under its final name before it is whole."""

    def add(self, record: Record) -> str:
        """Write one image, perhaps later; returns the address it will have."""

    def keep(self, image_ids: Collection[str]) -> set[str]:
        """Take over what an earlier attempt has published of these; returns those that are there. Called first."""

    def fail(self, image_id: str) -> None:
        """An input has no output: remove what an earlier, interrupted attempt may have left of it."""

    def publish(self) -> int:
        """Return, with the number of bytes written, once everything added is in place. Called from another thread."""

    def discard(self) -> None:
        """Drop what is not published."""


class OutputNames(Protocol):
    """What outputs are called."""

    @property
    def is_tree(self) -> bool:
        """Whether names are paths of files, so that none may be another's folder."""

    @property
    def max_shard_rows(self) -> int:
        """Inputs that are done together, at most."""

    def name_of(self, image_id: str) -> str:
        """What must be unique among the inputs, so that no output overwrites another."""

    def output_names(self, shard: int, image_ids: list[str]) -> list[str]:
        """Every file, relative to the output, that a shard with these inputs may have written."""


class Sink(OutputNames, Protocol):
    """Where outputs go: makes one writer per shard, and decides what outputs are called."""

    def open_shard(self, shard: int) -> ShardWriter:
        """A writer for shard number `shard`."""
