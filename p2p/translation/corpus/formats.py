"""The kinds of files that hold images. A folder must be of one kind: of two, nobody could tell which is meant."""

from __future__ import annotations

import itertools
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from p2p.errors import UsageError
from p2p.storage.filesystems import FileInfo, list_files
from p2p.storage.images import SUFFIXES

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_FILES_LOOKED_AT = 1000


class Kind(Enum):
    """What a file is by its name; the value is what a person calls many of them."""

    IMAGE = "images"
    PARQUET = "Parquet files"
    TAR = "tars"
    COMPRESSED_TAR = "compressed tars"


_ENDINGS = {Kind.IMAGE: SUFFIXES, Kind.PARQUET: (".parquet",), Kind.TAR: (".tar",), Kind.COMPRESSED_TAR: _COMPRESSED}
_ALL_ENDINGS = tuple(ending for endings in _ENDINGS.values() for ending in endings)

HasImages = Callable[[str], bool | None]
"""Tells of the address of a Parquet file whether it holds images; it may be a mere table. None: it cannot be read."""
HasImagesOfFile = Callable[[FileInfo], bool | None]


def kind_of(path: str) -> Kind | None:
    """The kind of a file; None for what holds no images: notes, lists, checksums."""
    name = path.lower()
    return next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)


def has_kind(uri: str, kind: Kind) -> bool:
    """Whether one of the first thousand files below a folder is of that kind."""
    return any(kind_of(file.path) is kind for file in itertools.islice(list_files(uri), _FILES_LOOKED_AT))


def find_kind(uri: str, has_images: HasImages) -> Kind:
    """The kind of the first thousand files below a folder. Raises UsageError if there is none, or more than one."""
    files: dict[Kind, list[FileInfo]] = {}
    others: Counter[str] = Counter()
    for file in itertools.islice(list_files(uri), _FILES_LOOKED_AT):
        kind = kind_of(file.path)
        if kind is None:
            others[posixpath.splitext(file.path)[1].lower()] += 1
        else:
            files.setdefault(kind, []).append(file)
    if len(files) > 1:
        may_hold = _parquet_judge(has_images)
        files[Kind.PARQUET] = [file for file in files.get(Kind.PARQUET, []) if may_hold(file)]
        if Kind.TAR not in files:  # what the images were unpacked from, perhaps
            files.pop(Kind.COMPRESSED_TAR, None)
    counts = {kind: len(found) for kind, found in files.items() if found}
    if len(counts) > 1:
        raise _mixed(uri, counts)
    for kind in counts:
        return kind
    found = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in others.most_common(3))
    raise UsageError(
        f"--source {uri}: no images ({', '.join(SUFFIXES)}), .parquet or .tar files are there; "
        + (f"found {found}" if found else "it is empty")
    )


def list_kind(uri: str, kind: Kind, has_images: HasImages) -> Iterator[FileInfo]:
    """The files of one kind below a folder, or the one file at `uri`. Raises UsageError on meeting another kind.

    Parquet files that cannot be read are among them: nobody can tell what they hold, so somebody must be told of them.
    """
    may_hold = _parquet_judge(has_images)
    count = 0
    for file in list_files(uri, _ALL_ENDINGS):
        found = kind_of(file.path)
        if found is kind:
            count += 1
            yield file
            continue
        is_bystander = found is Kind.COMPRESSED_TAR and kind is not Kind.TAR
        if found is None or is_bystander:
            continue
        holds = may_hold(file) if found is Kind.PARQUET else True
        if holds is None:
            yield file
        elif holds:
            raise _mixed(uri, {kind: count, found: 1})


def _parquet_judge(has_images: HasImages) -> HasImagesOfFile:
    """Tells which Parquet files hold images. The first readable one of each folder is looked at: the others are like
    it.
    """
    by_folder: dict[str, bool] = {}

    def may_hold(file: FileInfo) -> bool | None:
        folder = posixpath.dirname(file.uri)
        if folder not in by_folder:
            found = has_images(file.uri)
            if found is None:
                return None
            by_folder[folder] = found
        return by_folder[folder]

    return may_hold


def _mixed(uri: str, counts: Mapping[Kind, int]) -> UsageError:
    told = " and ".join(f"{count} {kind.value[: None if count > 1 else -1]}" for kind, count in counts.items())
    return UsageError(
        f"--source {uri}: of the first files there, {told}; which are meant? Name a folder or file that holds one "
        f"kind, or a manifest of images (.txt, .csv)"
        + (", or pass --image-column for the Parquet files" if Kind.PARQUET in counts else "")
    )
