"""TIFF: the tags of a file's first image in full size, checked before any reader uses them, and its pixels.

Pillow and its libtiff read most TIFFs; they are given only the tags that pixels need, so that no other decides. They do
not read many channels, nor 16 bits in more than one: such plain numbers are put together here.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin

from p2p.errors import BadInputError
from p2p.storage.limits import check_size
from p2p.storage.pixels import MAX_CHANNELS, PixelFormat, Pixels, StoredPixels, from_pillow
from p2p.storage.tiff_tags import SIZES, first_page

_MAX_VALUES = 2**18  # of a tag that readers make Python numbers of; a palette of 16 bits has 196,608
_MAX_SEGMENTS = 2**21  # strips or tiles: 100,000 rows of 16 channels by themselves are 1.6 million
_SPARE_SEGMENTS = 1024  # that a file may list beyond those its size calls for, as some writers do
_MAX_SMALL_TILE = 2**22  # pixels of a tile that is larger than the image
_SHARED_BYTES = 2**16  # values may share their bytes: a few do

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 284, 317, 322, 323, 324, 325
_COLOR_MAP = 320
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _DEPTH = 338, 339, 32997
_SEGMENTS = (_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS)
# Those that Pillow unpacks, whatever their length: beside the above resolution, palette, extra samples, subsampling.
_UNPACKED = (*range(_WIDTH, 340), 530)
# Those that pixels need: beside the above (but orientation) the options of fax, palettes, inks and JPEG, and YCbCr's.
_NEEDED = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347}
    | {*range(512, 522), *range(529, 533)}
)

_PLAIN_BYTES = (1, 2, 7)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # photometric interpretations that are plain numbers
_PALETTE = 3
_PILLOW_READS = {(_WHITE_IS_ZERO, 1, 8), (_BLACK_IS_ZERO, 1, 8), (_BLACK_IS_ZERO, 1, 16), (_RGB, 3, 8)}
PHOTOMETRICS = {
    **{0: "WhiteIsZero", 1: "BlackIsZero", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab"},
    **{9: "ICC Lab", 10: "ITU Lab", 32803: "CFA", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"},
}
_UNCOMPRESSED, _FAX, _JPEG, _DEFLATE, _WEBP = 1, (2, 3, 4), (6, 7), (8, 32946), 50001
_WITH_PREDICTOR = (*_DEFLATE, 5, 34925, 50000)
_EXACT = (_UNCOMPRESSED, 32773, *_WITH_PREDICTOR)
COMPRESSIONS = {
    **{1: "none", 2: "CCITT", 3: "fax 3", 4: "fax 4", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "deflate"},
    **{32773: "PackBits", 32946: "deflate", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"},
}
"""Those that are read."""
_UNREAD = {
    **{
        32809: "ThunderScan",
        33003: "JPEG 2000",
        33005: "JPEG 2000",
        34661: "JBIG",
        34676: "SGI Log",
        34712: "JPEG 2000",
    },
    **{34933: "PNG", 34887: "LERC", 34892: "lossy JPEG", 50002: "JPEG XL", 52546: "JPEG XL"},
}
_UNSIGNED, _SIGNED = (1, 4), 2  # 4 leaves open what the numbers are
_NUMBERS = {1: "uint", 2: "int", 3: "float", 4: "uint", 5: "complex int", 6: "complex"}
_ASSOCIATED = 1  # alpha, by which the colours were multiplied
_MODES = {(1, 8): "L", (2, 8): "LA", (3, 8): "RGB", (4, 8): "RGBA", (1, 16): "I;16"}
_PIXELS_AT_ONCE = 2**20


class Tiff:
    """The first image of a TIFF file in full size, by its tags. Raises BadInputError for tags that would cost without
    measure.
    """

    def __init__(self, data: bytes) -> None:
        self._file = first_page(data)
        number = self._file.number
        self.width, self.height, self.channels = number(_WIDTH), number(_HEIGHT), number(_SAMPLES, 1)
        self.orientation = number(_ORIENTATION, 1)
        """As EXIF has it, 1 to 8."""
        self._compression = number(_COMPRESSION, 1)
        self._photometric = number(_PHOTOMETRIC, self._likely_photometric())
        self._predictor, self._kind = number(_PREDICTOR, 1), number(_SAMPLE_FORMAT, 1)
        bits = set(self._file.numbers(_BITS, min(max(1, self.channels), MAX_CHANNELS))) or {1}
        self._bits = bits.pop() if len(bits) == 1 else 0  # of every channel, 0 if they differ
        self._planes = self.channels if number(_PLANAR, 1) == 2 else 1
        self._tile = number(_TILE_HEIGHT), number(_TILE_WIDTH)
        self._strip = min(number(_ROWS_PER_STRIP) or self.height, self.height), self.width
        self._segment = self._tile if _TILE_WIDTH in self._file.tags else self._strip
        self._check_tags()

    def check_size(self, max_pixels: int) -> None:
        """Raise BadInputError for an image of more pixels, or none."""
        check_size(self.width, self.height, max_pixels, self.channels)
        if min(self.width, self.height, self.channels, *self._segment) < 1:
            raise BadInputError("DamagedImage", "the TIFF has no pixels")

    def decode(self, max_pixels: int) -> StoredPixels:
        """The pixels, not turned. Raises BadInputError, and anything on damaged data."""
        self.check_size(max_pixels)
        self._check_readable()
        is_plain = self._photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) and self._bits in (8, 16)
        kind = self._photometric, self.channels, self._bits
        is_simple = self._planes == 1 and self._kind in _UNSIGNED and kind in _PILLOW_READS
        is_simple = is_simple and not self._file.is_large_big_endian
        is_webp = self._compression == _WEBP
        if is_plain and (self._bits == 8 if is_webp else self._compression in _EXACT and not is_simple):
            if self._file.number(_FILL_ORDER, 1) > 1:
                raise self._unsupported("bits in reversed order")
            return self._mean(self._plain_numbers())
        if is_webp or (self._kind == _SIGNED and self._bits < 32):
            raise self._unsupported("")
        if self._compression == _UNCOMPRESSED:
            self._check_offsets()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = _PillowTiff(self._file.with_tags(_NEEDED), self._photometric)
            except SyntaxError:
                raise self._unsupported("") from None
        if image.size != (self.width, self.height):
            raise BadInputError("DamagedImage", "the TIFF's tags lie over each other")
        image.load()
        colours = self._file.numbers(_COLOR_MAP, _MAX_VALUES) if image.mode == "P" else []
        if max(colours, default=256) < 256:
            # Old writers list colours of 8 bits, not of 16, and every program with libtiff takes them as such.
            image.putpalette(bytes(colours), "RGB;L")
        stored = from_pillow(image)
        self._spread(stored.pixels)
        return stored

    def _likely_photometric(self) -> int:
        """What a file that does not say it is taken for: as libtiff does, but for palettes, which it draws gray."""
        if self.channels >= 3:
            return _RGB if self.channels <= 4 else _BLACK_IS_ZERO
        if _COLOR_MAP in self._file.tags:
            return _PALETTE
        return _WHITE_IS_ZERO if self._compression in _FAX else _BLACK_IS_ZERO

    def _spread(self, pixels: Pixels) -> None:
        """Make 16 bits of 12, in place. Raises BadInputError for numbers of 32 bits that would all become black."""
        if self._bits == 12:
            pixels <<= 4
            pixels |= pixels >> 12
        if self._bits == 32 and 0 < (top := pixels.max()) < 256:
            raise self._unsupported(f"numbers of 32 bits that are {top} at most, while 65535 is white")

    def _mean(self, pixels: Pixels) -> StoredPixels:
        """What plain numbers mean, in place."""
        top = np.iinfo(pixels.dtype).max
        if self._kind == _SIGNED and (pixels > top // 2).any():
            raise self._unsupported(f"numbers below 0 (int{self._bits})")
        if self._photometric == _WHITE_IS_ZERO:
            np.subtract(top, pixels, out=pixels)
        few = 1 if self.channels <= 2 else 3 if self.channels <= 4 else self.channels
        colours = 3 if self._photometric == _RGB else few
        if self.channels < colours:
            raise BadInputError("DamagedImage", f"a TIFF of RGB with {self.channels} channels")
        if self.channels == colours + 1 and self._file.number(_EXTRA_SAMPLES) == _ASSOCIATED:
            _divide_by_alpha(pixels)
        mode = _MODES.get((self.channels, self._bits)) or str(PixelFormat(self.channels, self._bits))
        return StoredPixels(pixels, colours, mode)

    def _plain_numbers(self) -> Pixels:
        """(H, W, C) uint8 or uint16, as stored."""
        dtype = np.dtype(f"u{self._bits // 8}")
        pixels = np.empty((self.height, self.width, self.channels), dtype)
        height, width = self._segment
        samples = self.channels // self._planes
        size = height * width * samples * dtype.itemsize
        across, in_plane = -(-self.width // width), self._count(self._segment)
        offsets, counts = self._segments_of(in_plane * self._planes, size)
        are_differences = self._predictor == 2 and self._compression in _WITH_PREDICTOR
        for index, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
            plane, place = divmod(index, in_plane)
            y, x = place // across * height, place % across * width
            part = pixels[y : y + height, x : x + width]
            if self._planes > 1:
                part = part[:, :, plane : plane + 1]
            # The last strip, and only it, may be stored without its tail.
            values = self._read_segment(offset, count, size, (part.shape[0], width, samples), dtype)
            needed = part.shape[0] * width * samples
            if values.size < needed:
                raise BadInputError("DamagedImage", "the image is cut off")
            stored = values[:needed].reshape(part.shape[0], width, samples)
            if are_differences:
                stored = np.cumsum(stored, axis=1, dtype=dtype)
            part[...] = stored[:, : part.shape[1]]
        return pixels

    def _check_tags(self) -> None:
        """Raise BadInputError where few bytes would become many in a reader's memory, or much work."""
        size = len(self._file.data)
        needed = (self._file.tags[code] for code in _NEEDED if code in self._file.tags)
        if self._file.is_cut_off or any(tag.offset + tag.count * SIZES[tag.kind] > size for tag in needed):
            raise BadInputError("DamagedImage", "the TIFF is cut off within its tags")
        lengths = [tag.count * SIZES[tag.kind] for tag in self._file.tags.values()]
        if sum(length for length in lengths if length <= size) > 2 * size + _SHARED_BYTES:
            raise BadInputError("DamagedImage", "the TIFF's tags share the same bytes many times over")
        height, width = self._tile
        if height * width > max(_MAX_SMALL_TILE, 4 * self.width * self.height):
            raise BadInputError(
                "DamagedImage", f"the TIFF has tiles of {width}x{height} for {self.width}x{self.height}"
            )
        expected = min(_MAX_SEGMENTS, max(self._count(self._tile), self._count(self._strip)) * self._planes)
        for code in _UNPACKED:
            tag = self._file.tags.get(code)
            limit = expected + _SPARE_SEGMENTS if code in _SEGMENTS else _MAX_VALUES
            if tag is not None and tag.kind not in _PLAIN_BYTES and tag.count > limit:
                raise BadInputError(
                    "DamagedImage", f"the TIFF has {tag.count} values in tag {code}, {limit} are allowed"
                )

    def _check_readable(self) -> None:
        """Raise BadInputError, with the reason, for what neither Pillow nor `_plain_numbers` reads."""
        if self.channels > MAX_CHANNELS:
            raise self._unsupported(f"{self.channels} channels")
        if self._kind not in (*_UNSIGNED, _SIGNED) or (self._bits > 16 and self.channels > 1):
            raise self._unsupported(f"{_NUMBERS.get(self._kind, 'unknown ')}{self._bits or ''} numbers")
        if _PHOTOMETRIC not in self._file.tags and self._compression in _JPEG and self.channels > 1:
            raise self._unsupported("JPEG inside that does not say which colours it holds (PhotometricInterpretation)")
        if self._photometric in (8, 9, 10, 32803, 32844, 32845, 34892):
            raise self._unsupported(f"{PHOTOMETRICS[self._photometric]} colours")
        if self._compression not in COMPRESSIONS:
            name = _UNREAD.get(self._compression, "method")
            raise self._unsupported(f"compression by {name} ({self._compression})")
        if self._predictor > 2 or self._file.number(_DEPTH, 1) > 1:
            raise self._unsupported("a predictor or depth that few programs read")

    def _unsupported(self, what: str) -> BadInputError:
        """An error that names `what` stands in the way, or else all that there is."""
        if not what:
            kind = PHOTOMETRICS.get(self._photometric, f"photometric {self._photometric}")
            bits = self._bits or self._file.numbers(_BITS, 8)
            compression = COMPRESSIONS.get(self._compression, str(self._compression))
            what = f"this kind of pixels: {kind}, {self.channels} channels of {bits} bits, compression {compression}"
        return BadInputError(
            "UnsupportedPixels",
            f"a TIFF with {what}, which is not read; save gray, RGB or bands of uint8 or uint16, with deflate (8)",
        )

    def _count(self, segment: tuple[int, int]) -> int:
        """How many strips or tiles of this height and width one plane has."""
        height, width = (max(1, side) for side in segment)
        return -(-self.height // height) * -(-self.width // width)

    def _check_offsets(self) -> None:
        """Raise BadInputError where strips or tiles are missing: Pillow leaves them black, or takes the file's first
        bytes for them.
        """
        offsets = self._file.numbers(_TILE_OFFSETS) or self._file.numbers(_STRIP_OFFSETS)
        expected = self._count(self._segment) * self._planes
        if len(offsets) < expected or not all(offsets[:expected]):
            raise BadInputError("DamagedImage", "the image is cut off")

    def _segments_of(self, expected: int, size: int) -> tuple[list[int], list[int]]:
        """Offsets and byte counts of the strips or tiles, all of which lie inside the file."""
        offsets = (self._file.numbers(_TILE_OFFSETS) or self._file.numbers(_STRIP_OFFSETS))[:expected]
        counts = (self._file.numbers(_TILE_COUNTS) or self._file.numbers(_STRIP_COUNTS))[:expected]
        if not counts and expected == 1 and self._compression == 1:
            counts = [size]
        inside = (
            offset > 0 < count and offset + count <= len(self._file.data)
            for offset, count in zip(offsets, counts, strict=False)
        )
        if min(len(offsets), len(counts)) < expected or not all(inside):
            raise BadInputError("DamagedImage", "the image is cut off")
        return offsets, counts

    def _read_segment(
        self, offset: int, count: int, size: int, shape: tuple[int, int, int], dtype: np.dtype[np.uint8 | np.uint16]
    ) -> Pixels:
        """The numbers of one strip or tile, `size` bytes at most of which those of `shape` are needed, in this
        machine's byte order.
        """
        stored: bytes | memoryview = memoryview(self._file.data)[offset : offset + count]
        height, width, samples = shape
        if self._compression in _DEFLATE:
            stored = _inflate(stored, size)
        elif self._compression == _WEBP:
            stored = _unpack_webp(stored, width, height, samples)
        elif self._compression != _UNCOMPRESSED:
            stored = _unpack(stored, self._compression, width * samples * dtype.itemsize, height)
        stored = stored[: min(size, len(stored)) // dtype.itemsize * dtype.itemsize]
        return np.frombuffer(stored, dtype.newbyteorder(self._file.order)).astype(dtype, copy=False)


class _PillowTiff(TiffImagePlugin.TiffImageFile):
    """As Pillow opens it. Without a photometric interpretation that takes any file for WhiteIsZero."""

    def __init__(self, data: bytes, photometric: int) -> None:
        self._photometric = photometric
        super().__init__(io.BytesIO(data))

    def _setup(self) -> None:
        self.tag_v2.setdefault(_PHOTOMETRIC, self._photometric)
        super()._setup()


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


def _unpack(data: bytes | memoryview, compression: int, width: int, height: int) -> bytes:
    """`height` rows of `width` bytes of a strip or tile, by libtiff, to which they are a gray image."""
    tags = {_WIDTH: width, _HEIGHT: height, _BITS: 8, _COMPRESSION: compression, _PHOTOMETRIC: _BLACK_IS_ZERO}
    tags |= {_STRIP_OFFSETS: 8 + 2 + 9 * 12 + 4, _SAMPLES: 1, _ROWS_PER_STRIP: height, _STRIP_COUNTS: len(data)}
    entries = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags.items())
    file = b"".join([struct.pack("<2sHIH", b"II", 42, 8, len(tags)), entries, bytes(4), data])
    return TiffImagePlugin.TiffImageFile(io.BytesIO(file)).tobytes()


def _unpack_webp(data: bytes | memoryview, width: int, height: int, samples: int) -> bytes:
    """The RGB or RGBA of a strip or tile, which is a whole WebP of that size."""
    image = Image.open(io.BytesIO(data), formats=("WEBP",))
    if image.width != width or image.height < height or samples not in (3, 4):
        raise BadInputError("DamagedImage", "a strip or tile of the TIFF is not of the size that it says")
    check_size(*image.size, max(width * height, _MAX_SMALL_TILE))
    return image.convert("RGB" if samples == 3 else "RGBA").tobytes()


def _divide_by_alpha(pixels: Pixels) -> None:
    """Undo in (H, W, C), whose last channel is alpha, that the colours were multiplied by it."""
    top = np.iinfo(pixels.dtype).max
    for row in pixels:
        alpha = np.maximum(row[:, -1:], 1).astype(np.float32)
        row[:, :-1] = np.minimum(np.rint(row[:, :-1] * (top / alpha)), top)
