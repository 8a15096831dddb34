"""What a file is depends on its bytes, and what lies beside its pixels decides nothing. One reader for every job."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from p2p.errors import BadInputError
from p2p.storage import formats
from p2p.storage.formats import FORMATS, SUFFIXES, LeftOut
from p2p.storage.images import decode, image_size, read_image
from p2p.storage.pixels import PixelFormat
from p2p.storage.tiff_tags import Tags

Y, X = np.mgrid[0:48, 0:80]
PICTURE = np.stack([30 + 2 * X, 30 + 4 * Y, 128 + X - Y], 2).astype(np.uint8)
PICTURE[:12, :20] = 250, 10, 10
GRAY = np.asarray(Image.fromarray(PICTURE).convert("L"))
GRAY_RGB = GRAY[:, :, None].repeat(3, axis=2)
SIDEWAYS = np.rot90(PICTURE)  # as a camera stores it with orientation 6
DEEP = PICTURE.astype(np.uint16) * 257
ORIENTATION_6 = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x112, 3, 1, 6, 0, 0)
XMP_6 = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'


def saved(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image).save(
        buffer, format, **options
    )
    return buffer.getvalue()


def tiff(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, metadata=None, **options)
    return buffer.getvalue()


def plain_tiff(
    pixels: bytes, bits: int, photometric: int | None, *more: tuple[int, int], channels: int = 1, order: str = "<"
) -> bytes:
    """An uncompressed TIFF of 80x48, tag by tag; none for what its numbers mean where that is None."""
    tags = [
        (256, 80),
        (257, 48),
        (258, bits),
        (259, 1),
        (273, 0),
        (277, channels),
        (278, 48),
        (279, len(pixels)),
        *more,
    ]
    tags = sorted([*tags, *([] if photometric is None else [(262, photometric)])])
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(order + "HHII", code, 4, 1, value if code != 273 else start) for code, value in tags)
    head = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + entries + bytes(4) + pixels


def of_bits(values: np.ndarray, bits: int) -> bytes:
    """Rows of numbers without gaps between them, each row in whole bytes."""
    places = np.arange(bits)[::-1]
    return np.packbits((values.reshape(len(values), -1, 1) >> places & 1).reshape(len(values), -1), axis=1).tobytes()


def with_colour_map(pixels: bytes, bits: int, numbers: np.ndarray, photometric: int | None = 3) -> bytes:
    """A TIFF of indices, whose colour map of (colours, 3) lies behind them."""
    data = plain_tiff(pixels, bits, photometric, (320, 0))
    entry = struct.pack("<HHII", 320, 4, 1, 0)
    assert entry in data
    return (
        data.replace(entry, struct.pack("<HHII", 320, 3, numbers.size, len(data))) + numbers.T.astype("<u2").tobytes()
    )


def with_a_small_page_first(subfile_type: int) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(PICTURE[::8, ::8], photometric="rgb", metadata=None, subfiletype=1)
        writer.write(PICTURE, photometric="rgb", metadata=None)
    reduced, wanted = (struct.pack("<HHII", 254, 4, 1, kind) for kind in (1, subfile_type))
    assert reduced in buffer.getvalue()
    return buffer.getvalue().replace(reduced, wanted)


def pillow_tiff(**options: Any) -> bytes:
    return saved(PICTURE, "TIFF", **options)


def chunk(name: bytes, body: bytes, crc_error: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ crc_error)


def png(*chunks: bytes, image: np.ndarray = PICTURE) -> bytes:
    """A PNG with `chunks` before its pixels."""
    plain = saved(image)
    return plain[:33] + b"".join(chunks) + plain[33:]


def jpeg(*segments: tuple[int, bytes], image: np.ndarray = PICTURE, **options: Any) -> bytes:
    """A JPEG with segments of these markers first."""
    plain = saved(image, "JPEG", **{"quality": 98, "subsampling": 0, **options})
    added = (b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return plain[:2] + b"".join(added) + plain[2:]


def jpeg_without(marker: int, data: bytes, instead: bytes) -> bytes:
    """The JPEG with another body in its segment of that marker."""
    start = data.index(b"\xff" + bytes([marker]))
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[:start] + b"\xff" + bytes([marker]) + struct.pack(">H", len(instead) + 2) + instead + data[end:]


def with_frame(data: bytes, marker: int, bits: bytes) -> bytes:
    """The JPEG with another marker of its frame, and other bits a sample."""
    place = data.index(b"\xff\xc0")
    return data[:place] + b"\xff" + bytes([marker]) + data[place + 2 : place + 4] + bits + data[place + 5 :]


def with_16_bit_alpha() -> np.ndarray:
    return np.dstack([DEEP, np.full((48, 80), 30000, np.uint16)])


def premultiplied() -> bytes:
    colours = (PICTURE.astype(int) * 128 // 255).astype(np.uint8)
    return tiff(np.dstack([colours, np.full_like(GRAY, 128)]), photometric="rgb", extrasamples=[1])


def behind_a_large_profile() -> bytes:
    profile = [(0xE2, b"ICC_PROFILE\0\1\2" + bytes(60_000))] * 2
    return jpeg(*profile, (0xE1, b"Exif\0\0" + ORIENTATION_6), image=SIDEWAYS)


def cmyk_jpeg() -> bytes:
    data = saved(Image.fromarray(GRAY_RGB).convert("CMYK"), "JPEG", quality=98)
    return data[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + data[2:]


def animated_gif() -> bytes:
    more = {"save_all": True, "append_images": [Image.new("L", (80, 48))], "comment": b"x" * 9999}
    return saved(Image.fromarray(GRAY), "GIF", **more)


def text_behind() -> bytes:
    plain = saved(PICTURE)
    return plain[:-12] + chunk(b"zTXt", b"broken") + plain[-12:]


BLACK: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
PLANAR = np.moveaxis(DEEP, 2, 0)
GRAY_12 = GRAY.astype(np.uint16) * 16 + GRAY // 16  # 4095 is white
TONES = np.array([[0, 0, 0], [250, 10, 10], [40, 200, 90], [255, 255, 255]] * 4)
MANY_TONES = np.tile(TONES, (16, 1))
INDICES = (X // 8 + Y // 8) % 16
READ: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    # What lies beside the pixels.
    "2 MB of text": (lambda: png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000)))), PICTURE, 0),
    "2 MB of profile": (lambda: png(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000)))), PICTURE, 0),
    "a wrong checksum beside": (lambda: png(chunk(b"tEXt", b"a\0b", crc_error=1)), PICTURE, 0),
    "a wrong checksum of alpha": (lambda: png(chunk(b"tRNS", bytes(6), crc_error=1)), PICTURE, 0),
    "EXIF that is none": (lambda: png(chunk(b"eXIf", b"no TIFF block")), PICTURE, 0),
    "texts behind the pixels": (text_behind, PICTURE, 0),
    "JPEG, EXIF that is none": (lambda: jpeg((0xE1, b"Exif\0\0garbage")), PICTURE, 6),
    "JPEG, a short profile": (lambda: jpeg((0xE2, b"ICC_PROFILE\0")), PICTURE, 6),
    "JPEG, a short JFIF": (lambda: jpeg_without(0xE0, jpeg(), b"JFIF\0"), PICTURE, 6),
    "JPEG, a short Adobe": (lambda: jpeg((0xEE, b"Adobe")), PICTURE, 6),
    "JPEG of CMYK with a short profile": (cmyk_jpeg, GRAY_RGB, 6),
    "JPEG without its end": (lambda: jpeg()[:-2], PICTURE, 6),
    # Orientation.
    "PNG, EXIF": (lambda: png(chunk(b"eXIf", ORIENTATION_6), image=SIDEWAYS), PICTURE, 0),
    "JPEG, EXIF": (lambda: jpeg((0xE1, b"Exif\0\0" + ORIENTATION_6), image=SIDEWAYS), PICTURE, 6),
    "JPEG, EXIF behind 120 KB of profile": (behind_a_large_profile, PICTURE, 6),
    "JPEG, XMP alone": (lambda: jpeg((0xE1, XMP_6)), PICTURE, 6),
    "JPEG, EXIF without orientation, and XMP": (
        lambda: jpeg((0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"), (0xE1, XMP_6)),
        PICTURE,
        6,
    ),
    "WebP, EXIF": (lambda: saved(SIDEWAYS, "WEBP", lossless=True, exif=b"Exif\0\0" + ORIENTATION_6), PICTURE, 0),
    "TIFF, orientation": (lambda: tiff(SIDEWAYS, photometric="rgb", extratags=[(274, 3, 1, 6, True)]), PICTURE, 0),
    "TIFF, 16 bit, orientation": (
        lambda: tiff(np.ascontiguousarray(np.rot90(DEEP)), photometric="rgb", extratags=[(274, 3, 1, 6, True)]),
        PICTURE,
        0,
    ),
    "TIFF, palette, orientation": (
        lambda: saved(Image.fromarray(np.ascontiguousarray(SIDEWAYS[:, :, 0])).convert("P"), "TIFF", tiffinfo={274: 6}),
        PICTURE[:, :, :1].repeat(3, axis=2),
        0,
    ),
    "TIFF, XMP alone": (
        lambda: tiff(PICTURE, photometric="rgb", extratags=[(700, 1, len(XMP_6[29:]), XMP_6[29:], True)]),
        PICTURE,
        0,
    ),
    # TIFFs that were read by one reader and not by the other.
    "WhiteIsZero, 8 bit": (lambda: tiff(255 - GRAY, photometric="miniswhite"), GRAY_RGB, 0),
    "WhiteIsZero, 16 bit": (lambda: tiff(65535 - GRAY.astype(np.uint16) * 257, photometric="miniswhite"), GRAY_RGB, 0),
    "RGB of 16 bit": (lambda: tiff(DEEP, photometric="rgb"), PICTURE, 0),
    "RGB of 16 bit, big-endian": (lambda: tiff(DEEP, photometric="rgb", byteorder=">"), PICTURE, 0),
    "BigTIFF, big-endian": (lambda: tiff(PICTURE, photometric="rgb", byteorder=">", bigtiff=True), PICTURE, 0),
    "RGB of 16 bit, planar": (lambda: tiff(PLANAR, photometric="rgb", planarconfig="separate"), PICTURE, 0),
    "RGB of 16 bit, BlackIsZero": (lambda: tiff(DEEP, **BLACK), PICTURE, 0),
    "RGBA of 16 bit": (lambda: tiff(with_16_bit_alpha(), photometric="rgb", extrasamples=[2]), PICTURE, 0),
    "RGB and infrared": (lambda: tiff(np.dstack([PICTURE, GRAY]), photometric="rgb", extrasamples=[0]), PICTURE, 0),
    "alpha multiplied in": (premultiplied, PICTURE, 3),
    "gray and alpha": (lambda: tiff(np.dstack([GRAY, GRAY]), extrasamples=[2], **BLACK), GRAY_RGB, 0),
    "two bands": (lambda: tiff(np.dstack([GRAY, GRAY[::-1]]), **BLACK), GRAY_RGB, 0),
    "four bands": (lambda: tiff(np.dstack([PICTURE, GRAY]), **BLACK), PICTURE, 0),
    "CMYK": (lambda: saved(Image.fromarray(GRAY_RGB).convert("CMYK"), "TIFF"), GRAY_RGB, 0),
    "one bit, fax 4": (
        lambda: saved(Image.fromarray(GRAY > 128), "TIFF", compression="group4"),
        ((GRAY_RGB > 128) * 255).astype(np.uint8),
        0,
    ),
    **{
        f"TIFF by {compression}": (lambda compression=compression: pillow_tiff(compression=compression), PICTURE, 0)  # type: ignore[misc]
        for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma")
    },
    "12 bit": (lambda: plain_tiff(of_bits(GRAY_12, 12), 12, 1), GRAY_RGB, 0),
    "RGB that does not say so": (lambda: plain_tiff(PICTURE.tobytes(), 8, None, channels=3), PICTURE, 0),
    "gray that does not say so": (lambda: plain_tiff(GRAY.tobytes(), 8, None), GRAY_RGB, 0),
    "16 bit that do not say so": (lambda: plain_tiff((GRAY_12 * 16).tobytes(), 16, None), GRAY_RGB, 0),
    "4 bit that do not say so": (lambda: plain_tiff(of_bits(GRAY >> 4, 4), 4, None), GRAY_RGB // 16 * 17, 0),
    "a palette that does not say so": (
        lambda: with_colour_map(INDICES.astype(np.uint8).tobytes(), 8, MANY_TONES * 257, None),
        MANY_TONES[INDICES].astype(np.uint8),
        0,
    ),
    "a palette of 8 bits": (
        lambda: with_colour_map(INDICES.astype(np.uint8).tobytes(), 8, MANY_TONES),
        MANY_TONES[INDICES].astype(np.uint8),
        0,
    ),
    "a palette of 16 colours of 8 bits": (
        lambda: with_colour_map(of_bits(INDICES, 4), 4, TONES),
        TONES[INDICES].astype(np.uint8),
        0,
    ),
    "a thumbnail first": (lambda: with_a_small_page_first(1), PICTURE, 0),
    "a mask first": (lambda: with_a_small_page_first(4), PICTURE, 0),
    "the first page of two": (lambda: with_a_small_page_first(2), PICTURE[::8, ::8], 0),
    # Formats.
    "GIF": (lambda: saved(Image.fromarray(GRAY), "GIF"), GRAY_RGB, 0),
    "animated GIF": (animated_gif, GRAY_RGB, 0),
    "AVIF": (lambda: saved(GRAY_RGB, "AVIF", quality=100), GRAY_RGB, 8),
    "JPEG 2000": (lambda: saved(PICTURE, "JPEG2000"), PICTURE, 0),
    "PPM": (lambda: saved(PICTURE, "PPM"), PICTURE, 0),
    "PGM": (lambda: saved(GRAY, "PPM"), GRAY_RGB, 0),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_a_viewer_shows_it(name: str) -> None:
    make, shown, tolerance = READ[name]
    data = make()
    found = decode(data)
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).max() <= tolerance
    wide = PixelFormat(3, 16)
    assert np.array_equal(decode(data, wide) >> 8, found), "other depths are of the same pixels"
    assert sorted(image_size(data)) == sorted(shown.shape[:2])


def test_a_tiff_that_does_not_say_what_its_numbers_mean_is_never_read_beyond_its_end() -> None:
    for bits, pixels in ((4, of_bits(GRAY >> 4, 4)), (8, GRAY.tobytes()), (12, of_bits(GRAY_12, 12))):
        for missing in (1, 10, 100):
            with pytest.raises(BadInputError):
                decode(plain_tiff(pixels, bits, None)[:-missing])


def with_tag(data: bytes, code: int, count: int, value: int) -> bytes:
    """The same little-endian TIFF with one number, of 32 bits, or an offset of several, as the tag's value."""
    entry = Tags(data).tags[code].entry
    return data.replace(entry, struct.pack("<HHII", code, 4, count, value), 1)


@pytest.mark.parametrize("image", [GRAY, PICTURE, DEEP[:, :, 0], DEEP], ids=["gray", "RGB", "gray 16", "RGB 16"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 8}, {"tile": (16, 16)}], ids=["strips", "tiles"])
def test_a_tiff_whose_strips_or_tiles_are_missing_is_cut_off(image: np.ndarray, layout: dict[str, Any]) -> None:
    data = tiff(image, photometric="rgb" if image.ndim == 3 else "minisblack", **layout)
    assert decode(data).shape == (48, 80, 3)
    offsets = Tags(data).tags[324 if "tile" in layout else 273]
    sparse = bytearray(data)
    sparse[offsets.offset : offsets.offset + 4] = bytes(4)
    for damaged in (with_tag(data, 257, 1, 49), with_tag(data, 257, 1, 500), bytes(sparse)):
        with pytest.raises(BadInputError, match="the image is cut off"):
            decode(damaged)


def test_tags_that_lie_over_each_other_are_damage() -> None:
    """The height is read where the list of tags is, which no longer holds what it did once it is made shorter."""
    data = tiff(GRAY, photometric="minisblack", description="x" * 40)
    with pytest.raises(BadInputError):
        decode(with_tag(data, 257, 4, 8 + 2 + 12))


def test_pages_that_follow_each_other_in_a_circle_are_none_in_full_size() -> None:
    data = bytearray(plain_tiff(GRAY.tobytes(), 8, 1, (254, 1)))
    end = 10 + 12 * data[8]
    struct.pack_into("<I", data, end, 8)
    assert np.array_equal(decode(bytes(data)), GRAY_RGB)


@pytest.mark.parametrize("values", [0, 256, 65535])
def test_integers_of_32_bits_are_gray_of_16_where_that_can_be(values: int) -> None:
    image = np.full((6, 5), values, np.uint32)
    assert np.array_equal(decode(tiff(image, **BLACK), PixelFormat(1, 16))[:, :, 0], image)


def jpeg_markers(data: bytes, marker: bytes) -> list[int]:
    return [place for place in range(data.index(b"\xff\xda") + 1, len(data)) if data.startswith(marker, place)]


@pytest.mark.parametrize("image", [PICTURE, GRAY], ids=["RGB", "gray"])
def test_a_progressive_jpeg_that_lacks_scans_is_damaged_and_one_that_lacks_its_end_is_not(image: np.ndarray) -> None:
    data = jpeg(image=image, progressive=True)
    assert np.array_equal(decode(data[:-2]), decode(data))
    cuts = jpeg_markers(data, b"\xff\xda")
    assert len(cuts) > 2
    for cut in cuts:
        for more in (0, 1, 2, 3, 4, 6, 9):
            with pytest.raises(BadInputError, match="JPEG image is cut off") as caught:
                decode(data[: cut + more])
            assert caught.value.kind == "DamagedImage"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_within_its_pixels_is_damaged_with_an_end_marker_too(progressive: bool) -> None:
    data = jpeg(progressive=progressive)
    for share in (0.4, 0.7, 0.95):
        for end in (b"", b"\xff\xd9"):
            with pytest.raises(BadInputError, match="pixels are missing"):
                decode(data[: int(len(data) * share)] + end)


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"progressive": True}], ids=str)
def test_a_jpeg_whose_line_ends_were_changed_is_damaged_and_one_with_padding_is_not(options: dict[str, Any]) -> None:
    data = jpeg(**options)
    with pytest.raises(BadInputError, match="a JPEG that was copied as text, which changes its line ends") as caught:
        decode(data.replace(b"\n", b"\r\n"))
    assert caught.value.kind == "DamagedImage"
    for padded in (data[:-2] + bytes(5) + data[-2:], data[:20] + bytes(3) + data[20:], data + b"\r\n"):
        assert np.array_equal(decode(padded), decode(data))


def lzw(values: bytes) -> bytes:
    """As TIFF's LZW has it, without compressing: a clear code, 8 bits in 9, an end."""
    codes = [code for start in range(0, len(values), 200) for code in (256, *values[start : start + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("channels", [3, 4])
def test_deep_tiffs_by_lzw_are_read(channels: int, predictor: int) -> None:
    image = np.dstack([DEEP, DEEP[:, :, 0]])[:, :, :channels]
    differences = np.diff(image, axis=1, prepend=np.zeros_like(image[:, :1])) if predictor == 2 else image
    strips = [lzw(differences[top : top + 20].tobytes()) for top in range(0, 48, 20)]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, image, photometric="rgb", metadata=None, rowsperstrip=20, compression=8, predictor=predictor == 2
    )
    data = bytearray(buffer.getvalue())
    tags = {code: place for place in range(10, 10 + 12 * data[8], 12) for code in struct.unpack_from("<H", data, place)}
    struct.pack_into("<H", data, tags[259] + 8, 5)
    for code, numbers in ((273, np.cumsum([len(data), *map(len, strips[:-1])])), (279, [len(s) for s in strips])):
        kind, count, where = struct.unpack_from("<HII", data, tags[code] + 2)
        assert count == len(strips)
        struct.pack_into(f"<{count}{'I' if kind == 4 else 'H'}", data, where, *numbers)
    found = decode(bytes(data) + b"".join(strips), PixelFormat(channels, 16))
    assert np.array_equal(found, image)


def bmp(bits: int, compression: int, *masks: int) -> bytes:
    """The header of a BMP of 16x16, and some bytes behind."""
    header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, bits, compression, 512, 0, 0, 0, 0)
    start = 14 + len(header) + 4 * len(masks)
    return b"BM" + struct.pack(f"<IHHI40s{len(masks)}I", start + 512, 0, 0, start, header, *masks) + bytes(512)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "floats": (lambda: tiff(GRAY.astype(np.float32)), "a TIFF with float32 numbers"),
    "half floats": (lambda: tiff(GRAY.astype(np.float16)), "a TIFF with float16 numbers"),
    "10 bit": (lambda: plain_tiff(of_bits(GRAY_12 >> 2, 10), 10, 1), "BlackIsZero, 1 channels of 10 bits"),
    "RGB of 12 bit": (
        lambda: plain_tiff(of_bits(GRAY_12.repeat(3, axis=1), 12), 12, 2, channels=3),
        "RGB, 3 channels of 12 bits",
    ),
    "12 bit, WhiteIsZero": (lambda: plain_tiff(of_bits(GRAY_12, 12), 12, 0), "WhiteIsZero, 1 channels of 12 bits"),
    "ids of 32 bit": (lambda: tiff(GRAY.astype(np.int32), **BLACK), "numbers of 32 bits that are 202 at most"),
    "JPEG inside without a word on colours": (
        lambda: plain_tiff(PICTURE.tobytes(), 8, None, channels=3).replace(
            struct.pack("<HHII", 259, 4, 1, 1), struct.pack("<HHII", 259, 4, 1, 7)
        ),
        "does not say which colours",
    ),
    "negatives": (lambda: tiff(GRAY.astype(np.int16) - 99, **BLACK), r"a TIFF with numbers below 0 \(int16\)"),
    "CIELab": (lambda: saved(Image.new("LAB", (8, 8)), "TIFF"), "a TIFF with CIELab colours"),
    "17 bands": (lambda: tiff(np.zeros((8, 8, 17), np.uint8), **BLACK), "a TIFF with 17 channels"),
    "JPEG XL inside": (
        lambda: tiff(PICTURE, photometric="rgb").replace(
            struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 50002)
        ),
        r"compression by JPEG XL \(50002\)",
    ),
    "12 bands as RGB": (lambda: tiff(np.zeros((8, 8, 12), np.uint8), **BLACK), "pixels_a .* 12x8"),
    "JPEG of 12 bits": (lambda: with_frame(jpeg(), 0xC1, b"\x0c"), "a JPEG of 12 bits a sample"),
    "JPEG-LS": (lambda: with_frame(jpeg(), 0xF7, b"\x08"), "JPEG-LS, which is not read"),
    "a PNG of Apple's": (lambda: saved(PICTURE)[:8] + chunk(b"CgBI", bytes(4)) + saved(PICTURE)[8:], "CgBI"),
    "no palette": (lambda: saved(Image.fromarray(GRAY).convert("P")).replace(b"PLTE", b"teXt"), "palette is missing"),
    "line ends of text": (lambda: saved(PICTURE).replace(b"\r\n", b"\n"), "a PNG that was copied as text"),
    "a video": (lambda: b"\0\0\0\x20ftypisom" + bytes(99), "this is a video"),
    "base64": (lambda: b"iVBORw0KGgoAAAANSUhEUg", "this is an image in base64"),
    "an array": (lambda: b"\x93NUMPY\1\0v", "this is a NumPy array"),
    "zeros": (lambda: bytes(99), "this is nothing but zeros"),
    "DICOM": (lambda: bytes(128) + b"DICM" + bytes(40), "this is DICOM"),
    "OpenEXR": (lambda: b"v/1\x01" + bytes(99), "this is OpenEXR"),
    "a texture": (lambda: b"DDS |" + bytes(120), "this is a DDS texture"),
    "a BMP of 4 bits a channel": (
        lambda: bmp(16, 3, 0xF00, 0xF0, 0xF),
        "a BMP of a kind that is not read .* bitfields",
    ),
    "a JPEG in a BMP": (lambda: bmp(0, 4), "a BMP of a kind that is not read .* save it as PNG"),
    "an icon": (lambda: saved(PICTURE, "ICO"), "this is a Windows icon"),
    "an error": (lambda: b"404: Not\r\nFound", r'this is text \("404: Not Found"\)'),
    "a long text": (lambda: b"twelve chars" * 99, r'\("(twelve chars){3}twel…"\)'),
    "HTML": (lambda: b"<!DOCTYPE html><html>", "this is a web page"),
    "a pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "git LFS"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_what_it_is(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(BadInputError, match=reason):
        decode(make())


def test_a_bmp_of_another_kind_is_not_damaged() -> None:
    with pytest.raises(BadInputError) as caught:
        decode(bmp(0, 5))
    assert caught.value.kind == "UnsupportedPixels"


def test_an_image_whose_plug_in_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_is_installed", lambda module: False)
    heic = struct.pack(">I4s4s", 24, b"ftyp", b"heic") + bytes(100)
    for data, package in ((heic, "pillow-heif"), (b"\xff\x0a" + bytes(40), "pillow-jxl-plugin")):
        with pytest.raises(BadInputError, match=f"pip install {package}"):
            decode(data)


def test_only_listed_plug_ins_are_asked() -> None:
    for format in ("PCX", "TGA", "ICO", "SGI", "PSD"):
        data = saved(PICTURE, format) if format != "PSD" else b"8BPS\0\1" + bytes(100)
        with pytest.raises(BadInputError, match="not one of the images read here") as caught:
            decode(data)
        assert caught.value.kind == "NotAnImage"
    assert {format.name for format in FORMATS} >= {"JPEG", "PNG", "GIF", "AVIF", "HEIC"}


def test_what_is_left_out_is_counted_by_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_is_installed", lambda module: False)
    left_out = LeftOut()
    for name in [*["a/x.HEIC"] * 4, *["b.cr2"] * 5]:
        left_out.add(name)
    assert str(left_out) == "9 files left out: 4 .heic (pip install pillow-heif), 5 .cr2"
    assert {".jfif", ".jpe", ".gif", ".avif", ".jp2", ".ppm"} <= set(SUFFIXES)


@pytest.mark.parametrize(
    ("data", "mode", "is_plain"),
    [
        (jpeg(), "RGB", True),
        (jpeg((0xE1, XMP_6)), "RGB", False),
        (jpeg((0xE2, b"ICC_PROFILE\0")), "RGB", False),
        (saved(GRAY, "JPEG"), "L", False),
        (saved(PICTURE), "RGB", True),
        (png(chunk(b"gAMA", struct.pack(">I", 45455))), "RGB", True),
        (png(chunk(b"eXIf", ORIENTATION_6)), "RGB", False),
        (png(chunk(b"gAMA", struct.pack(">I", 45455))[:-4] + bytes(4)), "RGB", False),
        (png(chunk(b"tRNS", bytes(6))), "RGB", False),
        (saved(Image.fromarray(PICTURE).quantize(8)), "P", False),
        (tiff(DEEP, photometric="rgb"), "3x16", False),
        (saved(PICTURE, "BMP"), "RGB", False),
    ],
)
def test_what_prepare_and_the_doctor_ask_about_a_file(data: bytes, mode: str, is_plain: bool) -> None:
    found = read_image(data)
    assert (found.mode, found.is_plain) == (mode, is_plain)


SEEDS = {
    "jpeg": jpeg((0xE1, b"Exif\0\0" + ORIENTATION_6)),
    "progressive": jpeg(progressive=True),
    "cmyk": saved(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"),
    "png": png(chunk(b"eXIf", ORIENTATION_6)),
    "palette": saved(Image.fromarray(PICTURE).quantize(16)),
    "webp": saved(PICTURE, "WEBP"),
    "bmp": saved(PICTURE, "BMP"),
    "gif": saved(GRAY, "GIF"),
    "lzw": pillow_tiff(compression="tiff_lzw"),
    "deep": tiff(DEEP, photometric="rgb", compression="zlib", predictor=True),
    "tiles": tiff(DEEP, photometric="rgb", tile=(16, 16)),
    "bands": tiff(PICTURE.repeat(3, axis=2), **BLACK),
    "12 bits": plain_tiff(of_bits(GRAY_12, 12), 12, 1),
    "colour map": with_colour_map(of_bits(INDICES, 4), 4, TONES, None),
    "pages": with_a_small_page_first(1),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes of the header changed, inserted, removed; or the rest cut off."""
    changed = bytearray(data)
    head = rng.choice([40, 120, 400])
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        place = rng.randrange(min(head, len(changed)))
        match rng.randrange(6):
            case 0 | 1:
                changed[place] = rng.randrange(256)
            case 2:
                number = rng.choice([0, 1, 2, 255, 65535, 2**31, 2**32 - 1])
                changed[place : place + 4] = struct.pack(rng.choice("<>") + "I", number)
            case 3:
                del changed[place : place + rng.randrange(1, 9)]
            case 4:
                changed[place:place] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                del changed[rng.randrange(40, max(41, len(changed))) :]
    return bytes(changed)


@pytest.mark.parametrize("name", SEEDS)
def test_of_a_mutated_header_every_job_makes_the_same_pixels_or_a_reason(name: str) -> None:
    """`prepare`, `train` and `evaluate` ask for formats, `translate` for RGB, sizes come from the header alone."""
    rng = random.Random(name)
    read = 0
    for _ in range(60):
        data = mutated(SEEDS[name], rng)
        found: list[Any] = []
        for reader in (decode, lambda data: decode(data, PixelFormat(3, 16)) >> 8, image_size):
            try:
                found.append(reader(data))
            except BadInputError as error:
                assert str(error)
                found.append(None)
        rgb, deep, size = found
        if rgb is not None:
            read += 1
            assert size is not None and sorted(size) == sorted(rgb.shape[:2])
            assert deep is None or np.array_equal(deep, rgb)
    assert read < 60
