"""Every kind of image file becomes (H, W, 3) uint8 RGB, or a reason why not; and back."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from p2p.errors import BadInputError
from p2p.storage import images, pixels
from p2p.storage.images import decode, encode, image_size, resize, split_halves

RGB = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
SMOOTH = np.dstack([np.add.outer(np.arange(48) * f, np.arange(64)) % 256 for f in (1, 2, 3)]).astype(np.uint8)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def kind_of(data: bytes, **options: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        decode(data, **options)
    assert str(caught.value)
    return caught.value.kind


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_png_brings_back_every_pixel(image: np.ndarray) -> None:
    data = encode(image, "png")
    assert image_size(data) == (image.shape[1], image.shape[0])
    back = decode(data)
    assert back.dtype == np.uint8
    assert np.array_equal(back, image)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 31), (17, 3), (48, 64)])
def test_lossy_formats_come_back_near_and_of_the_same_size(format: Any, height: int, width: int) -> None:
    image = SMOOTH[:height, :width] // 2 + 60
    back = decode(encode(image, format, quality=95))
    assert back.shape == image.shape
    assert np.abs(back.astype(int) - image).mean() < 6


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1), (17, 31), (257, 255)])
def test_every_png_level_brings_back_every_pixel(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for image in (noise, noise // 64, np.full_like(noise, 7)):
        for level in (0, 1, 9):
            data = encode(image, "png", png_level=level)
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    monkeypatch.setattr(images, "fpng", None)  # as where it has no wheel
    assert encode(noise, "png", png_level=0) == encode(noise, "png", png_level=1)


def test_a_higher_png_level_is_smaller() -> None:
    sizes = [len(encode(SMOOTH, "png", png_level=level)) for level in (0, 1, 9)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2]


def test_a_higher_quality_is_nearer() -> None:
    errors = [np.abs(decode(encode(SMOOTH, "jpeg", quality)).astype(int) - SMOOTH).mean() for quality in (20, 60, 95)]
    assert errors == sorted(errors, reverse=True)


def test_a_view_with_strides_encodes_like_its_copy() -> None:
    for format in ("png", "jpeg", "webp"):
        assert encode(SMOOTH[:, ::-2], format) == encode(SMOOTH[:, ::-2].copy(), format)


def test_gray_is_repeated() -> None:
    gray = RGB[..., 0]
    expected = np.repeat(gray[..., None], 3, 2)
    assert np.array_equal(decode(saved(Image.fromarray(gray))), expected)
    assert np.array_equal(decode(saved(Image.fromarray(gray), "TIFF")), expected)
    assert np.ptp(decode(saved(Image.fromarray(gray), "JPEG")), axis=2).max() == 0


def test_one_bit_is_black_and_white() -> None:
    bits = RGB[..., 0] > 127
    assert np.array_equal(decode(saved(Image.fromarray(bits))), np.repeat(np.uint8(255) * bits[..., None], 3, 2))


def test_a_palette_image_takes_its_palettes_colours() -> None:
    palette = [10, 20, 30, 200, 100, 0, 255, 255, 255]
    indices = (RGB[..., 0] % 3).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette)
    expected = np.array(palette, np.uint8).reshape(3, 3)[indices]
    assert np.array_equal(decode(saved(image)), expected)
    assert np.array_equal(decode(saved(image, transparency=0)), expected)


def test_alpha_is_dropped_and_the_stored_colours_stay() -> None:
    alpha = np.where(RGB[..., :1] > 99, 255, 0).astype(np.uint8)
    rgba = np.concatenate([RGB, alpha], axis=2)
    for format in ("PNG", "TIFF"):
        assert np.array_equal(decode(saved(Image.fromarray(rgba), format)), RGB)
    gray_alpha = np.concatenate([RGB[..., :1], alpha], axis=2)
    assert np.array_equal(decode(saved(Image.fromarray(gray_alpha, "LA"))), np.repeat(RGB[..., :1], 3, 2))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(format: str) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (9, 8), dtype=np.uint16)
    values[0, :2] = 0, 65535
    back = decode(saved(Image.fromarray(values), format))
    assert np.array_equal(back, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2))


def test_sixteen_bit_rgb_keeps_its_upper_eight() -> None:
    values = np.random.default_rng(2).integers(0, 65536, (5, 4, 3), dtype=np.uint16)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(decode(png), (values >> 8).astype(np.uint8))


def test_cmyk_is_converted() -> None:
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[..., 0] = 255  # cyan ink only
    red, green, blue = decode(saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95))[8, 8].astype(int)
    assert red < 40 < 200 < min(green, blue)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16", "I"])
def test_an_image_larger_than_what_is_converted_at_once_has_the_same_pixels(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(3).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    deep = (values[..., 0] * np.uint16(257)).astype(np.uint16 if mode == "I;16" else np.int32)
    picture = Image.fromarray(deep) if mode in ("I;16", "I") else Image.fromarray(values).convert(mode)
    data = saved(picture, "TIFF" if mode == "I" else "PNG")
    expected = decode(data)
    for pixels_at_once in (1, 41, 100, 41 * 36):
        monkeypatch.setattr(pixels, "_PIXELS_AT_ONCE", pixels_at_once)
        assert np.array_equal(decode(data), expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:12, :20], upright[:12, 20:], upright[12:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # How a camera stores the upright picture that a viewer shows by turning it back.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    back = decode(data)
    assert back.shape == upright.shape
    assert np.abs(back[3:9, 3:17].astype(int) - upright[3:9, 3:17]).max() < 30
    assert np.abs(back[15:21, 3:17].astype(int) - upright[15:21, 3:17]).max() < 30


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_that_pillow_sees(subsampling: int, progressive: bool) -> None:
    data = saved(Image.fromarray(SMOOTH), "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode(data).astype(int) - expected).max() <= 1


def test_a_jpeg_that_stores_rgb_itself_keeps_its_colours() -> None:
    data = saved(Image.fromarray(SMOOTH), "JPEG", quality=100, keep_rgb=True)
    assert np.abs(decode(data).astype(int) - SMOOTH).max() <= 3


def test_colour_profiles_and_comments_do_not_disturb() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode(saved(Image.fromarray(RGB), icc_profile=profile)), RGB)
    assert decode(saved(Image.fromarray(RGB), "JPEG", icc_profile=profile, comment=b"x" * 60000)).shape == RGB.shape


@pytest.mark.parametrize("format", ["WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(decode(data), RGB)


def test_a_stereo_jpeg_is_its_first_picture() -> None:
    frames = [Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert np.abs(decode(data).astype(int) - SMOOTH).mean() < 12


def test_bad_files_have_stable_kinds() -> None:
    assert kind_of(b"") == "EmptyFile"
    assert kind_of(b"this is a text file named .jpg") == "NotAnImage"
    assert kind_of(saved(Image.fromarray(RGB), "PCX")) == "NotAnImage"
    assert kind_of(saved(Image.fromarray(RGB.astype(np.float32)[..., 0]), "TIFF")) == "UnsupportedPixels"
    assert kind_of(saved(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF")) == "UnsupportedPixels"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_off_anywhere_is_a_bad_input_and_never_a_wrong_picture(format: str) -> None:
    data = saved(Image.fromarray(np.tile(RGB, (9, 9, 1))), format)
    for keep in (0.02, 0.3, 0.6, 0.9):
        assert kind_of(data[: int(len(data) * keep)]) in {"DamagedImage", "NotAnImage"}


@given(
    st.binary(max_size=300), st.sampled_from([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"II*\x00"])
)
def test_rubbish_behind_a_true_signature_is_a_bad_input(rubbish: bytes, signature: bytes) -> None:
    assert kind_of(signature + rubbish) in {"DamagedImage", "NotAnImage", "TooManyPixels", "UnsupportedPixels"}


def png_header(width: int, height: int) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + chunk + empty


@pytest.mark.parametrize("width, height", [(30_000, 30_000), (17_000, 12_000), (10_001, 10_000)])
def test_a_header_that_claims_too_many_pixels_is_refused_before_any_is_decoded(width: int, height: int) -> None:
    assert kind_of(png_header(width, height)) == "TooManyPixels"
    with pytest.raises(BadInputError):
        image_size(png_header(width, height))


def test_ten_thousand_by_ten_thousand_is_allowed() -> None:
    assert image_size(png_header(10_000, 10_000)) == (10_000, 10_000)


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_the_limit_itself_is_still_allowed(format: Any) -> None:
    data = encode(SMOOTH, format)
    assert decode(data, max_pixels=48 * 64).shape == SMOOTH.shape
    assert kind_of(data, max_pixels=48 * 64 - 1) == "TooManyPixels"


@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_resizing_gives_the_size_asked_for_and_keeps_flat_colour(height: int, width: int) -> None:
    flat = np.full((19, 23, 3), (12, 200, 77), np.uint8)
    assert np.array_equal(resize(flat, height, width), np.broadcast_to(flat[0, 0], (height, width, 3)))


def test_resizing_differs_from_pillow_by_a_level_or_two_in_few_values() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    photograph = noise.resize((400, 300), Image.Resampling.BICUBIC)
    apart = np.asarray(photograph.resize((286, 286), Image.Resampling.BICUBIC)).astype(int)
    apart -= resize(np.asarray(photograph), 286, 286)
    assert np.abs(apart).max() <= 2 and np.count_nonzero(apart) < 0.005 * apart.size


def test_every_channel_is_resized_alike() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (50, 60, 12), dtype=np.uint8)
    together = resize(planes, 20, 30)
    for channel in range(12):
        assert np.array_equal(resize(planes[:, :, channel : channel + 1], 20, 30)[:, :, 0], together[:, :, channel])


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, 16, 16).astype(int)[:, 2:-2] - 127).max() < 12
    assert resize(stripes, 64, 64) is stripes


def test_halves_put_together_are_the_whole() -> None:
    a, b = split_halves(RGB[:, :16])
    assert a.shape == b.shape == (13, 8, 3)
    assert np.array_equal(np.concatenate([a, b], axis=1), RGB[:, :16])
    with pytest.raises(BadInputError, match="17 wide") as caught:
        split_halves(RGB)
    assert caught.value.kind == "OddWidth"
