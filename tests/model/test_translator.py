import numpy as np
import pytest
from formula_weights import fill
from PIL import Image

import p2p
from p2p.errors import CheckpointError, UsageError
from p2p.model.checkpoint import save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.sizing import plan_image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def make_checkpoint(folder, **values):
    model = p2p.Pix2Pix(ModelConfig(**{"generator": "unet_64", "crop_size": 64, "ngf": 4, "ndf": 2, **values}))
    fill(model.generator, "generator")
    save_checkpoint(str(folder), model, {}, {})
    return str(folder)


def picture(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("size_mode", ["tile", "resize", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (64, 64), (65, 63), (131, 17), (200, 190)])
def test_any_size_comes_back_the_same_size_and_kind(checkpoint, size_mode, size):
    translator = p2p.Translator(checkpoint, device="cpu", size_mode=size_mode)
    pixels = picture(*size)
    output = translator(pixels)
    assert output.shape == (*size, 3) and output.dtype == np.uint8
    image = translator(Image.fromarray(pixels))
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    assert np.array_equal(np.asarray(image), output)


def test_one_tile_is_what_the_generator_makes_of_it(checkpoint):
    translator = p2p.Translator(checkpoint, device="cpu", precision="fp32")
    from p2p.model.tensors import to_model_range, to_pixels

    pixels = picture(64, 64)
    expected = to_pixels(translator.generator(to_model_range(pixels[None])).detach()).numpy()[0]
    assert np.abs(translator(pixels).astype(int) - expected).max() <= 1


def test_pil_images_of_every_8_bit_mode_are_read_as_rgb(checkpoint):
    translator = p2p.Translator(checkpoint, device="cpu")
    for mode in ("L", "P", "RGBA", "LA", "1", "CMYK"):
        assert translator(Image.fromarray(picture(10, 12)).convert(mode)).size == (12, 10)


def test_a_one_channel_generator_takes_and_gives_gray(tmp_path):
    translator = p2p.Translator(make_checkpoint(tmp_path, input_channels=1, output_channels=1), device="cpu")
    assert translator(Image.fromarray(picture(9, 8))).mode == "L"
    for size_mode in ("tile", "resize", "pad"):
        translator = p2p.Translator(tmp_path, device="cpu", size_mode=size_mode)
        assert translator(picture(9, 8, 1)).shape == (9, 8, 1)


@pytest.mark.parametrize("size_mode", ["tile", "resize", "pad"])
def test_many_channels_of_16_bit_come_back_in_the_same_size_and_depth(tmp_path, size_mode):
    checkpoint = make_checkpoint(tmp_path, input_channels=12, output_channels=2, bits=16)
    translator = p2p.Translator(checkpoint, device="cpu", size_mode=size_mode)
    output = translator(picture(70, 90, 12).astype(np.uint16) * 257)
    assert output.shape == (70, 90, 2) and output.dtype == np.uint16 and output.max() > 255
    with pytest.raises(UsageError, match=r"expected an \(H, W, 12\) uint16 array"):
        translator(picture(70, 90, 12))
    with pytest.raises(UsageError, match="12 channels of 16 bits in; use arrays"):
        translator(Image.fromarray(picture(9, 8)))


def test_a_16_bit_gray_generator_takes_and_gives_16_bit_gray_images(tmp_path):
    translator = p2p.Translator(make_checkpoint(tmp_path, input_channels=1, output_channels=1, bits=16), device="cpu")
    deep = picture(9, 8, 1).astype(np.uint16) * 257
    image = translator(Image.fromarray(deep[..., 0]))
    assert image.mode == "I;16" and np.array_equal(np.asarray(image), translator(deep)[..., 0])
    # An 8-bit image shows the same, so it is translated the same.
    assert np.array_equal(np.asarray(translator(Image.fromarray(picture(9, 8, 1)[..., 0]))), np.asarray(image))


def test_label_maps_are_translated_as_the_classes_they_show(tmp_path):
    palette = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    onehot = {"input_channels": 4, "input_encoding": "onehot:4", "input_palette": palette}
    translator = p2p.Translator(make_checkpoint(tmp_path, **onehot), device="cpu")
    clean = np.array(palette, np.uint8)[np.random.default_rng(0).integers(0, 3, (70, 90))]
    noise = np.random.default_rng(1).integers(-20, 21, clean.shape)
    expected = translator(clean)
    assert np.array_equal(translator(np.clip(clean + noise, 0, 255).astype(np.uint8)), expected)
    indexed = Image.fromarray(clean).convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    assert np.array_equal(np.asarray(translator(indexed)), expected)
    assert not np.array_equal(translator(np.ascontiguousarray(clean[:, ::-1])), expected)


def test_noise_is_reproducible_by_seed_and_key(checkpoint):
    translator = p2p.Translator(checkpoint, device="cpu", dropout=True)
    pixels = picture(100, 100)
    assert np.array_equal(translator(pixels, key="a"), translator(pixels, key="a"))
    assert not np.array_equal(translator(pixels, key="a"), translator(pixels, key="b"))


def test_wrong_inputs_are_told(checkpoint, tmp_path):
    translator = p2p.Translator(checkpoint, device="cpu")
    for wrong in (picture(4, 4, 4), picture(4, 4)[..., 0], picture(4, 4).astype(np.float32), picture(4, 4)[:0]):
        with pytest.raises(UsageError, match=r"expected an \(H, W, 3\) uint8 array"):
            translator(wrong)
    with pytest.raises(UsageError, match="more than 8 bits"):
        translator(Image.fromarray(np.zeros((4, 4), np.uint16)))
    with pytest.raises(UsageError, match="size_mode 'crop'"):
        p2p.Translator(checkpoint, size_mode="crop")
    with pytest.raises(UsageError, match="tile_size 100"):
        p2p.Translator(checkpoint, device="cpu", tile_size=100)
    with pytest.raises(UsageError, match="overlap 64"):
        p2p.Translator(checkpoint, device="cpu", overlap=64)
    with pytest.raises(CheckpointError, match="nothing is there"):
        p2p.Translator(str(tmp_path / "absent"))


@pytest.mark.parametrize("mode, shape, count", [("tile", (64, 64), 6), ("resize", (64, 64), 1), ("pad", (160, 128), 1)])
def test_plans_tell_what_the_network_will_get(mode, shape, count):
    plan = plan_image(150, 100, size_mode=mode, tile_size=64, overlap=16, stride=32)
    assert len(plan) == count
    tiles = plan.split(picture(150, 100))
    assert tiles.shape == (count, *shape, 3)
    assert plan.join(tiles).shape == (150, 100, 3)


def test_the_public_names_are_these():
    assert sorted(p2p.__all__) == [
        "ModelConfig",
        "PatchDiscriminator",
        "Pix2Pix",
        "Translator",
        "UNetGenerator",
        "load_generator",
    ]
    assert all(hasattr(p2p, name) for name in p2p.__all__)
    assert set(p2p.__all__) <= set(dir(p2p))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        p2p.nonsense  # noqa: B018
