"""Translated images as files that mirror the source: `images/<relative path>.<extension>`."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from p2p.storage.filesystems import join, remove_file, write_bytes
from p2p.storage.formats import ENDINGS
from p2p.storage.lease import Fence
from p2p.translation.corpus.inputs import MAX_SHARD_ROWS
from p2p.translation.sinks.records import Record, ShardWriter

FOLDER = "images"
_MAX_COMPONENT_BYTES = 255  # what file systems allow
_MAX_NAME_BYTES = 900  # an object store allows 1024 for the whole key
_KEPT_CHARACTERS = 80  # of a name that is replaced
_WRITERS = 8
_MAX_WAITING_BYTES = 64 * 2**20


def _is_safe(component: str) -> bool:
    return (
        component not in ("", ".", "..")
        and component.isprintable()
        and "::" not in component  # chains addresses in fsspec
        and "\\" not in component
        and len(component.encode("utf-8", "surrogatepass")) <= _MAX_COMPONENT_BYTES
    )


def image_name(image_id: str, extension: str) -> str:
    """The output's path below `images/`: the input's with another ending, or with one more if it has no image's.

    A path that could lead elsewhere, or that a file system refuses (`..`, absolute, NUL, control characters, too long),
    becomes one readable component with a hash of the whole id, so it stays inside, unique, and the same every time.
    """
    stem, ending = os.path.splitext(image_id)
    if ending.lower() not in ENDINGS:  # a row's number, a version
        stem = image_id
    name = f"{stem}.{extension}"
    if len(name.encode("utf-8", "surrogatepass")) <= _MAX_NAME_BYTES and all(map(_is_safe, name.split("/"))):
        return name
    readable = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in stem)
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"renamed/{readable[-_KEPT_CHARACTERS:]}~{digest}.{extension}"


@dataclass(frozen=True)
class ImagesSink:
    """Writes one file per image."""

    output: str
    extension: str
    fence: Fence | None = None
    is_tree: ClassVar[bool] = True
    max_shard_rows: ClassVar[int] = MAX_SHARD_ROWS

    def open_shard(self, shard: int) -> ShardWriter:
        """A writer that is free to write at once: an image's name never depends on its shard."""
        return _ImagesWriter(self.output, self.extension, self.fence)

    def output_names(self, shard: int, image_ids: list[str]) -> list[str]:
        """One file per input."""
        return [f"{FOLDER}/{self.name_of(image_id)}" for image_id in image_ids]

    def name_of(self, image_id: str) -> str:
        """Two inputs that differ only by their ending would share a file."""
        return image_name(image_id, self.extension)


class _ImagesWriter:
    """Writes on a few threads, with at most 64 MB waiting."""

    def __init__(self, output: str, extension: str, fence: Fence | None) -> None:
        self._output, self._extension, self._fence = output, extension, fence
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._waiting: deque[tuple[Future[Any], int]] = deque()
        self._waiting_bytes = self._written = 0
        self._failed: list[str] = []

    def _uri(self, image_id: str) -> str:
        return join(self._output, FOLDER, image_name(image_id, self._extension))

    def add(self, record: Record) -> str:
        """Start writing; wait for earlier images if too much is waiting. Raises StorageError for one of them."""
        uri = self._uri(record.image_id)
        self._waiting.append((self._pool.submit(write_bytes, uri, record.image, fence=self._fence), len(record.image)))
        self._waiting_bytes += len(record.image)
        while self._waiting_bytes > _MAX_WAITING_BYTES or (self._waiting and self._waiting[0][0].done()):
            self._take_first()
        return uri

    def keep(self, image_ids: Collection[str]) -> set[str]:
        return set(image_ids)  # their files stay where they are

    def fail(self, image_id: str) -> None:
        self._failed.append(image_id)

    def publish(self) -> int:
        # What an earlier attempt may have left of failed images goes now: another process may have made them by then,
        # and this one then publishes nothing.
        self._waiting.extend((self._pool.submit(remove_file, self._uri(image_id)), 0) for image_id in self._failed)
        while self._waiting:
            self._take_first()
        self._pool.shutdown()
        return self._written

    def discard(self) -> None:
        """Start nothing more. What is written already stays: it is whole, and the next attempt writes it again."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _take_first(self) -> None:
        future, size = self._waiting.popleft()
        future.result()
        self._waiting_bytes -= size
        self._written += size
