"""WebDataset tars, listed by their headers.

What cannot be read of a damaged tar, among others, is one more input, which fails. What can be read is translated.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from p2p.errors import BadInputError, ConfigError, DamagedFileError
from p2p.storage.bounded import require_regular_file
from p2p.storage.error_mapping import storage_errors
from p2p.storage.filesystems import FileInfo, is_hidden, open_filesystem
from p2p.storage.images import SUFFIXES
from p2p.storage.tars import read_members
from p2p.translation.corpus.formats import FileFormat, list_format
from p2p.translation.corpus.inputs import DAMAGED, Input

_HEADER_BLOCK = 2**20  # a tar's headers lie between its images; less would be one request per image


@dataclass(frozen=True)
class TarCorpus:
    """WebDataset tars, their members found by a scan of the headers and read later by byte range."""

    uri: str
    min_shard_rows: int = 1
    image_column: str = ""

    def items(self) -> Iterator[Input]:
        """One input per image member; its id is the member's name, below the tar's name if there are several tars."""
        for file in list_format(self.uri, FileFormat.TAR):
            if isinstance(file, Input):
                yield file
            else:
                yield from _members(file, is_alone=file.uri == self.uri)


def _members(file: FileInfo, is_alone: bool) -> Iterator[Input]:
    """The images of a tar. Raises ConfigError for one that is alone and no tar at all."""
    prefix = "" if is_alone else f"{file.path[: -len('.tar')]}/"
    position = 0
    try:
        with storage_errors(file.uri):
            filesystem, path = open_filesystem(file.uri)
            require_regular_file(filesystem, path)
            with filesystem.open(path, "rb", block_size=_HEADER_BLOCK) as raw:
                for member in read_members(raw, file.uri):
                    is_cut = 0 < file.size < member.end
                    position = member.start if is_cut else member.end
                    is_hidden_file = is_hidden(posixpath.basename(member.name))
                    begins = not member.size or not 0 < file.size <= member.start  # a bucket refuses to read behind it
                    is_image = member.kind in ("file", "sparse") and member.name.lower().endswith(SUFFIXES)
                    if is_image and begins and not is_hidden_file:
                        # One byte more than there is shows that it is cut off; what a header claims may be anything.
                        size = min(member.size, file.size - member.start + 1) if is_cut else member.size
                        image_id = prefix + member.name.removeprefix("./")
                        yield Input(image_id, file.uri, size, offset=member.start, version=file.version)
    except (BadInputError, DamagedFileError) as error:
        if is_alone and not position:
            raise ConfigError("source", f"{file.uri}: not a readable tar: {error}") from None
        why = str(error).removeprefix(f"{file.uri}: ")
        reason = (
            f"DamagedFile: when it was listed, this was cut off or damaged at byte {position} ({why}); what could be "
            f"read before is translated, what follows is not"
        )
        yield Input(file.path, file.uri, offset=position, row=DAMAGED, reason=reason, version=file.version)
