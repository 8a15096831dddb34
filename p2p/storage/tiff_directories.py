"""TIFF directories as they lie in a file: read within limits, and written in front of data that is copied unchanged."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from p2p.errors import BadInputError

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION = 254, 256, 257, 258, 259
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, JPEG_TABLES = 322, 323, 324, 325, 347
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737, 50844)
"""Pixel scale, tie points or GCPs, transform, the keys of the CRS with their numbers and texts, and RPCs."""
CONTROL_POINTS = (33922, 50844)
METADATA, NODATA = 42112, 42113
IS_OVERVIEW, IS_MASK = 1, 4
"""Bits of SUBFILE_TYPE."""

_MAX_DIRECTORIES, _MAX_TAGS = 64, 4096
_MAX_VALUE_BYTES = 2**28  # of one tag: the offsets of 33 million tiles
_MAX_VALUES_BYTES = 2**30  # of all tags of a file, which have no more than the file either
_MAX_TEXT_BYTES = 2**24  # of a tag that is neither an offset nor a count
_KINDS = {
    **{1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4"},
    **{12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8"},
}
_PAIRS = (5, 10)  # rationals are two numbers each
_SHORT, _LONG, _LONG8 = 3, 4, 16
_LARGE_TAGS = (STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS)


@dataclass(frozen=True, eq=False)
class TagValue:
    """What a tag holds: `kind` is TIFF's number for the type, `values` are in this machine's byte order."""

    kind: int
    values: npt.NDArray[np.generic]

    @classmethod
    def shorts(cls, *values: int) -> TagValue:
        """Numbers of 16 bits."""
        return cls(_SHORT, np.array(values, "u2"))

    @classmethod
    def longs(cls, *values: int) -> TagValue:
        """Numbers of 32 bits."""
        return cls(_LONG, np.array(values, "u4"))

    @property
    def count(self) -> int:
        """Values as TIFF counts them."""
        return len(self.values) // (2 if self.kind in _PAIRS else 1)


class SeekableFile(Protocol):
    """What is asked of a file here."""

    def seek(self, offset: int, /) -> int:
        """Go to a byte."""

    def read(self, size: int, /) -> bytes:
        """Up to so many bytes."""


Directory = Mapping[int, TagValue]


def number(directory: Directory, tag: int, default: int = 0) -> int:
    """The first value of a tag."""
    value = directory.get(tag)
    return int(value.values[0]) if value is not None and len(value.values) else default


def read_directories(file: SeekableFile, size: int) -> list[dict[int, TagValue]]:
    """Every directory of a file of `size` bytes, in order. Raises BadInputError for what is no TIFF, or is damaged."""
    head = _read(file, 0, min(size, 16), size)
    if head[:2] not in (b"II", b"MM") or sorted(head[2:4]) not in ([0, 42], [0, 43]):
        raise BadInputError("NotAnImage", "not a TIFF file")
    order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
    large = 43 in head[2:4]
    if len(head) < (16 if large else 8):
        raise BadInputError("DamagedImage", "the TIFF is cut off")
    (start,) = struct.unpack_from(order + ("Q" if large else "L"), head, 8 if large else 4)
    found: list[dict[int, TagValue]] = []
    seen: set[int] = set()
    left = min(size, _MAX_VALUES_BYTES)
    while start:
        if start in seen or len(found) >= _MAX_DIRECTORIES:
            raise BadInputError("DamagedImage", f"the TIFF has a loop of directories, or more than {_MAX_DIRECTORIES}")
        seen.add(start)
        directory, start, left = _read_directory(file, start, size, order, large, left=left)
        found.append(directory)
    if not found:
        raise BadInputError("DamagedImage", "the TIFF has no image")
    return found


def _read(file: SeekableFile, start: int, count: int, size: int) -> bytes:
    if start + count > size:
        raise BadInputError(
            "DamagedImage", f"the TIFF is cut off: bytes {start} to {start + count} are not in its {size}"
        )
    file.seek(start)
    data = file.read(count)
    if len(data) < count:
        raise BadInputError("DamagedImage", "the TIFF is cut off")
    return data


def _read_directory(
    file: SeekableFile, start: int, size: int, order: Literal["<", ">"], large: bool, *, left: int
) -> tuple[dict[int, TagValue], int, int]:
    """A directory, where the next one lies, and how many bytes the values of its tags may have of the `left` ones."""
    count_format, entry = ("Q", struct.Struct(order + "HHQ8s")) if large else ("H", struct.Struct(order + "HHL4s"))
    room, width = (8, "Q") if large else (4, "L")
    count_size = struct.calcsize(count_format)
    (count,) = struct.unpack(order + count_format, _read(file, start, count_size, size))
    if count > _MAX_TAGS:
        raise BadInputError("DamagedImage", f"the TIFF lists {count} tags, {_MAX_TAGS} are allowed")
    data = _read(file, start + count_size, count * entry.size + room, size)
    directory: dict[int, TagValue] = {}
    for place in range(count):
        tag, kind, values, inline = entry.unpack_from(data, place * entry.size)
        if kind not in _KINDS or tag in directory:
            continue
        dtype = np.dtype(_KINDS[kind]).newbyteorder(order)
        values *= 2 if kind in _PAIRS else 1
        length = values * dtype.itemsize
        if length > (_MAX_VALUE_BYTES if tag in _LARGE_TAGS else _MAX_TEXT_BYTES):
            raise BadInputError("DamagedImage", f"the TIFF has {values} values in tag {tag}")
        if length > room:
            left -= length
            if left < 0:
                raise BadInputError(
                    "DamagedImage", "the TIFF's tags share the same bytes, or are more than any image has"
                )
            (offset,) = struct.unpack(order + width, inline)
            raw = _read(file, offset, length, size)
        else:
            raw = inline[:length]
        array = np.frombuffer(raw, dtype)
        directory[tag] = TagValue(kind, array.astype(dtype.newbyteorder("="), copy=False))
    return directory, struct.unpack_from(order + width, data, count * entry.size)[0], left


def layout(directories: Sequence[Directory], large: bool) -> bytes:
    """A header with `directories` in order, one after another. Its length does not depend on their numbers."""
    width, room = ("Q", 8) if large else ("L", 4)
    entry = struct.Struct("<HHQ" if large else "<HHL")
    start = 16 if large else 8
    parts = [struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if large else struct.pack("<2sHL", b"II", 42, start)]
    for index, directory in enumerate(directories):
        count_size = 8 if large else 2
        values_at = start + count_size + len(directory) * (entry.size + room) + room
        entries, values = [struct.pack("<Q" if large else "<H", len(directory))], b""
        for tag in sorted(directory):
            value = directory[tag]
            raw = value.values.astype(value.values.dtype.newbyteorder("<"), copy=False).tobytes()
            entries.append(entry.pack(tag, value.kind, value.count))
            if len(raw) <= room:
                entries.append(raw.ljust(room, b"\0"))
                continue
            entries.append(struct.pack("<" + width, values_at + len(values)))
            values += raw + b"\0" * (-len(raw) % 8)
        end = values_at + len(values)
        end += -end % 8
        is_last = index == len(directories) - 1
        entries.append(struct.pack("<" + width, 0 if is_last else end))
        whole = b"".join(entries) + values
        parts.append(whole.ljust(end - start, b"\0"))
        start = end
    return b"".join(parts)


def offsets_tag(values: npt.NDArray[np.int64], large: bool) -> TagValue:
    """Offsets of tiles in a file that is `large` or not."""
    return TagValue(_LONG8, values.astype("u8")) if large else TagValue(_LONG, values.astype("u4"))
