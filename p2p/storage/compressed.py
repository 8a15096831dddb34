"""Compressed tars, decompressed once and forwards with bounded memory."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from p2p.errors import DamagedFileError
from p2p.storage.error_mapping import storage_errors

MAX_XZ_MEMORY = 256 * 2**20
"""Bytes of memory for decompressing .xz; `xz -9` needs 65 MiB. A file may ask for up to 4 GiB."""
MIN_EXPANSION_BYTES = 16 * 2**30
MAX_EXPANSION = 100
"""A file that has expanded to `MIN_EXPANSION_BYTES` may not expand to more than this many times its own size: images
are compressed already, and an archive of a few kilobytes could otherwise keep a machine busy for days."""
_READ_BYTES = 2**18
_BLOCK_BYTES = 2**20
_MAGIC: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY),
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY),  # as xz wrote before there was .xz
}


class DecompressedFile:
    """The content of a tar, read forwards only: gzip, bzip2, xz or plain, by its first bytes.

    Raises DamagedFileError for a file that is cut off or damaged, or expands to far more than images do.
    """

    def __init__(self, raw: IO[bytes], uri: str) -> None:
        self._raw = raw
        self._uri = uri
        self.compressed_bytes = 0
        """How many were read so far."""
        self._made = 0  # decompressed bytes
        self._blocks = self._decompress()
        self._block = b""
        self._at = 0

    def tell(self) -> int:
        """The position in the content."""
        return self._made - len(self._block) + self._at

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end only."""
        parts = []
        while size and (self._at < len(self._block) or self._fill()):
            part = self._block[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def seek(self, position: int) -> None:
        """Go forwards to `position`, or to the end if that comes first."""
        left = position - self.tell()
        assert left >= 0, "what was decompressed before is gone"
        while left and (self._at < len(self._block) or self._fill()):
            step = min(left, len(self._block) - self._at)
            self._at += step
            left -= step

    def _fill(self) -> bool:
        """Make the next block the current one; False at the end."""
        self._block, self._at = next(self._blocks, b""), 0
        self._made += len(self._block)
        if self._made > max(MIN_EXPANSION_BYTES, MAX_EXPANSION * self.compressed_bytes):
            raise DamagedFileError(
                f"{self._uri}: expands to more than {MIN_EXPANSION_BYTES >> 30} GiB and {MAX_EXPANSION} times its "
                "size; if that is meant, unpack it and give the folder"
            )
        return bool(self._block)

    def _take(self) -> bytes:
        with storage_errors(self._uri):
            data = self._raw.read(_READ_BYTES)
        self.compressed_bytes += len(data)
        return data

    def _decompress(self) -> Iterator[bytes]:
        """Blocks of the content."""
        data = self._take()
        make = next((make for magic, make in _MAGIC.items() if data.startswith(magic)), None)
        if make is None:
            while data:
                yield data
                data = self._take()
            return
        while data:  # a file may consist of several that were compressed by themselves
            decompressor = make()
            while not decompressor.eof:
                block = self._step(decompressor, data)
                data = getattr(decompressor, "unconsumed_tail", b"")  # bzip2's and xz's keep it
                if block:
                    yield block
                elif not data and not decompressor.eof:
                    data = self._take()
                    if not data:
                        raise self._damaged("it is cut off")
            data = decompressor.unused_data.lstrip(b"\0") or self._take().lstrip(b"\0")

    def _step(self, decompressor: Any, data: bytes) -> bytes:
        try:
            return bytes(decompressor.decompress(data, _BLOCK_BYTES))
        except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            if "Memory usage limit" in str(error):
                limit = f"{MAX_XZ_MEMORY >> 20} MiB of memory"
                raise DamagedFileError(
                    f"{self._uri}: needs more than {limit}; compress it with xz -9 or less"
                ) from None
            raise self._damaged(str(error)) from None

    def _damaged(self, reason: str) -> DamagedFileError:
        return DamagedFileError(f"{self._uri}: not a whole tar archive: {reason}; fetch it again")
