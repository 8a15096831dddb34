"""Tar archives by their headers, read once and forwards.

Python's own `tarfile` reads a header's records as a whole, however large they say they are, follows chains of them by
recursion, seeks backwards where a size is negative, and before 3.11.10 and 3.12.6 takes time and memory that grow with
the square of a record's length. An archive of half a kilobyte may take all memory there is. Here a member's headers may
take `MAX_HEADER_BYTES` together, each byte of them is looked at once, and only what is needed is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

from p2p.errors import DamagedFileError
from p2p.storage.error_mapping import storage_errors

log = logging.getLogger("p2p")

MAX_HEADER_BYTES = 2**20
"""What the headers of one member may take together: its name, owner, times, attributes."""
MAX_NAME_BYTES = 4096
"""What a member's name may take. No file system has longer paths."""
_MAX_SIZE = 2**62
_BLOCK = 512

MemberKind = Literal["file", "folder", "hard link", "symbolic link", "sparse", "special file"]
# Types of the ustar format and of GNU tar; all others are "special file".
_KINDS: dict[bytes, MemberKind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "symbolic link",
    b"5": "folder",
    b"S": "sparse",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_ZIP = b"PK\x03\x04"
_LINKS = ("hard link", "symbolic link")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK = (b"x", b"X"), b"g", b"L", b"K"
_HEADER_TYPES = (*_PAX, _GLOBAL_PAX, _LONG_NAME, _LONG_LINK)
_SPARSE_RECORDS = {b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.major"}
_KEPT_RECORDS = {b"path", b"linkpath", b"size", b"GNU.sparse.name", *_SPARSE_RECORDS}


class ForwardFile(Protocol):
    """A file that is read and sought forwards only."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; fewer only at the end."""

    def seek(self, position: int, /) -> object:
        """Go forwards to `position`."""

    def tell(self) -> int:
        """The position."""


class TarMember(NamedTuple):
    """A member of a tar. The bytes of a "sparse" one are not those of the file that was packed."""

    name: str
    kind: MemberKind
    start: int
    """First byte of its content in the tar."""
    size: int
    """Bytes of its content."""
    target: str = ""
    """Of a link: the name of the member (hard link) or the path (symbolic link) that it stands for."""

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.start + _padded(self.size)


def read_members(file: ForwardFile, uri: str) -> Iterator[TarMember]:
    """Yield the members of a tar, in order. When one is yielded, `file` is at its content, which may be read.

    Raises DamagedFileError for what is no tar, is cut off or damaged, or has larger headers than any tool writes.
    """
    headers = _Headers(file, uri)
    while (member := headers.read_member()) is not None:
        yield member
        if file.tell() < member.end:
            headers.skip_to(member.end)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


class _Headers:
    """Reads the headers of one member after the other."""

    def __init__(self, file: ForwardFile, uri: str) -> None:
        self._file = file
        self._uri = uri
        self._global: dict[bytes, bytes] = {}
        self._left = MAX_HEADER_BYTES

    def read_member(self) -> TarMember | None:
        """The next member; None at the end."""
        self._left = MAX_HEADER_BYTES
        records: dict[bytes, bytes] = {}  # of several, the first counts
        is_begun = False
        while True:
            block = self._read_header()
            if not any(block) and not is_begun and len(block) in (0, _BLOCK):
                self._require_end(block)
                return None
            self._check(block)
            kind, size = block[156:157], self._number(block[124:136])
            if kind in _HEADER_TYPES:
                data = self._read(_padded(size))[:size]
            if kind == _GLOBAL_PAX:
                self._global |= self._parse_records(data)
            elif kind in _PAX:
                records = self._parse_records(data) | records
            elif kind == _LONG_NAME:
                records.setdefault(b"path", _until_nul(data))
            elif kind == _LONG_LINK:
                records.setdefault(b"linkpath", _until_nul(data))
            else:
                return self._member(block, size, self._global | records)
            is_begun = is_begun or kind != _GLOBAL_PAX

    def _member(self, block: bytes, size: int, records: dict[bytes, bytes]) -> TarMember:
        """The member of its own header and the records before it."""
        type_ = block[156:157]
        kind = "sparse" if _SPARSE_RECORDS & records.keys() else _KINDS.get(type_, "special file")
        is_extended = type_ == b"S" and block[482]
        while is_extended:  # the list of a sparse file's parts continues
            is_extended = self._read(_BLOCK)[504]
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or _name_of(block)
        if len(name) > MAX_NAME_BYTES:
            raise self._damaged(f"a name of {len(name)} bytes, where {MAX_NAME_BYTES} are the most a path can have")
        if kind == "file" and type_ == b"\0" and name.endswith(b"/"):  # as before there was a type for folders
            kind = "folder"
        if type_ in _WITHOUT_DATA:
            size = 0
        elif b"size" in records:
            size = self._number(records[b"size"], base=10)
        if size > _MAX_SIZE:
            raise self._damaged(f"a member of {size} bytes")
        target = records.get(b"linkpath") or _until_nul(block[157:257]) if kind in _LINKS else b""
        if len(target) > MAX_NAME_BYTES:
            raise self._damaged(f"a link to a name of {len(target)} bytes")
        return TarMember(_text(name), kind, self._file.tell(), size, _text(target))

    def _read_header(self) -> bytes:
        self._left -= _BLOCK
        with storage_errors(self._uri):
            return self._file.read(_BLOCK)

    def _require_end(self, block: bytes) -> None:
        """Raise unless a tar may end with `block`: zeros, or nothing at all behind a member."""
        if not block and not self._file.tell():
            raise self._damaged("it is empty")
        if not block:
            log.warning("%s has no end-of-archive marker; if it is cut off, members are missing", self._uri)

    def _check(self, block: bytes) -> None:
        """Raise unless `block` is a whole header."""
        if block.startswith(_ZIP) and self._file.tell() == len(block):
            raise DamagedFileError(f"{self._uri}: this is a zip archive, though its name says tar; name it .zip")
        if len(block) < _BLOCK:
            raise self._damaged("it ends within a header")
        packer = next((name for magic, name in _COMPRESSED.items() if block.startswith(magic)), "")
        if packer and self._file.tell() == _BLOCK:
            raise DamagedFileError(
                f"{self._uri}: this is compressed by {packer}, though its name ends in .tar; unpack it, or name it so"
            )
        checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        stated = self._number(block[148:156])
        if stated != checksum:
            signed = checksum - 256 * sum(byte > 127 for byte in block[:148] + block[156:])  # as some old tools count
            if stated != signed:
                raise self._damaged("a broken header")

    def _read(self, size: int) -> bytes:
        """The next `size` bytes of a member's headers."""
        self._left -= size
        if self._left < 0:
            raise self._damaged(f"headers of more than {MAX_HEADER_BYTES} bytes for one member")
        with storage_errors(self._uri):
            data = self._file.read(size)
        if len(data) < size:
            raise self._damaged("it ends within a header")
        return data

    def skip_to(self, end: int) -> None:
        """Go to where the next header begins. Raises DamagedFileError where the file ends before."""
        try:
            self._file.seek(end - 1)
        except (OSError, OverflowError) as error:  # no file system has files that long
            raise self._damaged(f"a member of more bytes than a file can have ({error})") from None
        with storage_errors(self._uri):
            if not self._file.read(1):
                raise self._damaged("it ends within a member")

    def _number(self, field: bytes, base: int = 8) -> int:
        """Digits; or, as GNU tar writes large numbers, a byte of 128 and then the number in binary."""
        if base == 8 and field[:1] == b"\x80":
            return int.from_bytes(field[1:], "big")
        digits = _until_nul(field).strip()
        try:
            if digits and not (digits.isdigit() and len(digits) <= 20):
                raise ValueError
            return int(digits or b"0", base)
        except ValueError:
            raise self._damaged("a broken header") from None

    def _parse_records(self, data: bytes) -> dict[bytes, bytes]:
        """The records of a PAX header that matter here: each is `LENGTH KEYWORD=VALUE` and a line feed."""
        records = {}
        at = 0
        while at < len(data) and data[at]:
            space = data.find(b" ", at, at + 20)
            length = data[at:space]
            end = at + int(length) if space > 0 and length.isdigit() else 0
            if not space < end <= len(data) or data[end - 1 : end] != b"\n":
                raise self._damaged("a broken PAX header")
            keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
            if not equals:
                raise self._damaged("a broken PAX header")
            if keyword in _KEPT_RECORDS:
                records[keyword] = value
            at = end
        return records

    def _damaged(self, reason: str) -> DamagedFileError:
        return DamagedFileError(
            f"{self._uri}: not a whole tar archive: {reason}, at byte {self._file.tell()}; fetch it again"
        )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _until_nul(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _name_of(block: bytes) -> bytes:
    """The name in a header, of which long ones have the first folders in another field."""
    name, prefix = _until_nul(block[:100]), _until_nul(block[345:500])
    return prefix + b"/" + name if prefix and block[156:157] != b"S" else name
