"""1 to 16 channels of 8 or 16 bit: kept without loss, read as wanted, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from p2p.errors import BadInputError, UsageError
from p2p.storage import images
from p2p.storage.images import decode, encode_exactly, image_size
from p2p.storage.pixels import RGB, PixelFormat, parse_format

Noise = np.ndarray[Any, Any]
channels_and_bits = st.tuples(st.integers(1, 16), st.sampled_from([8, 16]))


def noise(height: int, width: int, channels: int, bits: int = 8) -> Noise:
    dtype = np.uint16 if bits == 16 else np.uint8
    return np.random.default_rng(channels).integers(0, 1 << bits, (height, width, channels), dtype=dtype)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(image: Noise, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return buffer.getvalue()


def deep_png(values: Noise) -> bytes:
    """RGB of 16 bit, which Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def kind_of(data: bytes, wanted: PixelFormat, **options: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        decode(data, wanted, **options)
    return caught.value.kind


@given(channels_and_bits, st.integers(1, 20), st.integers(1, 20))
def test_every_channel_and_depth_comes_back_as_it_was(kind: tuple[int, int], height: int, width: int) -> None:
    image = noise(height, width, *kind)
    data = encode_exactly(image)
    assert image_size(data) == (width, height)
    back = decode(data, PixelFormat(*kind))
    assert back.dtype == image.dtype and np.array_equal(back, image)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_multi_band_tiffs_of_others_are_read(planar: str, compression: str | None, order: str) -> None:
    image = noise(9, 11, 7, 16)
    stored = np.moveaxis(image, 2, 0) if planar == "separate" else image
    data = tiff(stored, planarconfig=planar, compression=compression, byteorder=order)
    assert np.array_equal(decode(data, PixelFormat(7, 16)), image)
    assert np.array_equal(decode(data, PixelFormat(7, 8)), image >> 8)


@given(
    st.tuples(st.integers(2, 16), st.sampled_from([8, 16])),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from([{}, {"rowsperstrip": 3}, {"tile": (16, 16)}, {"tile": (32, 48)}]),
    st.sampled_from([{}, {"compression": 8}, {"compression": 32946}, {"compression": 8, "predictor": True}]),
    st.sampled_from([{"byteorder": "<"}, {"byteorder": ">"}, {"bigtiff": True}]),
    st.booleans(),
)
def test_strips_and_tiles_are_put_together(
    kind: tuple[int, int],
    size: tuple[int, int],
    layout: dict[str, Any],
    compression: dict[str, Any],
    order: dict[str, Any],
    separate: bool,
) -> None:
    image = noise(*size, *kind)
    stored = np.moveaxis(image, 2, 0) if separate else image
    planar = "separate" if separate else "contig"
    data = tiff(stored, planarconfig=planar, metadata=None, **layout, **compression, **order)
    assert image_size(data) == size[::-1]
    assert np.array_equal(decode(data, PixelFormat(*kind)), image)


def test_rgb_of_8_bit_is_what_the_plain_reader_makes_of_any_file() -> None:
    rgb = noise(10, 12, 3)
    for data in (saved(Image.fromarray(rgb)), saved(Image.fromarray(rgb), "JPEG"), saved(Image.fromarray(rgb), "TIFF")):
        assert np.array_equal(decode(data), images.decode(data))


def test_one_channel_of_colours_is_their_luma_and_three_of_gray_repeat_it() -> None:
    rgb = noise(10, 12, 3)
    luma = decode(saved(Image.fromarray(rgb)), PixelFormat(1))
    assert np.abs(luma[..., 0] - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    gray = noise(10, 12, 1)
    data = saved(Image.fromarray(gray[..., 0]))
    assert np.array_equal(decode(data, PixelFormat(1)), gray)
    assert np.array_equal(decode(data), gray.repeat(3, axis=2))
    # 16 bit is weighed alike: of widened pixels it is the widened luma, but for rounding.
    deep = decode(tiff(rgb.astype(np.uint16) * 257), PixelFormat(1, 16))
    assert np.abs(deep / 257 - luma).max() <= 0.51


def test_alpha_is_a_channel_only_where_it_is_asked_for() -> None:
    rgba, la = noise(6, 5, 4), noise(6, 5, 2)
    data = saved(Image.fromarray(rgba))
    assert np.array_equal(decode(data, PixelFormat(4)), rgba)
    assert np.array_equal(decode(data), rgba[..., :3])
    data = saved(Image.fromarray(la))
    assert np.array_equal(decode(data, PixelFormat(2)), la)
    assert np.array_equal(decode(data, PixelFormat(1)), la[..., :1])


def test_8_bits_widen_to_the_whole_of_16_and_narrow_back() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    data = encode_exactly(gray)
    wide = decode(data, PixelFormat(1, 16))
    assert wide.min() == 0 and wide.max() == 65535 and np.array_equal(wide, gray.astype(np.uint16) * 257)
    assert np.array_equal(decode(encode_exactly(wide), PixelFormat(1, 8)), gray)


def test_palettes_are_colours_for_every_reader() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) % 2, "P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    expected = np.array([[10, 20, 30], [200, 100, 0]])[np.arange(6).reshape(2, 3) % 2]
    assert np.array_equal(decode(saved(image), PixelFormat(3, 16)), expected * 257)


def test_a_tiff_that_was_held_sideways_is_turned() -> None:
    image = noise(4, 6, 5)
    stored = np.ascontiguousarray(np.rot90(image))  # orientation 6: to be turned clockwise
    data = tiff(stored, extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(decode(data, PixelFormat(5)), image)


def test_channels_that_are_not_there_are_not_invented() -> None:
    bands = tiff(noise(5, 5, 12, 16))
    with pytest.raises(BadInputError, match=r"12 channels of 16 bits .* pixels_a \(or pixels_b\) 12x16"):
        decode(bands, RGB)
    assert kind_of(bands, PixelFormat(1)) == "WrongChannels"
    assert kind_of(saved(Image.fromarray(noise(5, 5, 3))), PixelFormat(4)) == "WrongChannels"


def test_what_cannot_be_read_without_loss_is_refused() -> None:
    assert kind_of(tiff(noise(5, 5, 17)), PixelFormat(16)) == "UnsupportedPixels"
    compression = struct.pack("<HHI", 259, 3, 1)
    jpeg = tiff(noise(5, 5, 4, 16), byteorder="<").replace(compression + b"\1", compression + b"\7")
    assert kind_of(jpeg, PixelFormat(4, 16)) == "UnsupportedPixels"
    with pytest.raises(BadInputError, match="read with 8; store a TIFF"):
        decode(deep_png(noise(5, 4, 3, 16)), PixelFormat(3, 16))
    assert decode(deep_png(noise(5, 4, 3, 16)), PixelFormat(1)).shape == (5, 4, 1)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_band_file_cut_off_anywhere_is_bad_and_never_a_wrong_picture(compression: str | None) -> None:
    data = tiff(noise(40, 40, 6, 16), compression=compression)
    for keep in (0.01, 0.3, 0.6, 0.95):
        assert kind_of(data[: int(len(data) * keep)], PixelFormat(6, 16)) in {"DamagedImage", "NotAnImage"}


def test_a_band_file_of_too_many_pixels_is_refused() -> None:
    assert kind_of(tiff(noise(20, 20, 6)), PixelFormat(6), max_pixels=399) == "TooManyPixels"


@given(st.binary(max_size=300), st.sampled_from([b"II*\x00", b"MM\x00*", b"II+\x00", b"\x89PNG\r\n\x1a\n"]))
def test_rubbish_behind_a_true_signature_is_a_bad_input(rubbish: bytes, signature: bytes) -> None:
    for wanted in (RGB, PixelFormat(5, 16)):
        assert kind_of(signature + rubbish, wanted) in {
            "DamagedImage",
            "NotAnImage",
            "TooManyPixels",
            "UnsupportedPixels",
        }


@given(channels_and_bits, st.integers(1, 30), st.integers(1, 30))
def test_resizing_keeps_channels_depth_and_flat_values(kind: tuple[int, int], height: int, width: int) -> None:
    channels, bits = kind
    flat = np.broadcast_to(noise(1, 1, channels, bits), (9, 7, channels))
    resized = images.resize(np.ascontiguousarray(flat), height, width)
    assert resized.dtype == flat.dtype
    assert np.array_equal(resized, np.broadcast_to(flat[0, 0], (height, width, channels)))


@pytest.mark.parametrize("text", ["3", "0x8", "17x8", "3x12", "x8", "3x", "-1x8", "3x8x8"])
def test_formats_that_cannot_be_are_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"pixels_a .*such as 3x8"):
        parse_format(text, "pixels_a")


@given(channels_and_bits)
def test_a_format_is_read_as_it_is_written(kind: tuple[int, int]) -> None:
    assert parse_format(str(PixelFormat(*kind)), "pixels_b") == PixelFormat(*kind)
