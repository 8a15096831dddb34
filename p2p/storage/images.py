"""Encoded images <-> arrays of pixels. One reader for every job: what training sees of a file, translating sees too.

What it makes of a file depends on its first bytes alone, not on its name (`p2p.storage.formats`):

- pixels become gray, gray and alpha, RGB, RGB and alpha, or bands, of 8 or 16 bits (`p2p.storage.pixels.MODES` for what
  Pillow decodes, `p2p.storage.tiff` for TIFF), and then what is asked for (`StoredPixels.as_format`);
- of several frames or pages the first is taken;
- EXIF orientation is applied (of TIFF its tag); that of XMP, and of a thumbnail, is not;
- colour profiles and gamma are ignored: the stored numbers are the colours;
- nothing else that lies beside the pixels decides anything (`p2p.storage.ancillary`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from PIL import Image, UnidentifiedImageError

from p2p.errors import BadInputError
from p2p.storage.ancillary import (
    EssentialParts,
    essential_parts,
    exif_of_jpeg,
    has_metadata,
    lacks_scans,
    orientation_of,
    unusual_jpeg,
)
from p2p.storage.formats import JPEG, PNG, TIFF, ImageFileType, format_of
from p2p.storage.limits import MAX_PIXELS, check_size, jpeg_segments
from p2p.storage.pixels import RGB, Array, Depth, PixelFormat, Pixels, StoredPixels, from_pillow, upright
from p2p.storage.tiff import Tiff

try:
    import fpng
except ImportError:  # no wheel for this platform
    fpng = None

ImageFormat = Literal["png", "jpeg", "webp"]

EXTENSIONS: dict[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_MAX_SIDES = {"jpeg": 65_500, "webp": 16_383}
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # places of bit depth and colour type in the header
_USUAL_JPEGS = {"YCbCr": ("RGB", "RGB", 3), "Gray": ("L", "Gray", 1)}
"""Of libjpeg's names: Pillow's mode, what it is decoded to, and how many channels that has."""
_PIXELS_MISSING = "premature end of data segment"  # libjpeg's warning: it makes gray of what is not there
_ONLY_PADDING = "before marker 0xd9"  # the last one: nothing that is decoded can be shifted by what lies before it
_COSTLY = ("JPEG 2000", "AVIF", "HEIC", "JPEG XL")
"""Their decoders take up to 28 bytes a pixel, others 16, so they may have half of the pixels."""
_TURNED_BY_DECODER = ("HEIC", "JPEG XL", "JPEG 2000")  # their own orientation is applied, and EXIF's repeats it
PNG_LEVEL = 1  # a level-6 file is 10 % smaller and takes three times as long
FASTEST_PNG = 0
"""The PNG level that means another encoder than zlib, for (H, W, 3) images: 15 times as quick as level 1."""


class DecodedImage(NamedTuple):
    """An image as wanted, and what the doctor and `prepare` ask about its file."""

    pixels: Pixels
    mode: str
    """How the file stores them, as `StoredPixels` names it."""
    is_plain: bool
    """Whether any reader makes the same RGB pixels of these bytes: no palette, alpha, depth or orientation to mind."""


@overload
def decode(data: bytes, *, max_pixels: int = ...) -> Array: ...
@overload
def decode(data: bytes, wanted: PixelFormat, max_pixels: int = ...) -> Pixels: ...


def decode(data: bytes, wanted: PixelFormat = RGB, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Encoded bytes -> (H, W, C) uint8 or uint16, as `wanted`. Raises BadInputError as `read_image` does."""
    return read_image(data, wanted, max_pixels).pixels


def read_image(data: bytes, wanted: PixelFormat = RGB, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Encoded bytes -> pixels as `wanted`, and what they were.

    Raises BadInputError, with a reason a person understands, for damaged data and too many pixels, and where the
    image's channels cannot become those wanted without inventing any.
    """
    format = format_of(data)
    stored, orientation, is_plain = _read(data, format, wanted.bits, max_pixels)
    pixels = stored.as_format(wanted)
    if orientation != 1:
        pixels = upright(pixels, orientation)
    return DecodedImage(pixels, stored.mode, is_plain)


def _read(data: bytes, format: ImageFileType, bits: int, max_pixels: int) -> tuple[StoredPixels, int, bool]:
    """The pixels as stored, their orientation, and whether they are plain."""
    if format is TIFF:
        tiff = Tiff(data)
        with decoder_errors(format):
            return tiff.decode(max_pixels), tiff.orientation, False
    if format is JPEG and (found := _decode_usual_jpeg(data, max_pixels)):
        return found
    parts = essential_parts(data, format)
    image = _open(parts, format, max_pixels)
    if bits == 16 and format is PNG and data[_PNG_DEPTH : _PNG_COLOUR + 1] > b"\x10\x00":
        raise BadInputError(
            "UnsupportedPixels", "a PNG of 16 bits in more than one channel is read with 8; store a TIFF"
        )
    with decoder_errors(format):
        image.load()
        has_all_opaque = image.info.pop("transparency", None) is None  # with it Pillow warns of what it leaves out
        stored = from_pillow(image)
    exif = b"" if format.name in _TURNED_BY_DECODER else parts.exif or image.info.get("exif", b"")
    is_eight = format is PNG and data[_PNG_DEPTH] == 8
    is_plain = is_eight and stored.mode == "RGB" and has_all_opaque and not parts.has_metadata
    return stored, orientation_of(exif), is_plain


def _decode_usual_jpeg(data: bytes, max_pixels: int) -> tuple[StoredPixels, int, bool] | None:
    """By libjpeg-turbo itself, 30 % quicker than Pillow and with the same pixels; None for what it does not read."""
    segments = jpeg_segments(data)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _USUAL_JPEGS:
            return None
        check_size(width, height, max_pixels)
        mode, space, count = _USUAL_JPEGS[colours]
        try:
            pixels = simplejpeg.decode_jpeg(data, space)
            is_whole = True
        except ValueError as error:
            if _PIXELS_MISSING in str(error):
                raise
            # All pixels of an image without an end marker may be there. What is missing is noticed once it has one.
            pixels = simplejpeg.decode_jpeg(data + b"\xff\xd9", space)
            is_whole = False
            if lacks_scans(data, segments):
                raise BadInputError("DamagedImage", "this JPEG image is cut off: its last scans are missing") from None
    except ValueError as error:
        if _was_copied_as_text(data, str(error)):
            raise BadInputError(
                "DamagedImage", "a JPEG that was copied as text, which changes its line ends; fetch it again"
            ) from None
        if _PIXELS_MISSING in str(error):
            raise BadInputError("DamagedImage", "this JPEG image is cut off or damaged: pixels are missing") from None
        return None
    is_plain = is_whole and mode == "RGB" and not has_metadata(data, segments)
    return StoredPixels(pixels, count, mode), orientation_of(exif_of_jpeg(data, segments)), is_plain


def _was_copied_as_text(data: bytes, warning: str) -> bool:
    """Whether a carriage return was put before each line feed of a JPEG of which libjpeg warns. Decoders go on with
    tables and pixels that are shifted by it. Of 256 line feeds one has a carriage return before it by chance.
    """
    ends = data.count(b"\r\n")
    return ends >= (2 if _ONLY_PADDING in warning else 1) and data.count(b"\n") == ends


def _open(parts: EssentialParts, format: ImageFileType, max_pixels: int) -> Image.Image:
    """Read the header only. Raises BadInputError for what costs too much to decode."""
    format.load_plugin()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is checked below
            image = Image.open(io.BytesIO(parts.data), formats=(format.plugin,))
    except UnidentifiedImageError:
        if format is JPEG and (kind := unusual_jpeg(parts.data)):
            raise BadInputError(
                "UnsupportedPixels", f"{kind}, which is not read; save it as PNG, or as JPEG of 8 bits"
            ) from None
        raise BadInputError("DamagedImage", f"its header is no {format.name}'s, though it begins like one") from None
    except Image.DecompressionBombError:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        problem = f"the header claims more than {limit} pixels; cut it into smaller images"
        raise BadInputError("TooManyPixels", problem) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise anything on a damaged header
        if str(error).startswith("Unsupported BMP"):
            problem = f"a BMP of a kind that is not read ({error}); save it as PNG"
            raise BadInputError("UnsupportedPixels", problem) from None
        raise BadInputError("DamagedImage", f"its header, a {format.name}'s, cannot be read: {error}") from None
    check_size(*image.size, max_pixels // 2 if format.name in _COSTLY else max_pixels)
    return image


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Encoded bytes -> (width, height) as stored, from the header alone. Raises BadInputError."""
    format = format_of(data)
    if format is TIFF:
        tiff = Tiff(data)
        tiff.check_size(max_pixels)
        return tiff.width, tiff.height
    parts = essential_parts(data, format)
    if format is JPEG:
        with contextlib.suppress(ValueError):
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height, max_pixels)
            return width, height
    return _open(parts, format, max_pixels).size


@contextlib.contextmanager
def decoder_errors(format: ImageFileType) -> Iterator[None]:
    """Make BadInputError of whatever an image library raises inside, which on damaged data is anything; but not of
    MemoryError, for which the machine is the reason.
    """
    try:
        yield
    except (BadInputError, MemoryError):
        raise
    except Exception as error:
        why = "" if str(error).startswith("decoder error") else f": {error}"  # followed by a number that says nothing
        raise BadInputError("DamagedImage", f"this {format.name} image is cut off or damaged{why}") from None


def encode(image: Array, format: ImageFormat = "png", quality: int = 95, png_level: int = 1) -> bytes:
    """(H, W, 3) uint8 RGB -> encoded bytes. `quality` 1..100 is for JPEG (4:4:4) and WebP.

    PNG is lossless: `png_level` 1..9 is zlib's, 0 a far quicker encoder (level 1 where it is not installed) whose files
    are 10 to 40 % larger. Raises BadInputError for an image that is too long for JPEG or WebP.
    """
    if format in _MAX_SIDES and max(image.shape[:2]) > _MAX_SIDES[format]:
        size, limit = f"{image.shape[1]}x{image.shape[0]}", _MAX_SIDES[format]
        raise BadInputError(
            "TooLargeForFormat", f"{size} is too long for {format}, whose limit is {limit} pixels; use png"
        )
    image = np.ascontiguousarray(image)
    if format == "jpeg":
        return simplejpeg.encode_jpeg(image, quality, "RGB", "444")  # type: ignore[no-any-return]
    if format == "png" and png_level == FASTEST_PNG and fpng is not None and (data := fpng.from_ndarray(image)):
        return bytes(data)
    buffer = io.BytesIO()
    if format == "png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=max(PNG_LEVEL, png_level))
    else:
        Image.fromarray(image).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def encode_exactly(image: Pixels) -> bytes:
    """(H, W, C) uint8 or uint16 -> PNG where it can hold that, else TIFF; both without loss."""
    height, width, channels = image.shape
    buffer = io.BytesIO()
    if (image.dtype == np.uint8 and channels <= 4) or channels == 1:
        plain = np.ascontiguousarray(image.reshape(height, width) if channels == 1 else image)
        Image.fromarray(plain).save(buffer, "PNG", compress_level=PNG_LEVEL)
        return buffer.getvalue()
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


def resize(image: npt.NDArray[Depth], height: int, width: int) -> npt.NDArray[Depth]:
    """(H, W, C) uint8 or uint16 -> (height, width, C) of the same depth, bicubic with antialiasing.

    Equal on every CPU. 8-bit photographs differ from what Pillow makes of them in one value of 400, by one level and
    seldom by two, and take a fifth of its time.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint16:
        planes = [np.ascontiguousarray(image[:, :, channel], np.float32) for channel in range(image.shape[2])]
        size = (width, height)
        resized = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in planes]
        return np.stack(resized, axis=2).round().clip(0, np.iinfo(image.dtype).max).astype(image.dtype)
    import torch  # takes more than a second, and not every job resizes

    batch = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    scaled = torch.nn.functional.interpolate(batch, (height, width), mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).contiguous().numpy()


def split_halves(image: npt.NDArray[Depth]) -> tuple[npt.NDArray[Depth], npt.NDArray[Depth]]:
    """(H, 2W, C) -> A, the left half, and B, the right half. Raises BadInputError for an odd width."""
    width = image.shape[1]
    if width % 2:
        raise BadInputError("OddWidth", f"a combined image must have an even width, this one is {width} wide")
    return image[:, : width // 2], image[:, width // 2 :]
