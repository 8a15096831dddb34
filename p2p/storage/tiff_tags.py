"""The directory of tags at the start of a TIFF file, and of EXIF, which is one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from p2p.errors import BadInputError

_MAX_TAGS = 4096  # libtiff's own limit
_MAX_PAGES = 16  # looked at for one in full size
_SUBFILE_TYPE, _WIDTH = 254, 256
_IS_REDUCED, _IS_MASK = 1, 4  # bits of it
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by the number of its type."""
_WHOLE_NUMBERS = {
    **{1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"},
    **{6: "i1", 8: "i2", 9: "i4", 17: "i8"},
}


@dataclass(frozen=True)
class Tag:
    """One tag: the number of its type, and how many values it has."""

    kind: int
    count: int
    offset: int
    """Where the values lie in the file."""
    entry: bytes
    """As it is in the directory."""


class Tags:
    """The tags of a TIFF file's directory at `start`, its first one without, or of EXIF. Raises BadInputError for more
    than any writer makes.
    """

    def __init__(self, data: bytes, start: int = 0) -> None:
        self.data = data
        self.order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
        self._is_large = 43 in data[2:4]
        self.is_large_big_endian = self._is_large and self.order == ">"
        """A BigTIFF whose numbers have their high bytes first, which Pillow does not open."""
        self._count_bytes = 8 if self._is_large else 2
        self._offset = struct.Struct(self.order + ("Q" if self._is_large else "L"))
        self._start_place = 8 if self._is_large else 4
        self._header_bytes = 2 * self._start_place
        self._start, self._is_first = start, not start
        self.next_start = 0
        """Where the next directory lies, 0 without."""
        self.is_cut_off = False
        self.tags = dict(self._read_tags())

    def with_tags(self, codes: frozenset[int]) -> bytes:
        """The same file with these tags of this directory only, in its place: what follows the data of a file that is
        cut off would be taken for pixels.
        """
        entries = [tag.entry for code, tag in self.tags.items() if code in codes]
        count = struct.pack(self.order + ("Q" if self._is_large else "H"), len(entries))
        directory = b"".join([count, *entries, bytes(self._offset.size)])
        data = memoryview(self.data)
        head: list[bytes | memoryview] = [data[: self._start]]
        if not self._is_first:
            pointer = self._offset.pack(self._start)
            head = [data[: self._start_place], pointer, data[self._header_bytes : self._start]]
        return b"".join([*head, directory, data[self._start + len(directory) :]])

    def _read_tags(self) -> Iterator[tuple[int, Tag]]:
        """The tags of the directory, as far as the file goes."""
        data, order, large = self.data, self.order, self._is_large
        try:
            if self._is_first:
                (self._start,) = self._offset.unpack_from(data, self._start_place)
            (count,) = struct.unpack_from(order + ("Q" if large else "H"), data, self._start)
        except (struct.error, OverflowError):
            return
        if count > _MAX_TAGS:
            raise BadInputError("DamagedImage", f"the TIFF lists {count} tags, {_MAX_TAGS} are allowed")
        entry = struct.Struct(order + ("HHQ" if large else "HHL"))
        room = 8 if large else 4  # for values beside the entry itself
        start = self._start + self._count_bytes
        seen = set()
        for place in range(start, start + count * (entry.size + room), entry.size + room):
            if place + entry.size + room > len(data):
                self.is_cut_off = True
                return
            code, kind, values = entry.unpack_from(data, place)
            offset = end = place + entry.size
            if values * SIZES.get(kind, 0) > room:
                (offset,) = self._offset.unpack_from(data, offset)
            if kind in SIZES and code not in seen:  # the first counts
                seen.add(code)
                yield code, Tag(kind, values, offset, data[place : end + room])
        end = start + count * (entry.size + room)
        if end + room <= len(data):
            (following,) = self._offset.unpack_from(data, end)
            self.next_start = following if following >= self._header_bytes else 0

    def number(self, code: int, default: int = 0) -> int:
        """A tag's first value, `default` without."""
        numbers = self.numbers(code, 1)
        return numbers[0] if numbers else default

    def numbers(self, code: int, max_count: int = -1) -> list[int]:
        """A tag's values, or its first `max_count`; none if they are no whole numbers or not in the file."""
        tag = self.tags.get(code)
        if tag is None or tag.kind not in _WHOLE_NUMBERS:
            return []
        dtype = np.dtype(self.order + _WHOLE_NUMBERS[tag.kind])
        count = tag.count if max_count < 0 else min(max_count, tag.count)
        if tag.offset + count * dtype.itemsize > len(self.data):
            return []
        return np.frombuffer(self.data, dtype, count, tag.offset).tolist()  # type: ignore[no-any-return]


def first_page(data: bytes) -> Tags:
    """The first directory of a TIFF file that is an image in full size: thumbnails and masks may lie before it. Where
    there is none, the first one.
    """
    first = page = Tags(data)
    for _ in range(_MAX_PAGES):
        if page.number(_WIDTH) and not page.number(_SUBFILE_TYPE) & (_IS_REDUCED | _IS_MASK):
            return page
        if not page.next_start:
            break
        page = Tags(data, page.next_start)
    return first
