"""Encoded image bytes <-> uint8 arrays. One place decides what alpha, 16 bit, palettes and orientation mean.

Every image decoded here is (H, W, 3) uint8 RGB (`p2p.storage.pixels` reads other channels and depths):

- palette images take their palette's colours; gray is repeated three times; CMYK is converted;
- alpha is dropped, the stored colours stay (as pix2pix's own tools do);
- 16-bit values keep their upper eight bits;
- EXIF orientation is applied.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from p2p.errors import BadInputError
from p2p.storage.limits import MAX_PIXELS, check_jpeg, check_size
from p2p.storage.tiff import Tiff, is_tiff

try:
    import fpng
except ImportError:  # no wheel for this platform
    fpng = None

Array = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8 | np.uint16]
Depth = TypeVar("Depth", bound=np.uint8 | np.uint16)
ImageFormat = Literal["png", "jpeg", "webp"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of files taken for images."""
EXTENSIONS: dict[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_MAX_SIDES = {"jpeg": 65_500, "webp": 16_383}
_PIXELS_AT_ONCE = 2**20
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # the JPEG plugin opens MPO too
PNG_LEVEL = 1  # a level-6 file is 10 % smaller and takes three times as long
FASTEST_PNG = 0
"""The PNG level that means another encoder than zlib, for (H, W, 3) images: 15 times as quick as level 1."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header only. Raises BadInputError for what is no image, or costs too much to decode."""
    if not data:
        raise BadInputError("EmptyFile", "the file has zero bytes")
    check_jpeg(data)
    if is_tiff(data):
        Tiff(data)  # raises for tags that cost Pillow or libtiff too much
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is checked below
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadInputError("NotAnImage", "not a JPEG, PNG, WebP, BMP or TIFF image") from None
    except Image.DecompressionBombError:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        problem = f"the header claims more than {limit} pixels; cut it into smaller images"
        raise BadInputError("TooManyPixels", problem) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise anything on a damaged header
        raise BadInputError("DamagedImage", f"its header cannot be read: {error}") from None
    check_size(*image.size, max_pixels)
    return image


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Encoded bytes -> (width, height) as stored, from the header alone. Raises BadInputError."""
    return open_image(data, max_pixels).size


def _decode_plain_jpeg(data: bytes, max_pixels: int) -> Array | None:
    """The fast path (30 % quicker than Pillow, the same pixels); None sends the bytes to Pillow."""
    if data[:3] != b"\xff\xd8\xff" or b"Exif\x00\x00" in data[:65536]:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace != "YCbCr" or height * width > max_pixels:
            return None
        check_jpeg(data)
        return simplejpeg.decode_jpeg(data, "RGB")  # type: ignore[no-any-return]
    except ValueError:
        return None


def sixteen_bits(image: Image.Image) -> npt.NDArray[np.uint16]:
    """A Pillow image of mode I;16, I or F -> (H, W) uint16. Raises BadInputError if its values are no such numbers."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
        raise BadInputError("UnsupportedPixels", f"pixels of mode {image.mode} are not 8 or 16 bit")
    return values.astype(np.uint16)


def _to_rgb(image: Image.Image) -> Array:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray((sixteen_bits(image) >> 8).astype(np.uint8))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Array:
    """Encoded bytes -> (H, W, 3) uint8 RGB. Raises BadInputError with a reason a person understands."""
    fast = _decode_plain_jpeg(data, max_pixels)
    return load_upright(open_image(data, max_pixels), _to_rgb) if fast is None else fast


def load_upright(image: Image.Image, convert: Callable[[Image.Image], npt.NDArray[Depth]]) -> npt.NDArray[Depth]:
    """Decode an opened image -> `convert` of it, (H, W, ...), turned as EXIF asks. Raises BadInputError."""
    with decoder_errors():
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return upright(by_rows(image, convert), orientation)


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


def upright(pixels: npt.NDArray[Depth], orientation: Any) -> npt.NDArray[Depth]:
    """Turn (H, W, ...) as EXIF orientation 1 to 8 asks; anything else leaves it as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


@contextlib.contextmanager
def decoder_errors() -> Iterator[None]:
    """Make BadInputError of whatever an image library raises inside, which on damaged data is anything; but not of
    MemoryError, for which the machine is the reason.
    """
    try:
        yield
    except (BadInputError, MemoryError):
        raise
    except Exception as error:
        raise BadInputError("DamagedImage", f"the image is cut off or damaged: {error}") from None


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
