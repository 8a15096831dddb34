"""Translated images as WebDataset tars: `data/part-XXXXX.tar`, one per shard, an image and a JSON for each input."""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

from p2p.storage.filesystems import exists, join, open_filesystem, storage_errors
from p2p.storage.images import EXTENSIONS
from p2p.translation.config import Settings
from p2p.translation.sinks.images import image_name
from p2p.translation.sinks.records import Record
from p2p.translation.sinks.staging import StagedFile, remove_file

FOLDER = "data"


def member_name(image_id: str, extension: str) -> str:
    """The image's name in its tar: the input's path with another ending.

    Readers take all that follows the first dot of a file name for its ending, so other dots become `%2E`.
    """
    folder, name = posixpath.split(image_name(image_id, extension))
    stem = name.removesuffix(f".{extension}").replace(".", "%2E")
    return posixpath.join(folder, f"{stem}.{extension}")


def read_records(uri: str) -> Iterator[Record]:
    """The images of a tar that this sink wrote."""
    with storage_errors(uri):
        filesystem, path = open_filesystem(uri)
        with filesystem.open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
            image = b""
            for member in tar:
                file = tar.extractfile(member)
                data = file.read() if file is not None else b""
                if member.name.endswith(".json"):
                    known = json.loads(data)
                    yield Record(image=image, **{name: known[name] for name in Record._fields if name != "image"})
                else:
                    image = data


@dataclass(frozen=True)
class WebDatasetSink:
    """Writes encoded images into tars, each beside a JSON that names its input and the checkpoint."""

    output: str
    settings: Settings
    is_tree: ClassVar[bool] = False

    def open_shard(self, shard: int) -> WebDatasetShardWriter:
        """A writer of `data/part-XXXXX.tar`."""
        return WebDatasetShardWriter(join(self.output, self._name(shard)), self.settings)

    def output_names(self, shard: int, image_ids: list[str]) -> list[str]:
        """The one file of the shard."""
        return [self._name(shard)]

    def name_of(self, image_id: str) -> str:
        """Two inputs that differ only by their ending would share a key."""
        return member_name(image_id, EXTENSIONS[self.settings.image_format])

    @staticmethod
    def _name(shard: int) -> str:
        return f"{FOLDER}/part-{shard:05d}.tar"


class WebDatasetShardWriter:
    """One tar that grows image by image and appears when it is whole. Equal images make equal tars."""

    def __init__(self, uri: str, settings: Settings) -> None:
        self._uri, self._checkpoint_id = uri, settings.checkpoint_id
        self._extension = EXTENSIONS[settings.image_format]
        self._file: StagedFile | None = None
        self._tar: tarfile.TarFile | None = None

    def add(self, record: Record) -> str:
        """Append the image and what is known of it."""
        if self._tar is None:
            self._file = StagedFile(self._uri)
            self._tar = tarfile.open(fileobj=self._file.file, mode="w")  # noqa: SIM115 - closed by publish
        name = member_name(record.image_id, self._extension)
        known = {field: value for field, value in record._asdict().items() if field != "image"}
        described = json.dumps({**known, "checkpoint_id": self._checkpoint_id}).encode()
        stem = name.removesuffix(self._extension)
        with storage_errors(self._uri):
            for member, data in ((name, record.image), (f"{stem}json", described)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                self._tar.addfile(info, io.BytesIO(data))
            self._tar.members = []  # type: ignore[attr-defined] # else it remembers every member, in memory
        return self._uri

    def keep(self, image_ids: Collection[str]) -> set[str]:
        """Copy their members from the file that this one will replace."""
        kept: set[str] = set()
        if exists(self._uri):
            for record in read_records(self._uri):
                if record.image_id in image_ids and record.image_id not in kept:
                    self.add(record)
                    kept.add(record.image_id)
        return kept

    def fail(self, image_id: str) -> None:
        """A member that is not written is nowhere."""

    def publish(self) -> int:
        """Put the file in its place; a shard without a single translated image has none."""
        if self._tar is None or self._file is None:
            remove_file(self._uri)  # an earlier attempt may have fetched what this one could not
            return 0
        with storage_errors(self._uri):
            self._tar.close()
        return self._file.publish()

    def discard(self) -> None:
        """Drop the file if it was never published."""
        if self._file is not None:
            self._file.discard()
