"""WebDataset tars, listed by their headers.

What cannot be read of a damaged tar, among others, is one more input, which fails. What can be read is translated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from p2p.errors import BadInputError, ConfigError, DamagedFileError
from p2p.storage.bounded import require_regular_file
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import FileInfo, open_filesystem
from p2p.storage.formats import SUFFIXES, LeftOut
from p2p.storage.names import is_hidden, printable
from p2p.storage.tars import TarMember, read_members
from p2p.translation.corpus.formats import FileFormat, list_format
from p2p.translation.corpus.inputs import DAMAGED, Input

_HEADER_BLOCK = 2**20  # a tar's headers lie between its images; less would be one request per image


@dataclass(frozen=True)
class TarCorpus:
    """WebDataset tars, their members found by a scan of the headers and read later by byte range."""

    uri: str
    member: str = ""
    """Ending of the members that are meant, such as `input.png`; empty for every image."""
    min_shard_rows: int = 1
    image_column: str = ""
    _reported: set[str] = field(default_factory=set, compare=False)

    def items(self) -> Iterator[Input]:
        """One input per image member; its id is the member's name, below the tar's name if there are several tars."""
        left_out = LeftOut()
        for file in list_format(self.uri, FileFormat.TAR, self._reported):
            if isinstance(file, Input):
                yield file
            else:
                yield from _members(file, file.uri == self.uri, self._is_meant, left_out)
        left_out.log(self.uri, self._reported)

    def _is_meant(self, name: str) -> bool:
        return name.lower().endswith(SUFFIXES) and (not self.member or f".{name}".endswith(f".{self.member}"))


def _members(file: FileInfo, is_alone: bool, is_meant: Callable[[str], bool], left_out: LeftOut) -> Iterator[Input]:
    """The images of a tar. Raises ConfigError for one that is alone and no tar at all."""
    prefix = "" if is_alone else f"{file.path[: -len('.tar')]}/"
    position = 0
    links: dict[str, list[str]] = {}
    try:
        for member in _read(file):
            is_cut = 0 < file.size < member.end
            position = member.start if is_cut else member.end
            name = member.name.removeprefix("./")
            if member.kind == "folder" or is_hidden(name):
                continue
            if not is_meant(name):
                left_out.add(name)
            elif member.kind == "hard link":
                links.setdefault(member.target, []).append(name)
            elif member.kind not in ("file", "sparse"):
                kind = "LinkMember" if member.kind == "symbolic link" else "NotAFile"
                yield _no_file(prefix + name, file, f"a {member.kind}, which is not followed in archives", kind)
            elif not member.size or not 0 < file.size <= member.start:  # a bucket refuses to read behind its end
                # One byte more than there is shows that it is cut off; what a header claims may be anything.
                size = min(member.size, file.size - member.start + 1) if is_cut else member.size
                yield Input(prefix + name, file.uri, size, offset=member.start, version=file.version)
        for member in _read(file) if links else ():  # names of all members would take too much memory
            for name in links.pop(member.name, ()) if member.kind == "file" else ():
                yield Input(prefix + name, file.uri, member.size, offset=member.start, version=file.version)
        for target, names in links.items():
            for name in names:
                yield _no_file(prefix + name, file, f"a link to {target}, which is no file of this archive")
    except (BadInputError, DamagedFileError) as error:
        why = str(error).removeprefix(f"{file.uri}: ")
        if is_alone and not position:
            raise ConfigError("source", f"{file.uri}: not a readable tar: {why}") from None
        reason = (
            f"DamagedFile: when it was listed, this was cut off or damaged at byte {position} ({why}); what could be "
            f"read before is translated, what follows is not"
        )
        yield Input(file.path, file.uri, offset=position, row=DAMAGED, reason=reason, version=file.version)


def _read(file: FileInfo) -> Iterator[TarMember]:
    with storage_errors(file.uri):
        filesystem, path = open_filesystem(file.uri)
        require_regular_file(filesystem, path)
        with filesystem.open(path, "rb", block_size=_HEADER_BLOCK) as raw:
            yield from read_members(raw, file.uri)


def _no_file(image_id: str, file: FileInfo, what: str, kind: str = "LinkMember") -> Input:
    return Input(image_id, file.uri, row=DAMAGED, reason=printable(f"{kind}: it is {what}"), version=file.version)
