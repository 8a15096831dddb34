"""Encoded image bytes <-> uint8 arrays. One place decides what alpha, 16 bit, palettes and orientation mean.

Every decoded image is (H, W, 3) uint8 RGB:

- palette images take their palette's colours; gray is repeated three times; CMYK is converted;
- alpha is dropped, the stored colours stay (as pix2pix's own tools do);
- 16-bit values keep their upper eight bits;
- EXIF orientation is applied.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from p2p.errors import BadInput

try:
    import fpng
except ImportError:  # no wheel for this platform
    fpng = None

Array = npt.NDArray[np.uint8]
ImageFormat = Literal["png", "jpeg", "webp"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of files taken for images."""
EXTENSIONS: dict[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
MAX_PIXELS = 178_956_970
"""Pillow's own warning level; larger headers are refused before anything is decoded."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # the JPEG plugin opens MPO too
FASTEST_PNG = 0
"""The PNG level that means another encoder than zlib, for (H, W, 3) images: 15 times as quick as level 1."""


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadInput("EmptyFile", "the file has zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit speaks below
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadInput("NotAnImage", "not a JPEG, PNG, WebP, BMP or TIFF image") from None
    except Image.DecompressionBombError:
        raise BadInput("TooManyPixels", f"the header claims more than the {max_pixels} pixels allowed") from None
    except Exception as error:  # Pillow's plugins raise anything on a damaged header
        raise BadInput("DamagedImage", f"its header cannot be read: {error}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadInput("TooManyPixels", f"{width}x{height} is more than the {max_pixels} pixels allowed")
    return image


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Encoded bytes -> (width, height) as stored, from the header alone. Raises BadInput."""
    return _open(data, max_pixels).size


def _decode_plain_jpeg(data: bytes, max_pixels: int) -> Array | None:
    """The fast path (30 % quicker than Pillow, the same pixels); None sends the bytes to Pillow."""
    if data[:3] != b"\xff\xd8\xff" or b"Exif\x00\x00" in data[:65536]:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace != "YCbCr" or height * width > max_pixels:
            return None
        return simplejpeg.decode_jpeg(data, "RGB")  # type: ignore[no-any-return]
    except ValueError:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
            raise BadInput("UnsupportedPixels", f"pixels of mode {image.mode} are not 8 or 16 bit")
        image = Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Array:
    """Encoded bytes -> (H, W, 3) uint8 RGB. Raises BadInput with a reason a person understands."""
    fast = _decode_plain_jpeg(data, max_pixels)
    if fast is not None:
        return fast
    image = _open(data, max_pixels)
    try:
        image.load()
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except BadInput:
        raise
    except Exception as error:  # Pillow's plugins raise anything on damaged data
        raise BadInput("DamagedImage", f"the image is cut off or damaged: {error}") from None


def encode(image: Array, format: ImageFormat = "png", quality: int = 95, png_level: int = 1) -> bytes:
    """(H, W, 3) uint8 RGB -> encoded bytes. `quality` 1..100 is for JPEG (4:4:4) and WebP.

    PNG is lossless: `png_level` 1..9 is zlib's, 0 a far quicker encoder (level 1 where it is not installed) whose files
    are 10 to 40 % larger.
    """
    image = np.ascontiguousarray(image)
    if format == "jpeg":
        return simplejpeg.encode_jpeg(image, quality, "RGB", "444")  # type: ignore[no-any-return]
    if format == "png" and png_level == FASTEST_PNG and fpng is not None and (data := fpng.from_ndarray(image)):
        return bytes(data)
    buffer = io.BytesIO()
    if format == "png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=max(1, png_level))
    else:
        Image.fromarray(image).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def resize(image: Array, height: int, width: int) -> Array:
    """(H, W, 3) uint8 -> (height, width, 3) uint8, bicubic with antialiasing."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def split_halves(image: Array) -> tuple[Array, Array]:
    """(H, 2W, 3) -> A, the left half, and B, the right half. Raises BadInput for an odd width."""
    width = image.shape[1]
    if width % 2:
        raise BadInput("OddWidth", f"a combined image must have an even width to be halved, this one is {width} wide")
    return image[:, : width // 2], image[:, width // 2 :]
