"""Files that would cost far more to decode than their size: refused by their header, before a decoder sees them."""

from __future__ import annotations

import functools
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from p2p.errors import BadInputError
from p2p.storage import images
from p2p.storage.formats import PNG
from p2p.storage.limits import MAX_JPEG_SCANS, MAX_PIXELS
from p2p.storage.pixels import PixelFormat

MB = 10**6
READERS: dict[str, Callable[[bytes], Any]] = {
    "decode": images.decode,
    "image_size": images.image_size,
    "decode any": images.decode,
    "decode gray": lambda data: images.decode(data, PixelFormat(1)),
    "image_size any": images.image_size,
}


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def error_of(data: bytes, read: Callable[[bytes], Any] = images.decode) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        read(data)
    return caught.value


def noise(height: int, width: int, channels: int = 3) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def jpeg_of_scans(scans: int, side: int = 64, between: bytes = b"", **options: Any) -> bytes:
    """A JPEG whose last scan is repeated, with something between, until it has so many."""
    data = saved(Image.fromarray(noise(side, side)), "JPEG", **options)
    head, last = data[: data.rindex(b"\xff\xda")], data[data.rindex(b"\xff\xda") : -2]
    return head + last + (between + last) * (scans - 1 - head.count(b"\xff\xda")) + b"\xff\xd9"


VARIANTS: dict[str, dict[str, Any]] = {
    "progressive": {"progressive": True},
    "gray by itself": {"progressive": True, "quality": 20},
    "with EXIF": {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"},
    "fill bytes": {"progressive": True, "between": b"\xff\xff\xff"},
    "comments": {"progressive": True, "between": b"\xff\xfe\0\x05abc"},
    "rubbish": {"progressive": True, "between": b"\0\xff\0\xff\xd3abc"},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_jpeg_of_more_scans_than_allowed_is_refused_by_every_reader(variant: str, reader: str) -> None:
    error = error_of(jpeg_of_scans(MAX_JPEG_SCANS + 1, **VARIANTS[variant]), READERS[reader])
    assert error.kind == "TooManyScans" and "101 scans, 100 are allowed" in str(error)


@pytest.mark.parametrize("scans", [2, MAX_JPEG_SCANS + 1])
def test_of_a_jpeg_whose_first_scan_has_all_components_no_second_one_is_read(scans: int) -> None:
    """libjpeg refuses it unread, so nobody has to count."""
    data = jpeg_of_scans(scans)
    assert error_of(data).kind == "DamagedImage"
    assert images.image_size(data) == (64, 64)


@pytest.mark.parametrize("reader", READERS)
def test_the_scans_of_a_sequential_jpeg_that_has_one_for_each_component_are_counted(reader: str) -> None:
    whole = saved(Image.fromarray(noise(64, 64)), "JPEG")
    scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0\0"  # of the first component alone
    data = whole[: whole.index(b"\xff\xda")] + scan * (MAX_JPEG_SCANS + 1) + b"\xff\xd9"
    assert error_of(data, READERS[reader]).kind == "TooManyScans"


@pytest.mark.parametrize("reader", READERS)
def test_scans_after_a_stream_of_tables_alone_are_not_read(reader: str) -> None:
    """Pillow goes on with what follows it."""
    many = jpeg_of_scans(3 * MAX_JPEG_SCANS, progressive=True)
    tables = many[many.index(b"\xff\xdb") :][:69]
    error = error_of(b"\xff\xd8" + tables + b"\xff\xd9" + many, READERS[reader])
    assert error.kind == "DamagedImage" and "ends before its pixels" in str(error)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("variant", ["progressive", "with EXIF", "comments"])
def test_as_many_scans_as_are_allowed_are_read(variant: str, reader: str) -> None:
    READERS[reader](jpeg_of_scans(MAX_JPEG_SCANS, **VARIANTS[variant]))


def test_marks_of_scans_in_what_is_no_scan_do_not_count() -> None:
    """As in thumbnails, colour profiles, comments, and in the further pictures of an MPO."""
    photo = saved(Image.fromarray(noise(64, 64)), "JPEG", progressive=True)
    expected = images.decode(photo)
    marks = b"\xff\xda" * 30_000
    segments = b"".join(code + struct.pack(">H", len(marks) + 2) + marks for code in (b"\xff\xe1", b"\xff\xfe"))
    for data in (photo[:2] + segments + photo[2:], photo + marks, photo + jpeg_of_scans(500)):
        for read in READERS.values():
            read(data)
        assert np.array_equal(images.decode(data), expected)
    stereo = saved(Image.fromarray(noise(64, 64)), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    assert images.decode(stereo + marks).shape == (64, 64, 3)


def test_scans_inside_a_tiff_are_limited_too() -> None:
    jpeg = jpeg_of_scans(MAX_JPEG_SCANS + 2, progressive=True)
    data = tiff({256: 64, 257: 64, 258: (8, 8, 8), 259: 7, 262: 6, 277: 3, 278: 64}, jpeg)
    assert error_of(data).kind == "DamagedImage"
    fewer = tiff(
        {256: 64, 257: 64, 258: (8, 8, 8), 259: 7, 262: 6, 277: 3, 278: 64}, jpeg_of_scans(50, progressive=True)
    )
    assert images.decode(fewer).shape == (64, 64, 3)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int = 8, colour: int = 0, row: int = 0, extra: bytes = b"") -> bytes:
    """A black PNG, with `extra` chunks before its pixels; `row` bytes a row, none for a file that is only a header."""
    deflater = zlib.compressobj(9)
    body = b"".join(deflater.compress(bytes(1 + row)) for _ in range(height if row else 0)) + deflater.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@functools.cache
def deflated(size: int) -> bytes:
    deflater = zlib.compressobj(1)
    return b"".join(deflater.compress(bytes(MB)) for _ in range(size // MB)) + deflater.flush()


def tiff(tags: dict[int, Any], segment: bytes = b"", more: Iterator[tuple[int, int, int, int]] | None = None) -> bytes:
    """A TIFF whose one strip (or tile, where `tags` has a tile's width) is `segment`, with `more` raw entries."""
    where, count = (324, 325) if 322 in tags else (273, 279)
    raw = list(more or ())
    start = 8 + 2 + 12 * (len(tags) + 2 + len(raw)) + 4
    arrays = b"".join(struct.pack(f"<{len(v)}H", *v) for v in tags.values() if isinstance(v, tuple))
    entries, place = [], start
    for code, value in {**tags, where: start + len(arrays), count: len(segment)}.items():
        if isinstance(value, tuple):
            inline = struct.pack(f"<{len(value)}H", *value).ljust(4, b"\0")
            entries.append(
                struct.pack("<HHI", code, 3, len(value)) + (inline if len(inline) == 4 else struct.pack("<I", place))
            )
            place += 2 * len(value)
        else:
            entries.append(struct.pack("<HHII", code, 4, 1, value))
    entries += [struct.pack("<HHII", *entry) for entry in raw]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return struct.pack("<HHI", 0x4949, 42, 8) + directory + arrays + segment


GRAY = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 278: 16}
BANDS = {**GRAY, 258: (8,) * 12, 277: 12}
SIXTEEN = bytes(16 * 16)


@functools.cache
def hostile_tiffs() -> dict[str, bytes]:
    tile = {code: value for code, value in GRAY.items() if code != 278} | {322: 28_000, 323: 28_000}
    many = ((40_000 + number, 7, MB, 8) for number in range(1000))
    return {
        "tags that share a megabyte": tiff(GRAY, zlib.compress(SIXTEEN).ljust(MB + 100, b"\0"), many),
        "more tags than libtiff reads": tiff(GRAY, SIXTEEN, ((30_000 + n, 3, 1, 0) for n in range(5000))),
        "a long array of bits": tiff({**GRAY, 258: (8,) * 600_000}, SIXTEEN),
        "a tile far larger than the image": tiff(tile, deflated(800 * MB)),
        "such a tile listed as a strip": tiff({**GRAY, 322: 28_000, 323: 28_000}, deflated(800 * MB)),
        "a long list of strips": tiff(
            {code: value for code, value in GRAY.items() if code != 259} | {278: 1, 324: (9,) * 500_000}, SIXTEEN
        ),
        "bands whose strip inflates to 400 MB": tiff(BANDS, deflated(400 * MB)),
        "bands in a huge tile": tiff({**BANDS, 322: 10**9, 323: 10**9}, deflated(400 * MB)),
        "bands in a wide tile": tiff({**BANDS, 322: 10**9, 323: 16}, deflated(400 * MB)),
    }


@pytest.mark.parametrize("name", hostile_tiffs())
def test_tiffs_that_claim_more_than_they_are_are_refused(name: str) -> None:
    data = hostile_tiffs()[name]
    assert len(data) < 4 * MB
    wanted = PixelFormat(12) if "bands" in name else PixelFormat(1)
    assert error_of(data, lambda data: images.decode(data, wanted)).kind == "DamagedImage"


@pytest.mark.filterwarnings("ignore:Tag data larger than file")  # says Pillow, and leaves them out
def test_tiffs_that_are_only_odd_are_read() -> None:
    assert not images.decode(tiff(GRAY, zlib.compress(SIXTEEN))).any()
    assert not images.decode(tiff({**GRAY, 278: 2**32 - 1}, zlib.compress(SIXTEEN))).any()  # all rows in one strip
    shared = ((code, 7, 300, 8) for code in range(40_000, 40_100))
    assert not images.decode(tiff(GRAY, zlib.compress(SIXTEEN).ljust(500, b"\0"), shared)).any()
    beyond = iter([(40_000, 7, 10**9, 8)])  # readers leave out a tag that says so
    assert not images.decode(tiff(GRAY, zlib.compress(SIXTEEN), beyond)).any()
    assert not images.decode(tiff(GRAY, deflated(400 * MB))).any()  # libtiff reads what the strip has


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["wide.png", "high.png", "wide.tif"])
def test_a_side_of_more_than_a_million_pixels_is_refused(name: str, reader: str) -> None:
    files = {"wide.png": png(MAX_PIXELS, 1), "high.png": png(1, 1_000_001), "wide.tif": tiff({**GRAY, 256: 1_000_001})}
    error = error_of(files[name], READERS[reader])
    assert error.kind == "SideTooLong" and "cut it into smaller images" in str(error)


@pytest.mark.parametrize("read", [images.image_size, lambda data: images.decode(data, PixelFormat(12))])
def test_a_long_side_of_many_bands_is_refused(read: Callable[[bytes], Any]) -> None:
    assert error_of(tiff({**BANDS, 256: 1_000_001}), read).kind == "SideTooLong"


def test_the_limit_that_is_told_is_the_one_that_holds() -> None:
    with pytest.raises(BadInputError, match=r"13000x10000 is more than the 100000000 pixels allowed.* max_pixels"):
        images.decode(png(13_000, 10_000))
    with pytest.raises(BadInputError, match="more than 178956970 pixels"):  # Pillow's own, whatever is allowed
        images.decode(png(30_000, 30_000, colour=2), max_pixels=10**10)
    assert images.image_size(png(13_000, 13_000), max_pixels=170_000_000) == (13_000, 13_000)
    with pytest.raises(BadInputError, match="20x20 with 12 channels is more than the 266 pixels allowed"):
        images.image_size(tiff({**BANDS, 256: 20, 257: 20}), max_pixels=400)


# What runs each file in turn. The peak only rises, so the first file after which it is too high is the one to blame.
_MEASURE = """
import json, pathlib, re, sys
from p2p.errors import BadInputError
from p2p.storage import images
from p2p.storage.pixels import PixelFormat

def peak():  # in MB; getrusage would begin with that of the process which started this one
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024 / 1e6

wanted = PixelFormat(*json.loads(sys.argv[1]))
before = peak()
for path in sys.argv[2:]:
    data = pathlib.Path(path).read_bytes()
    kind = ""
    for read in (images.image_size, lambda data: images.decode(data, wanted)):
        try:
            read(data)
        except BadInputError as error:
            kind = error.kind
    print(json.dumps([path, kind, peak() - before]))
"""


def growth(folder: Path, files: dict[str, bytes], wanted: tuple[int, int] = (3, 8)) -> dict[str, tuple[str, float]]:
    """Decode `files` in one process: how each was refused, and how many MB the peak of memory had risen by then."""
    for number, data in enumerate(files.values()):
        (folder / str(number)).write_bytes(data)
    paths = [str(folder / str(number)) for number in range(len(files))]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, json.dumps(wanted), *paths], capture_output=True, text=True, check=True
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (kind, grown) for name, (_, kind, grown) in zip(files, told, strict=True)}


def test_small_files_take_little_memory(tmp_path: Path) -> None:
    """Below 120 MB each; each was 400 MB and more, or is of its kind. What is beside the pixels is not even read."""
    exif = struct.pack("<HHIH", 0x4949, 42, 8, 5000) + b"".join(
        struct.pack("<HHII", number, 7, 200_000, 8) for number in range(0x200, 0x200 + 5000)
    )
    text = b"".join(chunk(b"zTXt", b"%d\0\0" % number + deflated(MB)) for number in range(200))
    files = {
        **hostile_tiffs(),
        "a strip that inflates to 400 MB": tiff(GRAY, deflated(400 * MB)),
        "EXIF tags that share their bytes": png(16, 16, row=16, extra=chunk(b"eXIf", exif.ljust(300_000, b"\0"))),
        "many texts": png(16, 16, row=16, extra=text),
        "one large text": png(16, 16, row=16, extra=chunk(b"iTXt", b"a\0\1\0\0\0" + deflated(400 * MB))),
        "a large profile": png(16, 16, row=16, extra=chunk(b"iCCP", b"a\0\0" + deflated(400 * MB))),
        "a WebP of too many pixels": black_webp(16_384, 10_001),
        "a PNG of too many pixels": png(13_300, 13_300, depth=1, row=1663),
    }
    assert all(len(data) < 4 * MB for data in files.values())
    found = growth(tmp_path, files) | {
        f"{name}, as 12 bands": told for name, told in growth(tmp_path, hostile_tiffs(), (12, 8)).items()
    }
    assert {name: told for name, told in found.items() if told[1] > 120} == {}
    read_whole = {name for name, (kind, _) in found.items() if not kind}
    beside_the_pixels = {"EXIF tags that share their bytes", "many texts", "one large text", "a large profile"}
    assert read_whole == {"a strip that inflates to 400 MB"} | beside_the_pixels


def black_webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour, 34 bytes."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes.fromhex("071011fd0f4444ff03")  # all black, as libwebp writes it
    inner = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def test_what_a_large_image_takes_is_in_proportion_to_its_pixels(tmp_path: Path) -> None:
    """16 bytes a pixel at most, whatever the format, and what a process takes anyway. It was 14, and 22 for WebP."""
    side, exif = 3000, Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(noise(30, 30)).resize((side, side))
    files = {
        "1 bit": (saved(picture.convert("1")), 7),
        "gray": (saved(picture.convert("L")), 7),
        "palette": (saved(picture.convert("P")), 7),
        "16 bit": (saved(Image.fromarray(np.zeros((side, side), np.uint16))), 9),
        "RGB": (saved(picture, compress_level=1), 13),
        "RGBA": (saved(picture.convert("RGBA"), compress_level=1), 13),
        "turned": (saved(picture, compress_level=1, exif=exif), 13),
        "CMYK": (saved(picture.convert("CMYK"), "JPEG"), 13),
        "progressive": (saved(picture, "JPEG", progressive=True, subsampling=0), 13),
        "TIFF": (saved(picture, "TIFF", compression="tiff_lzw"), 16),  # the file, with other tags, is there twice
        "GIF": (saved(picture.quantize(), "GIF"), 16),
        "PPM": (saved(picture, "PPM"), 16),
        "BMP": (saved(picture, "BMP"), 16),  # the file itself has 3
        "32 bit": (saved(Image.fromarray(np.zeros((side, side), np.int32)), "TIFF"), 16),  # and this one 4
        "progressive CMYK": (saved(picture.convert("CMYK"), "JPEG", progressive=True), 16),
        "WebP": (saved(picture, "WEBP", method=0), 20),
        "WebP without loss": (saved(picture, "WEBP", method=0, quality=0, lossless=True), 20),
        "AVIF": (saved(picture, "AVIF", speed=10), 26),
    }
    assert [most for _, most in files.values()] == sorted(most for _, most in files.values())
    found = growth(tmp_path, {name: data for name, (data, _) in files.items()})
    # Up to 5 MB more are the process's own: modules, pages that the allocator keeps. A copy of an image has 9 or more.
    taken = {name: (kind, (grown - 5) * MB / side**2) for name, (kind, grown) in found.items()}
    assert {name: told for name, told in taken.items() if told[0] or told[1] > files[name][1]} == {}


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000"])
def test_formats_that_take_more_memory_may_have_fewer_pixels(format: str) -> None:
    data = saved(Image.fromarray(noise(30, 30)), format)
    assert images.decode(data, max_pixels=1800).shape == (30, 30, 3)
    with pytest.raises(BadInputError, match="30x30 is more than the 899 pixels allowed"):
        images.decode(data, max_pixels=1799)


def test_too_little_memory_is_no_damage_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(8000, 8000, row=8000))
    code = """
import pathlib, resource, sys
from p2p.storage import images
data = pathlib.Path(sys.argv[1]).read_bytes()
now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 30_000_000,) * 2)
try:
    images.decode(data)
except MemoryError:
    print("MemoryError")
"""
    run = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "MemoryError\n"
    with pytest.raises(BadInputError), images.decoder_errors(PNG):
        raise RecursionError("so deep is no image")


def test_a_jpeg_has_a_bounded_header() -> None:
    """Pillow reads fill bytes one by one and puts EXIF together piece by piece: 65 MB took minutes."""
    plain = saved(Image.new("RGB", (8, 8)), "JPEG")
    profile = b"\xff\xe2\xff\xff" + b"ICC_PROFILE\x00" + bytes(65_521)
    exif = b"\xff\xe1\x00\x08Exif\x00\x00"
    headers = {
        "fill bytes": (b"\xff" * 100_000, "DamagedImage"),
        "zeros": (b"\xff\xfe\x00\x02" + bytes(100_000), "DamagedImage"),
        "markers": (b"\xff\xd0" * 100_000, "DamagedImage"),
        "comments": (b"\xff\xfe\x00\x02" * 100_000, "TooManySegments"),
        "EXIF": (exif * 65, "TooManySegments"),
        "a profile": (profile * 255, ""),
        "padding": (b"\xff" * 1000, ""),
        "no end": (b"\xff\xe1\xff\xff", "DamagedImage"),
    }
    found = {}
    for name, (header, _) in headers.items():
        try:
            images.decode(plain[:2] + header + plain[2:])
            found[name] = ""
        except BadInputError as error:
            found[name] = error.kind
    assert found == {name: kind for name, (_, kind) in headers.items()}
