"""TIFF: the tags of a file's first image, checked before any reader uses them, and images of plain numbers.

Pillow and its libtiff read most TIFFs. They do not read many channels, nor 16 bits in more than one; `decode` does.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from p2p.errors import BadInputError
from p2p.storage.limits import check_size

Pixels = npt.NDArray[np.uint8 | np.uint16]

MAX_CHANNELS = 16
_MAX_TAGS = 4096  # libtiff's own limit
_MAX_VALUES = 2**18  # of a tag that readers make Python numbers of; a palette of 16 bits has 196,608
_MAX_SEGMENTS = 2**21  # strips or tiles: 100,000 rows of 16 channels by themselves are 1.6 million
_SPARE_SEGMENTS = 1024  # that a file may list beyond those its size calls for, as some writers do
_MAX_SMALL_TILE = 2**22  # pixels of a tile that is larger than the image
_SHARED_BYTES = 2**16  # values may share their bytes: a few do

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 284, 317, 322, 323, 324, 325
_SAMPLE_FORMAT, _DEPTH = 339, 32997
_SEGMENTS = (_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS)
# Those that Pillow unpacks, whatever their length: beside the above resolution, palette, extra samples, subsampling.
_UNPACKED = (*range(_WIDTH, 340), 530)

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE_NUMBERS = {
    **{1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"},
    **{6: "i1", 8: "i2", 9: "i4", 17: "i8"},
}
_PLAIN_BYTES = (1, 2, 7)
_MIN_IS_BLACK, _RGB = 1, 2  # photometric interpretations that are plain numbers
_PILLOW_READS = {(_MIN_IS_BLACK, 1, 8), (_MIN_IS_BLACK, 1, 16), (_RGB, 1, 8), (_RGB, 1, 16), (_RGB, 3, 8), (_RGB, 4, 8)}
_DEFLATE = (8, 32946)
_UNSIGNED = (1, 4)  # 4 leaves open what the numbers are
_NUMBERS = {2: "int", 3: "float"}


@dataclass(frozen=True)
class _Tag:
    kind: int
    count: int
    offset: int
    """Where the values lie in the file."""


class Tiff:
    """The first image of a TIFF file, by its tags. Raises BadInputError for tags that would cost without measure."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
        self._tags = dict(self._read_tags())
        self.width = self._number(_WIDTH)
        self.height = self._number(_HEIGHT)
        self.channels = self._number(_SAMPLES, 1)
        self.orientation = self._number(_ORIENTATION, 1)
        """As EXIF has it, 1 to 8."""
        self._planes = self.channels if self._number(_PLANAR, 1) == 2 else 1
        self._tile = self._number(_TILE_HEIGHT), self._number(_TILE_WIDTH)
        self._strip = min(self._number(_ROWS_PER_STRIP) or self.height, self.height), self.width
        self._segment = self._tile if _TILE_WIDTH in self._tags else self._strip
        self._check_tags()

    @property
    def is_plain_numbers(self) -> bool:
        """Whether these are numbers of 8 or 16 bits in a kind that Pillow does not read, or not without loss."""
        bits = self._bits()
        kind = self._number(_PHOTOMETRIC), self.channels, bits
        return kind[0] in (_MIN_IS_BLACK, _RGB) and bits in (8, 16) and kind not in _PILLOW_READS

    def decode(self, max_pixels: int) -> Pixels:
        """Plain numbers, (H, W, C) uint8 or uint16, as stored. Raises BadInputError, and anything on damaged data."""
        self._check_readable()
        check_size(self.width, self.height, max_pixels, self.channels)
        dtype = np.dtype(f"u{self._bits() // 8}")
        pixels = np.empty((self.height, self.width, self.channels), dtype)
        height, width = self._segment
        samples = self.channels // self._planes
        size = height * width * samples * dtype.itemsize
        across, in_plane = -(-self.width // width), self._count(self._segment)
        offsets, counts = self._segments_of(in_plane * self._planes, size)
        are_differences = self._number(_PREDICTOR, 1) == 2 and self._number(_COMPRESSION, 1) in _DEFLATE
        for index, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
            plane, place = divmod(index, in_plane)
            y, x = place // across * height, place % across * width
            part = pixels[y : y + height, x : x + width]
            if self._planes > 1:
                part = part[:, :, plane : plane + 1]
            values = self._read_segment(offset, count, size, dtype)
            needed = part.shape[0] * width * samples  # the last strip, and only it, may be stored without its tail
            if values.size < needed:
                raise BadInputError("DamagedImage", "the image is cut off")
            stored = values[:needed].reshape(part.shape[0], width, samples)
            if are_differences:
                stored = np.cumsum(stored, axis=1, dtype=dtype)
            part[...] = stored[:, : part.shape[1]]
        return pixels

    def _read_tags(self) -> Iterator[tuple[int, _Tag]]:
        """The tags of the first directory, as far as the file goes: Pillow reports one that is cut off."""
        data, order = self._data, self._order
        large = 43 in data[2:4]
        try:
            (start,) = struct.unpack_from(order + ("Q" if large else "L"), data, 8 if large else 4)
            (count,) = struct.unpack_from(order + ("Q" if large else "H"), data, start)
        except (struct.error, OverflowError):
            return
        if count > _MAX_TAGS:
            raise BadInputError("DamagedImage", f"the TIFF lists {count} tags, {_MAX_TAGS} are allowed")
        entry = struct.Struct(order + ("HHQ" if large else "HHL"))
        room = 8 if large else 4  # for values beside the entry itself
        start += 8 if large else 2
        seen = set()
        for place in range(start, start + count * (entry.size + room), entry.size + room):
            if place + entry.size + room > len(data):
                return
            code, kind, values = entry.unpack_from(data, place)
            offset = place + entry.size
            if values * _SIZES.get(kind, 0) > room:
                (offset,) = struct.unpack_from(order + ("Q" if large else "L"), data, offset)
            if kind in _SIZES and code not in seen:  # the first counts
                seen.add(code)
                yield code, _Tag(kind, values, offset)

    def _check_tags(self) -> None:
        """Raise BadInputError where few bytes would become many in a reader's memory, or much work."""
        size = len(self._data)
        lengths = [tag.count * _SIZES[tag.kind] for tag in self._tags.values()]
        if sum(length for length in lengths if length <= size) > 2 * size + _SHARED_BYTES:
            raise BadInputError("DamagedImage", "the TIFF's tags share the same bytes many times over")
        height, width = self._tile
        if height * width > max(_MAX_SMALL_TILE, 4 * self.width * self.height):
            raise BadInputError(
                "DamagedImage", f"the TIFF has tiles of {width}x{height} for {self.width}x{self.height}"
            )
        expected = min(_MAX_SEGMENTS, max(self._count(self._tile), self._count(self._strip)) * self._planes)
        for code in _UNPACKED:
            tag = self._tags.get(code)
            limit = expected + _SPARE_SEGMENTS if code in _SEGMENTS else _MAX_VALUES
            if tag is not None and tag.kind not in _PLAIN_BYTES and tag.count > limit:
                raise BadInputError(
                    "DamagedImage", f"the TIFF has {tag.count} values in tag {code}, {limit} are allowed"
                )

    def _check_readable(self) -> None:
        """Raise BadInputError for plain numbers that are not read here."""
        numbers = self._number(_SAMPLE_FORMAT, 1)
        if self.channels > MAX_CHANNELS or numbers not in _UNSIGNED:
            raise BadInputError(
                "UnsupportedPixels",
                f"{self.channels} channels of {_NUMBERS.get(numbers, 'uint')}{self._bits()} cannot be read; "
                f"1 to {MAX_CHANNELS} of uint8 or uint16 can",
            )
        compression, predictor = self._number(_COMPRESSION, 1), self._number(_PREDICTOR, 1)
        if compression not in (1, *_DEFLATE):
            raise BadInputError(
                "UnsupportedPixels", f"compression {compression} is not read here; store it with deflate (8)"
            )
        if predictor > 2 or self._number(_FILL_ORDER, 1) > 1 or self._number(_DEPTH, 1) > 1:
            raise BadInputError(
                "UnsupportedPixels", "its predictor, fill order or depth is not read here; store it anew"
            )
        if min(self.width, self.height, self.channels, *self._segment) < 1:
            raise BadInputError("DamagedImage", "the image has no pixels")

    def _count(self, segment: tuple[int, int]) -> int:
        """How many strips or tiles of this height and width one plane has."""
        height, width = (max(1, side) for side in segment)
        return -(-self.height // height) * -(-self.width // width)

    def _segments_of(self, expected: int, size: int) -> tuple[list[int], list[int]]:
        """Offsets and byte counts of the strips or tiles, all of which lie inside the file."""
        offsets = (self._numbers(_TILE_OFFSETS) or self._numbers(_STRIP_OFFSETS))[:expected]
        counts = (self._numbers(_TILE_COUNTS) or self._numbers(_STRIP_COUNTS))[:expected]
        if not counts and expected == 1 and self._number(_COMPRESSION, 1) == 1:
            counts = [size]
        inside = (
            count > 0 and offset + count <= len(self._data) for offset, count in zip(offsets, counts, strict=False)
        )
        if min(len(offsets), len(counts)) < expected or not all(inside):
            raise BadInputError("DamagedImage", "the image is cut off")
        return offsets, counts

    def _read_segment(self, offset: int, count: int, size: int, dtype: np.dtype[np.uint8 | np.uint16]) -> Pixels:
        """The numbers of one strip or tile, which has `size` bytes at most, in this machine's byte order."""
        stored: bytes | memoryview = memoryview(self._data)[offset : offset + count]
        if self._number(_COMPRESSION, 1) in _DEFLATE:
            stored = _inflate(stored, size)
        stored = stored[: min(size, len(stored)) // dtype.itemsize * dtype.itemsize]
        return np.frombuffer(stored, dtype.newbyteorder(self._order)).astype(dtype, copy=False)

    def _bits(self) -> int:
        """Bits of every channel, 0 if they differ."""
        bits = set(self._numbers(_BITS)[: max(1, self.channels)])
        return bits.pop() if len(bits) == 1 else 0

    def _number(self, code: int, default: int = 0) -> int:
        numbers = self._numbers(code, 1)
        return numbers[0] if numbers else default

    def _numbers(self, code: int, max_count: int = -1) -> list[int]:
        """A tag's values, or its first `max_count`; none if they are no whole numbers or not in the file."""
        tag = self._tags.get(code)
        if tag is None or tag.kind not in _WHOLE_NUMBERS:
            return []
        dtype = np.dtype(self._order + _WHOLE_NUMBERS[tag.kind])
        count = tag.count if max_count < 0 else min(max_count, tag.count)
        if tag.offset + count * dtype.itemsize > len(self._data):
            return []
        return np.frombuffer(self._data, dtype, count, tag.offset).tolist()  # type: ignore[no-any-return]


def is_tiff(data: bytes) -> bool:
    """Whether Pillow would read these bytes as TIFF, of 32 or 64 bit."""
    return data[:2] in (b"II", b"MM") and sorted(data[2:4]) in ([0, 42], [0, 43])


def _inflate(data: bytes | memoryview, limit: int) -> bytes:
    """Deflate's bytes -> at most `limit` bytes. Raises BadInputError if there are more of them."""
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(data, limit + 1)
    if len(inflated) > limit:
        raise BadInputError(
            "DamagedImage", f"a strip or tile of it inflates to more than the {limit} bytes that it has"
        )
    if not inflater.eof:
        raise BadInputError("DamagedImage", "the image is cut off")
    return inflated
