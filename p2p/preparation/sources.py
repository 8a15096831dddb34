"""Listing a source: the images of a folder or an archive, by name, without their bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from p2p.data.layouts import split_name
from p2p.doctor.files import BadRow
from p2p.errors import BadInputError, ConfigError, DamagedFileError, StorageError
from p2p.preparation.config import SYNTHETIC
from p2p.preparation.locations import Chunk, File, Location, Range, ZipMember, check_zip_member, open_zip
from p2p.storage.bounded import DEFAULT_MAX_BYTES, check_bytes
from p2p.storage.compressed import DecompressedFile
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import FileInfo, is_file, list_files, open_filesystem
from p2p.storage.formats import SUFFIXES, LeftOut
from p2p.storage.names import is_hidden, printable
from p2p.storage.tars import TarMember, read_members

SourceFormat = Literal["synthetic", "zip", "tar", "stream", "parquet", "folder"]
"""stream: a tar that is compressed or on a web server, which is read once from start to end."""
_STREAMED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_IN_FOLDERS = (".zip", *_STREAMED)  # archives that are read by themselves, and not as files of a folder
_OTHER_ARCHIVES = (".zst", ".tzst", ".7z", ".rar", ".gz", ".bz2", ".xz", ".lz4")
_CHUNK_BYTES = 16 * 2**20
_PIECE_BYTES = 2**20
_MAX_MEMBERS = 1_000_000
_MIN_MEMBER_BYTES = 8  # a header and an image, compressed; those without content take next to nothing
_SPLIT_PREFIX = re.compile(r"(train|validation|valid|val|test)-", re.IGNORECASE)
_NO_WORD = re.compile(r"[\W_]+")
_KEY = re.compile(r"\w+=|partial-")  # before the split that a folder of tables is called after
_ARROW_ADVICE = "data sets of Hugging Face in Arrow files are read once their to_parquet has written them as .parquet"
_TABLE_ADVICE = "a Parquet data set has both sides in its columns, so give it as --source alone"
_TAR_MARK = slice(257, 262)  # where a tar says that it is one
_LISTING_BLOCK = 2**16  # a tar's headers lie far apart; a large read-ahead would fetch all of it


@dataclass(frozen=True)
class Member:
    """One image of a source: its path there, where its bytes are, and their number."""

    path: str
    location: Location
    size: int


@dataclass
class Listing:
    """All images of a source, those that are refused, and which other files there are."""

    uri: str
    members: list[Member] = dataclasses.field(default_factory=list)
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    parquet: int = 0
    archives: int = 0
    """Of those left out, how many could be read by themselves."""
    packed: int = 0
    arrow: int = 0
    """Of those left out, how many hold images perhaps, once they are unpacked, or written as Parquet."""
    split_lists: list[str] = dataclasses.field(default_factory=list)
    """Of those left out, the texts whose names say a split, as the lists of Pascal VOC do (`Main/train.txt`)."""
    max_bytes: int = DEFAULT_MAX_BYTES
    _links: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def add(self, path: str, size: int, locate: Callable[[], Location]) -> bool:
        """Add the file at `path` if it is an image of acceptable size. Returns whether it is."""
        if not path.lower().endswith(SUFFIXES):
            self.left_out.add(path)
            self.parquet += path.lower().endswith(".parquet")
            self.archives += path.lower().endswith(_IN_FOLDERS)
            self.packed += path.lower().endswith(_OTHER_ARCHIVES) and not path.lower().endswith(_IN_FOLDERS)
            self.arrow += path.lower().endswith(".arrow")
            name, dot, ending = path.rpartition("/")[2].rpartition(".")
            if dot and ending.lower() == "txt" and split_name(name):
                self.split_lists.append(printable(path))
            return False
        try:
            check_bytes(size, self.max_bytes)
            self.members.append(Member(printable(path), locate(), size))
        except BadInputError as error:
            self.refuse(path, error.kind, str(error))
            return False
        return True

    def add_link(self, path: str, target: str) -> None:
        """Add another name of an image of this archive, which may come later."""
        if path.lower().endswith(SUFFIXES):
            self._links.append((path, target))

    def resolve_links(self) -> None:
        """Make images of the links that were added."""
        found = {member.path: member for member in self.members} if self._links else {}
        for path, target in self._links:
            member = found.get(printable(target))
            if member:
                self.members.append(Member(printable(path), member.location, member.size))
            else:
                self.refuse(path, "LinkMember", f"a link to {target}, which is no image of this archive")

    def refuse(self, path: str, error: str, message: str) -> None:
        """Record an image that will not be read."""
        self.bad.append(BadRow(printable(f"{self.uri}#{path}"), error, printable(message)))

    def require_images(self, field: str) -> None:
        """Raise ConfigError about `field`, with the reason, if there is not one image."""
        if self.members:
            return
        if self.bad:
            problem = f"no image can be used; the first: {self.bad[0].message}"
        elif self.left_out:
            problem = f"holds no images, which end in {' '.join(SUFFIXES)}; {self.left_out}"
            problem += "".join(f"; {advice}" for advice in self._advice())
        else:
            problem = f"holds no files; images end in {' '.join(SUFFIXES)}"
        raise ConfigError(field, f"{self.uri}: {problem}")

    def _advice(self) -> Iterator[str]:
        """What to do with the files that are left out, where there are no images beside them."""
        if self.archives:
            two = ", or, where two of them hold a side each, these as --source and --source-b" * (self.archives > 1)
            yield f"of archives in a folder only .tar is read, so unpack them, or give one{two}"
        if self.packed:
            yield "archives of a kind that is not read must be unpacked"
        if self.arrow:
            yield _ARROW_ADVICE
        if self.parquet:
            is_folder = source_format(self.uri) == "folder"
            yield _TABLE_ADVICE if is_folder else "Parquet files are not read in archives, so unpack them"


def source_format(uri: str) -> SourceFormat:
    """The format of the source at `uri`, by its name alone."""
    name = uri.split("?", 1)[0].lower() if uri.startswith(("http://", "https://")) else uri.lower()
    if uri.startswith(SYNTHETIC):
        return "synthetic"
    if name.endswith(".zip"):
        return "zip"
    if name.endswith(_STREAMED) or (name.endswith(".tar") and name.startswith(("http://", "https://"))):
        return "stream"
    if name.endswith(".tar"):
        return "tar"
    return "parquet" if name.endswith(".parquet") else "folder"


def splits_of(paths: Sequence[str]) -> list[str]:
    """The split of each file of a data set: by a folder (`train/part-0.parquet`, `default/split=test/0.parquet`) or by
    its name (`train-00000-of-00002.parquet`, `val.parquet`, `cc-test-000.tar`); empty without.

    A word anywhere in the names counts where it tells files apart: of all of them it may be just a word.
    """
    certain = [_split_of(path) for path in paths]
    likely = [split or _split_in_name(path) for split, path in zip(certain, paths, strict=True)]
    return likely if len({*likely}) > 1 else certain


def _split_of(path: str) -> str:
    *folders, name = path.split("/")
    named = _SPLIT_PREFIX.match(name)
    by_folder = next((split for folder in folders if (split := split_name(_KEY.sub("", folder, count=1)))), "")
    return by_folder or (split_name(named[1]) if named else "")


def _split_in_name(path: str) -> str:
    """The split that a word of a file's name says; none where several words say different ones."""
    words = _NO_WORD.split(path.rpartition("/")[2].rpartition(".")[0])
    found = {split for word in words if (split := split_name(word) or split_name(word.rstrip("0123456789")))}
    return found.pop() if len(found) == 1 else ""


def list_source(uri: str, field: str, max_bytes: int = DEFAULT_MAX_BYTES) -> Listing:
    """List a folder, of images or of plain tars, a zip or a plain tar; images of more than `max_bytes` bytes are bad.

    Raises ConfigError about `field` if it is none of these.
    """
    listing = Listing(uri, max_bytes=max_bytes)
    match source_format(uri):
        case "zip":
            return _list_zip(listing, field)
        case "tar":
            with _refused_about(field):
                return _list_tar(listing)
    if uri.startswith(("http://", "https://")) or is_file(uri):
        raise ConfigError(field, f"{uri}: {_why_no_source(uri.lower())}")
    tars = []
    for file in list_files(uri):
        if file.path.lower().endswith(".tar"):
            tars.append(file)
        else:
            listing.add(file.path, file.size, functools.partial(File, file.uri))
    if listing.members or listing.bad or listing.parquet:  # which were unpacked from the tars, perhaps
        for file in tars:
            listing.left_out.add(file.path)
    else:
        with _refused_about(field):
            _list_shards(tars, listing)
    return listing


def _why_no_source(name: str) -> str:
    if name.endswith(_OTHER_ARCHIVES):
        return "an archive of a kind that is not read; unpack it and give the folder, or pack it as .tar"
    if name.endswith(".parquet"):
        return _TABLE_ADVICE
    if name.endswith(".arrow"):
        return _ARROW_ADVICE
    return "neither a folder nor a .tar, .tar.gz, .zip or .parquet; give the folder that holds it"


def _safe_path(name: str) -> str:
    """A member's name without `./`. Raises BadInputError for one that points outside the archive."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if parts[:1] == [""] or ".." in parts or (parts and parts[0].endswith(":")):
        raise BadInputError("UnsafeName", f"the archive holds the name {name!r}, which points outside it")
    return "/".join(part for part in parts if part)


@contextlib.contextmanager
def _open_archive(uri: str, block: int | None = None) -> Iterator[IO[bytes]]:
    filesystem, path = open_filesystem(uri)
    with storage_errors(uri), filesystem.open(path, "rb", **({"block_size": block} if block else {})) as file:
        yield file


@contextlib.contextmanager
def _refused_about(field: str) -> Iterator[None]:
    """An archive that cannot be read is a wrong `field`."""
    try:
        yield
    except StorageError as error:
        raise ConfigError(field, str(error)) from None


def _list_zip(listing: Listing, field: str) -> Listing:
    uri = listing.uri
    with _refused_about(field), _open_archive(uri) as file, _open_zip(file, uri) as archive:
        for number, info in enumerate(archive.infolist()):
            if info.is_dir():
                continue
            if path := _image_path(info.filename, stat.S_ISLNK(info.external_attr >> 16), listing):
                listing.add(path, info.file_size, functools.partial(_zip_member, uri, number, info))
    return listing


def _open_zip(file: IO[bytes], uri: str) -> zipfile.ZipFile:
    try:
        return open_zip(file, uri)
    except DamagedFileError:
        with storage_errors(uri):
            file.seek(0)
            is_tar = file.read(_TAR_MARK.stop)[_TAR_MARK] == b"ustar"
        if is_tar:
            raise DamagedFileError(f"{uri}: this is a tar archive, though its name says zip; name it .tar") from None
        raise


def _zip_member(uri: str, number: int, info: zipfile.ZipInfo) -> ZipMember:
    check_zip_member(info)
    return ZipMember(uri, info.filename, number)


def _image_path(name: str, is_link: bool, listing: Listing) -> str:
    """A member's safe path; empty for one that is hidden, or refused as a link or for pointing outside."""
    try:
        path = _safe_path(name)
        if is_hidden(path):
            return ""
        if is_link and path.lower().endswith(SUFFIXES):
            raise BadInputError("LinkMember", f"{name} is a symbolic link; these are not followed in archives")
    except BadInputError as error:
        listing.refuse(name, error.kind, str(error))
        return ""
    if is_link:
        listing.left_out.add(path)
    return "" if is_link else path


def _tar_files(members: Iterator[TarMember], listing: Listing) -> Iterator[tuple[str, TarMember]]:
    """Yield the regular files of a tar with their safe paths; links to them go into the listing."""
    for member in members:
        if member.kind == "folder":
            continue
        path = _image_path(member.name, member.kind == "symbolic link", listing)
        if path and member.kind == "file":
            yield path, member
        elif path and member.kind == "hard link":
            listing.add_link(path, member.target.removeprefix("./"))
        elif path and path.lower().endswith(SUFFIXES):
            listing.refuse(
                path, "NotAFile", f"{member.name} is kept in a way that is not read ({member.kind}); pack it anew"
            )
    listing.resolve_links()


def _list_tar(listing: Listing) -> Listing:
    uri = listing.uri
    with _open_archive(uri, _LISTING_BLOCK) as file:
        for path, member in _tar_files(read_members(file, uri), listing):
            listing.add(path, member.size, functools.partial(Range, uri, member.name, member.start, member.size))
    return listing


def _list_shards(tars: Sequence[FileInfo], listing: Listing) -> None:
    """Add the images of all tars of a folder, each below its tar's name, since the names in them may begin anew.

    One that is damaged is bad as a whole.
    """
    for file, split in zip(tars, splits_of([file.path for file in tars]), strict=True):
        shard = Listing(file.uri, left_out=listing.left_out, max_bytes=listing.max_bytes)
        try:
            _list_tar(shard)
        except DamagedFileError as error:
            listing.bad.append(BadRow(printable(file.uri), error.kind, printable(str(error))))
            continue
        folder = file.path[: -len(".tar")]
        # A split that no folder says in so many words is a folder, too.
        said = next((said for part in folder.split("/") if (said := split_name(part))), "")
        above = printable(folder if not split or said == split else f"{split}/{folder}")
        listing.members += [dataclasses.replace(member, path=f"{above}/{member.path}") for member in shard.members]
        listing.bad += shard.bad


def _count_members(file: DecompressedFile, uri: str) -> Iterator[TarMember]:
    """Yield the members of a compressed tar. Raises DamagedFileError for more than its size allows: all are held
    in memory.
    """
    for number, member in enumerate(read_members(file, uri), 1):
        if number > max(_MAX_MEMBERS, file.compressed_bytes // _MIN_MEMBER_BYTES):
            raise DamagedFileError(
                f"{uri}: has {number} files in {file.compressed_bytes} bytes; unpack it and give the folder"
            )
        yield member


def read_stream(
    uri: str,
    field: str,
    keep: Callable[[bytearray], None],
    first: int = 0,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Listing:
    """Read a compressed tar once from start to end, passing its images on in chunks of some 16 MiB.

    `keep` is called with chunk `first`, `first` + 1, …, as the listing's locations number them. One is held at a time.
    Images of more than `max_bytes` bytes are bad.
    """
    listing = Listing(uri, max_bytes=max_bytes)
    chunk, number = bytearray(), first
    with _refused_about(field), _open_archive(uri) as raw:
        file = DecompressedFile(raw, uri)
        for path, member in _tar_files(_count_members(file, uri), listing):
            locate = functools.partial(Chunk, uri, member.name, number, len(chunk), member.size)
            if not listing.add(path, member.size, locate):
                continue
            left = member.size
            while left and (piece := file.read(min(left, _PIECE_BYTES))):  # where it is cut off, the next header raises
                chunk += piece
                left -= len(piece)
            if len(chunk) >= _CHUNK_BYTES:
                keep(chunk)
                chunk, number = bytearray(), number + 1
    if chunk:
        keep(chunk)
    return listing
