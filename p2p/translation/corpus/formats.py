"""The file formats that hold images. A folder must be of one: of two, either could be meant."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from p2p.errors import ConfigError
from p2p.storage.filesystems import FileInfo, list_files
from p2p.storage.formats import SUFFIXES, LeftOut
from p2p.translation.corpus.inputs import Input
from p2p.translation.corpus.parquet_corpus import holds_images, unreadable_parquet

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_FILES_INSPECTED = 1000


class FileFormat(Enum):
    """What a file is by its name; the value is the plural a person uses."""

    IMAGE = "images"
    PARQUET = "Parquet files"
    TAR = "tars"
    COMPRESSED_TAR = "compressed tars"


_ENDINGS = {
    FileFormat.IMAGE: SUFFIXES,
    FileFormat.PARQUET: (".parquet",),
    FileFormat.TAR: (".tar",),
    FileFormat.COMPRESSED_TAR: _COMPRESSED,
}


def format_of(path: str) -> FileFormat | None:
    """The format of a file; None for a file without images, such as a list."""
    name = path.lower()
    return next((format for format, endings in _ENDINGS.items() if name.endswith(endings)), None)


def contains_format(uri: str, format: FileFormat) -> bool:
    """Whether one of the first thousand files below a folder is of that format."""
    return any(format_of(file.path) is format for file in itertools.islice(list_files(uri), _MAX_FILES_INSPECTED))


def detect_format(uri: str) -> FileFormat:
    """The format of the first thousand files below a folder. Raises ConfigError for none, or more than one."""
    files: dict[FileFormat, list[FileInfo]] = {}
    others = LeftOut()
    for file in itertools.islice(list_files(uri), _MAX_FILES_INSPECTED):
        format = format_of(file.path)
        if format is None:
            others.add(file.path)
        else:
            files.setdefault(format, []).append(file)
    if len(files) > 1:
        files[FileFormat.PARQUET] = list(filter(_image_check(), files.get(FileFormat.PARQUET, [])))
        if FileFormat.TAR not in files:  # what the images were unpacked from, perhaps
            files.pop(FileFormat.COMPRESSED_TAR, None)
    counts = {format: len(found) for format, found in files.items() if found}
    if len(counts) > 1:
        raise _several_formats(uri, counts)
    for format in counts:
        return format
    raise ConfigError(
        "source",
        f"{uri}: no images ({', '.join(SUFFIXES)}), .parquet or .tar files are there; "
        + (f"found {others.found}" if others else "it is empty"),
    )


def list_format(uri: str, format: FileFormat, reported: set[str]) -> Iterator[FileInfo | Input]:
    """The files of one format below a folder, or the one file at `uri`. Raises ConfigError on meeting another format.

    Which files are left out is logged, unless `reported`. A Parquet file among them that cannot be read may hold images
    too: it is an input, which fails.
    """
    holds_images = _image_check()
    count, left_out = 0, LeftOut()
    for file in list_files(uri):
        found = format_of(file.path)
        if found is format:
            count += 1
            yield file
        elif found is FileFormat.PARQUET and (holds := holds_images(file)) is not True:
            if holds is None:
                yield unreadable_parquet(file, uri)
            else:
                left_out.add(file.path)
        elif found is not None and (found is not FileFormat.COMPRESSED_TAR or format is FileFormat.TAR):
            raise _several_formats(uri, {format: count, found: 1})
        else:
            left_out.add(file.path)
    left_out.log(uri, reported)


def _image_check() -> Callable[[FileInfo], bool | None]:
    """As `holds_images`, which it asks about the first readable file of each folder: the others are like it."""
    by_folder: dict[str, bool] = {}

    def check(file: FileInfo) -> bool | None:
        folder = posixpath.dirname(file.uri)
        if folder not in by_folder:
            found = holds_images(file.uri)
            if found is None:
                return None
            by_folder[folder] = found
        return by_folder[folder]

    return check


def _several_formats(uri: str, counts: Mapping[FileFormat, int]) -> ConfigError:
    found = " and ".join(f"{count} {format.value[: None if count > 1 else -1]}" for format, count in counts.items())
    return ConfigError(
        "source",
        f"{uri}: of the first files there, {found}; which are meant? Name a folder or file that holds one format, or a "
        f"manifest of images (.txt, .csv)"
        + (", or pass --image-column for the Parquet files" if FileFormat.PARQUET in counts else ""),
    )
