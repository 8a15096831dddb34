"""Sinks that put all images of a shard into one file: `data/part-XXXXX.<extension>`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from p2p.storage.filesystems import exists, join, remove_file
from p2p.storage.lease import Fence
from p2p.storage.staging import StagedFile
from p2p.translation.config import Settings
from p2p.translation.corpus.inputs import MAX_SHARD_ROWS
from p2p.translation.sinks.records import Record, ShardWriter

FOLDER = "data"


class PackedShardWriter(ABC):
    """One file that grows image by image and appears when it is whole."""

    def __init__(self, uri: str, settings: Settings, fence: Fence | None) -> None:
        self._uri, self._checkpoint_id, self._fence = uri, settings.checkpoint_id, fence
        self._file: StagedFile | None = None

    @abstractmethod
    def add(self, record: Record) -> str:
        """As in ShardWriter; returns the file's address."""

    @abstractmethod
    def _read(self) -> Iterator[Record]:
        """The images in the file that an earlier attempt published."""

    @abstractmethod
    def _end(self) -> None:
        """Write what is buffered, and the end of the file."""

    def keep(self, image_ids: Collection[str]) -> set[str]:
        """Copy their images from the file that this one will replace."""
        kept: set[str] = set()
        if exists(self._uri):
            for record in self._read():
                if record.image_id in image_ids and record.image_id not in kept:
                    self.add(record)
                    kept.add(record.image_id)
        return kept

    def fail(self, image_id: str) -> None:  # noqa: B027 - a packed file needs nothing done
        """An image that is not added is not in the file."""

    def publish(self) -> int:
        """Put the file in its place; a shard without a single translated image has none."""
        self._end()
        if self._file is None:
            remove_file(self._uri)  # an earlier attempt may have fetched what this one could not
            return 0
        return self._file.publish()

    def discard(self) -> None:
        """Drop the file if it was never published."""
        if self._file is not None:
            self._file.discard()


@dataclass(frozen=True)
class PackedSink:
    """Writes one file per shard."""

    settings: Settings
    fence: Fence | None = None
    extension: ClassVar[str]
    writer: ClassVar[type[PackedShardWriter]]
    is_tree: ClassVar[bool] = False
    max_shard_rows: ClassVar[int] = MAX_SHARD_ROWS

    def open_shard(self, shard: int) -> ShardWriter:
        """A writer of `data/part-XXXXX.<extension>`."""
        return self.writer(join(self.settings.output, *self.output_names(shard, [])), self.settings, self.fence)

    def output_names(self, shard: int, image_ids: list[str]) -> list[str]:
        """The one file of the shard."""
        return [f"{FOLDER}/part-{shard:05d}.{self.extension}"]
