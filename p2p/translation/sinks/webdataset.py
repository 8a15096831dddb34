"""Translated images as WebDataset tars: `data/part-XXXXX.tar`, one per shard, an image and a JSON for each input."""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator

from p2p.documents import parse_json_object
from p2p.errors import DamagedFileError
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import open_filesystem
from p2p.storage.images import EXTENSIONS
from p2p.storage.lease import Fence
from p2p.storage.staging import StagedFile
from p2p.storage.tars import read_members
from p2p.translation.config import Settings
from p2p.translation.sinks.images import image_name
from p2p.translation.sinks.records import Record
from p2p.translation.sinks.shard_files import PackedShardWriter, PackedSink

_KNOWN = set(Record._fields) - {"image"}


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
        with filesystem.open(path, "rb") as file:
            image = b""
            for member in read_members(file, uri):
                data = file.read(member.size)
                if member.name.endswith(".json"):
                    known = parse_json_object(data, f"{uri}: {member.name}")
                    if _KNOWN - known.keys():
                        raise DamagedFileError(f"{uri}: {member.name} does not describe an image")
                    yield Record(image=image, **{name: known[name] for name in _KNOWN})
                else:
                    image = data


class _TarWriter(PackedShardWriter):
    """Writes member by member. Equal images make equal tars."""

    def __init__(self, uri: str, settings: Settings, fence: Fence | None) -> None:
        super().__init__(uri, settings, fence)
        self._extension = EXTENSIONS[settings.image_format]
        self._tar: tarfile.TarFile | None = None

    def add(self, record: Record) -> str:
        if self._tar is None:
            self._file = StagedFile(self._uri, self._fence)
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

    def _read(self) -> Iterator[Record]:
        return read_records(self._uri)

    def _end(self) -> None:
        if self._tar is not None:
            with storage_errors(self._uri):
                self._tar.close()


class WebDatasetSink(PackedSink):
    """Writes encoded images into tars, each beside a JSON that names its input and the checkpoint."""

    extension = "tar"
    writer = _TarWriter

    def name_of(self, image_id: str) -> str:
        """Two inputs that differ only by their ending would share a key."""
        return member_name(image_id, EXTENSIONS[self.settings.image_format])
