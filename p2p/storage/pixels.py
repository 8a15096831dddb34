"""Arrays of pixels: (H, W, C) uint8 or uint16, 1 to 16 channels, and from each kind to every other.

- asked for 1 channel, colours become luma (ITU-R BT.601); asked for 3, gray is repeated;
- alpha is a channel where 2 (gray and alpha) or 4 (RGB and alpha) are asked for, and dropped where 1 or 3 are: the
  stored colours stay, as pix2pix's own tools do;
- 8 bits become 16 by v * 257, which keeps black and white where they are; 16 become 8 by keeping the upper eight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.errors import BadInputError, ConfigError

Array = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8 | np.uint16]
Depth = TypeVar("Depth", bound=np.uint8 | np.uint16)

MAX_CHANNELS = 16
_WIDEN = 257  # 255 * 257 = 65535
_LUMA = np.array([19595, 38470, 7471], np.uint32)  # of 2**16; the numbers Pillow has for 8 bit
_PIXELS_AT_ONCE = 2**20


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


class StoredPixels(NamedTuple):
    """What an image holds: `pixels` in its own channels and depth, of which the first `colours` (1 or 3, or all of many
    bands) are colours and what follows is alpha; and `mode`, a name for the kind (Pillow's where it has one).
    """

    pixels: Pixels
    colours: int
    mode: str

    def as_format(self, wanted: PixelFormat) -> Pixels:
        """(H, W, C) as `wanted`. Raises BadInputError where channels would have to be invented."""
        pixels = self._colours_alone(wanted)
        if pixels.dtype == np.uint16 and wanted.bits == 8 and pixels.shape[2] in (1, wanted.channels):
            pixels = np.right_shift(pixels, 8, out=np.empty(pixels.shape, np.uint8), casting="unsafe")
        if pixels.shape[2] != wanted.channels:
            pixels = to_gray(pixels) if wanted.channels == 1 else np.repeat(pixels, wanted.channels, axis=2)
        if pixels.dtype == wanted.dtype:
            return np.ascontiguousarray(pixels)
        return np.multiply(pixels, _WIDEN, dtype=np.uint16) if wanted.bits == 16 else (pixels >> 8).astype(np.uint8)

    def _colours_alone(self, wanted: PixelFormat) -> Pixels:
        """The channels that are needed for those wanted."""
        channels = self.pixels.shape[2]
        if channels == wanted.channels:
            return self.pixels
        if self.colours not in (1, 3) or wanted.channels not in (1, 3):
            stored = PixelFormat(channels, 8 * self.pixels.dtype.itemsize)
            raise BadInputError(
                "WrongChannels",
                f"the image has {channels} channel{'s' if channels > 1 else ''} of {stored.bits} bits and cannot be "
                f"read as {wanted.channels}; prepare takes it with pixels_a (or pixels_b) {stored}",
            )
        return self.pixels[:, :, : self.colours]


class _Mode(NamedTuple):
    """How a Pillow image of one mode is read: as which of Pillow's modes, empty for numbers; and how many channels of
    that are colours.
    """

    target: str
    colours: int
    meaning: str


MODES = {
    "1": _Mode("L", 1, "gray: 0 and 255"),
    "L": _Mode("L", 1, "gray; 1, 2 and 4 bits are spread over 0 to 255"),
    "LA": _Mode("LA", 1, "gray and alpha"),
    "P": _Mode("RGB", 3, "its palette's colours, without their alpha"),
    "PA": _Mode("RGB", 3, "its palette's colours"),
    "RGB": _Mode("RGB", 3, "as it is"),
    "RGBA": _Mode("RGBA", 3, "RGB and alpha"),
    "RGBX": _Mode("RGB", 3, "RGB; the fourth channel has no meaning"),
    "CMYK": _Mode("RGB", 3, "converted by arithmetic, without a profile"),
    "YCbCr": _Mode("RGB", 3, "converted"),
    "I;16": _Mode("", 1, "gray of 16 bits"),
    "I": _Mode("", 1, "gray of 16 bits, if all its numbers are 0 to 65535; refused otherwise"),
}
"""Modes of Pillow; images of others (floating point, CIELab, …) are refused."""
REFUSED_MODES = {"F": "floating-point numbers", "LAB": "CIELab colours", "HSV": "HSV colours"}


def from_pillow(image: Image.Image) -> StoredPixels:
    """A Pillow image, as files of it are read. Raises BadInputError for a mode that is not read."""
    mode = MODES.get("I;16" if image.mode.startswith("I;16") else image.mode)
    if mode is None:
        what = REFUSED_MODES.get(image.mode, f"pixels of mode {image.mode}")
        raise BadInputError(
            "UnsupportedPixels", f"it holds {what}, which are not read; save it as RGB, or gray of 8 or 16 bits"
        )
    values = _sixteen_bits if not mode.target else lambda part: _converted(part, mode.target)
    return StoredPixels(by_rows(image, values), mode.colours, image.mode)


def _converted(image: Image.Image, target: str) -> Pixels:
    pixels = np.asarray(image if image.mode == target else image.convert(target))
    return pixels.reshape(*pixels.shape[:2], -1)


def _sixteen_bits(image: Image.Image) -> npt.NDArray[np.uint16]:
    values = np.asarray(image)
    if values.max(initial=0) > 65535 or values.min(initial=0) < 0:
        raise BadInputError(
            "UnsupportedPixels", "it holds numbers below 0 or above 65535, which are no pixels of 16 bits"
        )
    return values.astype(np.uint16)[:, :, None]


def by_rows(image: Image.Image, convert: Callable[[Image.Image], npt.NDArray[Depth]]) -> npt.NDArray[Depth]:
    """convert(image), a million pixels at a time so that copies stay small; `convert` takes each pixel by itself."""
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    if rows >= image.height:
        return convert(image)
    pixels: npt.NDArray[Depth] | None = None
    for top in range(0, image.height, rows):
        part = convert(image.crop((0, top, image.width, min(top + rows, image.height))))
        if pixels is None:
            pixels = np.empty((image.height, *part.shape[1:]), part.dtype)
        pixels[top : top + rows] = part
    assert pixels is not None
    return pixels


def upright(pixels: npt.NDArray[Depth], orientation: int) -> npt.NDArray[Depth]:
    """Turn (H, W, ...) as EXIF orientation 1 to 8 asks; anything else leaves it as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


def to_gray(image: Pixels) -> Pixels:
    """(H, W, 3) -> (H, W, 1) of the same depth: luma."""
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    gray = np.empty((*image.shape[:2], 1), np.uint16)
    for row, colours in zip(gray, image, strict=True):
        weighed = colours.astype(np.uint32) @ _LUMA + np.uint32(2**15)  # 65535 * 2**16 + 2**15 still fits
        row[:, 0] = weighed >> 16
    return gray
