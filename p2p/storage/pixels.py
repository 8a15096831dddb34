"""Images of 1 to 16 channels in 8 or 16 bit: bytes <-> (H, W, C) uint8 or uint16.

What `p2p.storage.images` does for RGB, for everything else; its rules hold here too. Beyond them:

- asked for 1 channel, colours become luma (ITU-R BT.601); asked for 3, gray is repeated;
- alpha is a channel where 2 (gray and alpha) or 4 (RGB and alpha) are asked for, and dropped where 1 or 3 are;
- PNGs of 16 bits in more than one channel are only read with 8;
- 8 bits become 16 by v * 257, which keeps black and white where they are; 16 become 8 by keeping the upper eight.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image

from p2p.errors import BadInputError, ConfigError
from p2p.storage import images
from p2p.storage.images import Pixels
from p2p.storage.limits import MAX_PIXELS, check_size
from p2p.storage.tiff import MAX_CHANNELS, Tiff, is_tiff

_WIDEN = 257  # 255 * 257 = 65535
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # places of bit depth and colour type in the header
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # of 2**16; the numbers Pillow has for 8 bit


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


def parse_format(text: str, field: str) -> PixelFormat:
    """`12x16` -> 12 channels of 16 bits. Raises ConfigError about `field`."""
    channels, _, bits = text.partition("x")
    if channels.isdecimal() and 1 <= int(channels) <= MAX_CHANNELS and bits in ("8", "16"):
        return PixelFormat(int(channels), int(bits))
    raise ConfigError(
        field, f"{text}: must be channels (1 to {MAX_CHANNELS}) x bits (8 or 16), such as 3x8 for RGB or 1x16"
    )


def decode(data: bytes, wanted: PixelFormat = RGB, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Encoded bytes -> (H, W, C) uint8 or uint16, as `wanted`.

    Raises BadInputError for damaged data, and where the image's channels cannot become those wanted without inventing
    any.
    """
    if wanted == RGB and _plain_tiff(data) is None:
        return images.decode(data, max_pixels)
    return _as_wanted(*_decode_as_stored(data, max_pixels, wanted.bits), wanted)


def to_format(image: Image.Image, wanted: PixelFormat) -> Pixels:
    """A Pillow image of any mode -> what `decode` makes of a file of it. Raises BadInputError."""
    return _as_wanted(images.by_rows(image, _values_of), _colours_of(image), wanted)


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Encoded bytes -> (width, height) as stored, from the header alone. Raises BadInputError."""
    tiff = _plain_tiff(data)
    if tiff is not None:
        check_size(tiff.width, tiff.height, max_pixels, tiff.channels)
        return tiff.width, tiff.height
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
    gray = np.empty((*image.shape[:2], 1), np.uint16)
    for row, colours in zip(gray, image, strict=True):
        weighed = colours.astype(np.uint32) @ _LUMA + np.uint32(2**15)  # 65535 * 2**16 + 2**15 still fits
        row[:, 0] = weighed >> 16
    return gray


def _as_wanted(pixels: Pixels, colours: int, wanted: PixelFormat) -> Pixels:
    return _to_depth(_to_channels(pixels, colours, wanted), wanted.bits)


def _to_channels(pixels: Pixels, colours: int, wanted: PixelFormat) -> Pixels:
    channels = pixels.shape[2]
    if channels == wanted.channels:
        return pixels
    if colours not in (1, 3) or wanted.channels not in (1, 3):
        stored = PixelFormat(channels, 8 * pixels.dtype.itemsize)
        raise BadInputError(
            "WrongChannels",
            f"the image has {channels} channel{'s' if channels > 1 else ''} of {stored.bits} bits and cannot be read "
            f"as {wanted.channels}; prepare takes it with pixels_a (or pixels_b) {stored}",
        )
    pixels = pixels[:, :, :colours]
    if colours == wanted.channels:
        return np.ascontiguousarray(pixels)
    return to_gray(np.ascontiguousarray(pixels)) if wanted.channels == 1 else np.repeat(pixels, 3, axis=2)


def _to_depth(pixels: Pixels, bits: int) -> Pixels:
    if pixels.dtype == np.uint8:
        return pixels if bits == 8 else np.multiply(pixels, _WIDEN, dtype=np.uint16)
    if bits == 16:
        return pixels
    upper = np.empty(pixels.shape, np.uint8)
    return np.right_shift(pixels, 8, out=upper, casting="unsafe")


def _decode_as_stored(data: bytes, max_pixels: int, bits: int) -> tuple[Pixels, int]:
    """The image in its own channels and, where 16 `bits` are wanted, depth; and how many channels are colours.

    What is no colour is alpha.
    """
    tiff = _plain_tiff(data)
    if tiff is not None:
        with images.decoder_errors():
            return images.upright(tiff.decode(max_pixels), tiff.orientation), tiff.channels
    if data[:3] == b"\xff\xd8\xff":
        return images.decode(data, max_pixels), 3
    image = images.open_image(data, max_pixels)  # checks the limits
    if bits == 16 and is_deep_png(data):
        raise BadInputError(
            "UnsupportedPixels", "a PNG of 16 bits in more than one channel is read with 8; store a TIFF"
        )
    return images.load_upright(image, _values_of), _colours_of(image)


def _colours_of(image: Image.Image) -> int:
    return 1 if image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")) else 3


def _values_of(image: Image.Image) -> Pixels:
    if image.mode.startswith(("I", "F")):
        return images.sixteen_bits(image)[:, :, None]
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGBA"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def is_deep_png(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits in more than one channel, of which Pillow keeps eight."""
    return data[:8] == _PNG and data[_PNG_DEPTH : _PNG_COLOUR + 1] > b"\x10\x00"


def _plain_tiff(data: bytes) -> Tiff | None:
    """A TIFF of plain numbers that Pillow cannot read, or not without loss; None for all else. Raises BadInputError."""
    if not is_tiff(data):
        return None
    tiff = Tiff(data)
    return tiff if tiff.is_plain_numbers else None
