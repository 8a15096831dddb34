"""Images of 1 to 16 channels in 8 or 16 bit: bytes <-> (H, W, C) uint8 or uint16.

What `p2p.storage.images` does for RGB, for everything else; its rules hold here too. Beyond them:

- asked for 1 channel, colours become luma (ITU-R BT.601); asked for 3, gray is repeated;
- alpha is a channel where 2 (gray and alpha) or 4 (RGB and alpha) are asked for, and dropped where 1 or 3 are;
- PNGs of 16 bits in more than one channel are only read with 8;
- 8 bits become 16 by v * 257, which keeps black and white where they are; 16 become 8 by keeping the upper eight.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image, ImageOps

from p2p.errors import BadInput, UsageError
from p2p.storage import images
from p2p.storage.images import MAX_PIXELS, Pixels

MOST_CHANNELS = 16
_WIDEN = 257  # 255 * 257 = 65535
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # places of bit depth and colour type in the header
_MIN_IS_BLACK, _RGB = 1, 2  # TIFF's photometric interpretations that are plain numbers
_COMPRESSIONS = (1, 8, 32946)  # none, and deflate under both of its numbers
_PILLOW_READS = {(1, 8), (1, 16), (3, 8)}
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # of 2**16; the numbers Pillow has for 8 bit

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is told as BadInput


@dataclass(frozen=True)
class PixelFormat:
    """How many channels an image has, and how many bits each value."""

    channels: int = 3
    bits: int = 8

    def __str__(self) -> str:
        return f"{self.channels}x{self.bits}"

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes in memory."""
        return self.channels * self.bits // 8

    @property
    def dtype(self) -> np.dtype[np.uint8 | np.uint16]:
        """Of the arrays."""
        return np.dtype(np.uint16 if self.bits == 16 else np.uint8)


RGB = PixelFormat()


def parse_format(text: str, option: str) -> PixelFormat:
    """`12x16` -> 12 channels of 16 bits. Raises UsageError that names `option`."""
    channels, _, bits = text.partition("x")
    if channels.isdecimal() and 1 <= int(channels) <= MOST_CHANNELS and bits in ("8", "16"):
        return PixelFormat(int(channels), int(bits))
    raise UsageError(
        f"{option} {text}: must be channels (1 to {MOST_CHANNELS}) x bits (8 or 16), such as 3x8 for RGB or 1x16"
    )


def decode(data: bytes, wanted: PixelFormat = RGB, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Encoded bytes -> (H, W, C) uint8 or uint16, as `wanted`.

    Raises BadInput for damaged data, and where the image's channels cannot become those wanted without inventing any.
    """
    if wanted == RGB and not _is_for_tifffile(data):
        return images.decode(data, max_pixels)
    return _as_wanted(*_decode_as_stored(data, max_pixels, wanted.bits), wanted)


def to_format(image: Image.Image, wanted: PixelFormat) -> Pixels:
    """A Pillow image of any mode -> what `decode` makes of a file of it. Raises BadInput."""
    return _as_wanted(*_values_of(image), wanted)


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Encoded bytes -> (width, height) as stored, from the header alone. Raises BadInput."""
    if _is_for_tifffile(data):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            return page.imagewidth, page.imagelength
    return images.image_size(data, max_pixels)


def encode(image: Pixels) -> bytes:
    """(H, W, C) uint8 or uint16 -> PNG where it can hold that, else TIFF; both without loss."""
    height, width, channels = image.shape
    if (image.dtype == np.uint8 and channels <= 4) or channels == 1:
        plain = np.ascontiguousarray(image.reshape(height, width) if channels == 1 else image)
        buffer = io.BytesIO()
        Image.fromarray(plain).save(buffer, "PNG", compress_level=images.PNG_LEVEL)
        return buffer.getvalue()
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.ascontiguousarray(image),
        photometric="minisblack",
        planarconfig="contig",
        compression=8,
        predictor=True,
        metadata=None,
    )
    return buffer.getvalue()


def to_gray(image: Pixels) -> Pixels:
    """(H, W, 3) -> (H, W, 1) of the same depth: luma."""
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    weighed = image.astype(np.uint32) @ _LUMA + np.uint32(2**15)  # 65535 * 2**16 + 2**15 still fits
    return (weighed >> 16).astype(np.uint16)[:, :, None]


def _as_wanted(pixels: Pixels, colours: int, wanted: PixelFormat) -> Pixels:
    return _to_depth(_to_channels(pixels, colours, wanted), wanted.bits)


def _to_channels(pixels: Pixels, colours: int, wanted: PixelFormat) -> Pixels:
    channels = pixels.shape[2]
    if channels == wanted.channels:
        return pixels
    if colours not in (1, 3) or wanted.channels not in (1, 3):
        stored = PixelFormat(channels, 8 * pixels.dtype.itemsize)
        raise BadInput(
            "WrongChannels",
            f"the image has {channels} channel{'s' if channels > 1 else ''} of {stored.bits} bits and cannot be read "
            f"as {wanted.channels}; jobs/prepare.py takes it with --pixels-a (or --pixels-b) {stored}",
        )
    pixels = pixels[:, :, :colours]
    if colours == wanted.channels:
        return np.ascontiguousarray(pixels)
    return to_gray(np.ascontiguousarray(pixels)) if wanted.channels == 1 else np.repeat(pixels, 3, axis=2)


def _to_depth(pixels: Pixels, bits: int) -> Pixels:
    if pixels.dtype == np.uint8:
        return pixels if bits == 8 else pixels.astype(np.uint16) * np.uint16(_WIDEN)
    return pixels if bits == 16 else (pixels >> 8).astype(np.uint8)


def _decode_as_stored(data: bytes, max_pixels: int, bits: int) -> tuple[Pixels, int]:
    """The image in its own channels and, where 16 `bits` are wanted, depth; and how many channels are colours.

    What is no colour is alpha.
    """
    if _is_for_tifffile(data):
        pixels = _decode_tiff(data, max_pixels)
        return pixels, pixels.shape[2]
    if data[:3] == b"\xff\xd8\xff":
        return images.decode(data, max_pixels), 3
    image = images.open_image(data, max_pixels)  # knows the limits, whoever decodes
    if bits == 16 and is_deep_png(data):
        raise BadInput("UnsupportedPixels", "a PNG of 16 bits in more than one channel is read with 8; store a TIFF")
    with images.damage_told():
        image.load()
        return _values_of(ImageOps.exif_transpose(image))


def _values_of(image: Image.Image) -> tuple[Pixels, int]:
    if image.mode.startswith(("I", "F")):
        return images.sixteen_bits(image)[:, :, None], 1
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGBA"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1), 1 if image.mode in ("L", "LA") else 3


def is_deep_png(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits in more than one channel, of which Pillow keeps eight."""
    return data[:8] == _PNG and data[_PNG_DEPTH : _PNG_COLOUR + 1] > b"\x10\x00"


def _is_for_tifffile(data: bytes) -> bool:
    """Whether this is a TIFF of plain numbers that Pillow cannot read, or not without loss."""
    if data[:4] not in _TIFF:
        return False
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            kind = (page.samplesperpixel, page.bitspersample)
            return (
                page.photometric in (_MIN_IS_BLACK, _RGB)
                and page.bitspersample in (8, 16)
                and kind not in _PILLOW_READS
                and (page.photometric, *kind) != (_RGB, 4, 8)
            )
    except Exception:  # a damaged header, which Pillow puts into words
        return False


def _decode_tiff(data: bytes, max_pixels: int) -> Pixels:
    """The first page of a TIFF, (H, W, C) uint8 or uint16."""
    with images.damage_told(), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        images.check_size(width, height, max_pixels)
        if channels > MOST_CHANNELS or page.dtype not in (np.uint8, np.uint16):
            raise BadInput(
                "UnsupportedPixels",
                f"{channels} channels of {page.dtype} cannot be read; 1 to {MOST_CHANNELS} of uint8 or uint16 can",
            )
        segments = zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(count <= 0 or offset + count > len(data) for offset, count in segments):
            raise BadInput("DamagedImage", "the image is cut off")  # the library would fill the rest with zeros
        try:
            found = page.asarray()
        except (ValueError, KeyError) as error:
            if page.compression in _COMPRESSIONS:
                raise
            name = getattr(page.compression, "name", page.compression)
            raise BadInput(
                "UnsupportedPixels", f"compression {name} is not read here; store it with deflate"
            ) from error
        planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and channels > 1
        shaped = found.reshape((channels, height, width) if planar else (height, width, channels))
        orientation = page.tags.valueof("Orientation", 1)
    pixels = np.moveaxis(shaped, 0, 2) if planar else shaped
    return np.ascontiguousarray(_upright(pixels, int(orientation)))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo how a camera was held: EXIF orientation 1 to 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
