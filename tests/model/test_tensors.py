"""What pixels mean to the networks: both depths, and label maps as class planes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import p2p
from p2p.errors import CheckpointError, UsageError
from p2p.model.checkpoint import load_generator, load_trainer, save_checkpoint
from p2p.model.config import ModelConfig, class_planes
from p2p.model.engine import Engine, choose_precision
from p2p.model.metrics import measure
from p2p.model.tensors import InputEncoder, to_model_range, to_pixels

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255), (250, 250, 250))
ONE_HOT = {"input_channels": 6, "input_encoding": "onehot:6", "input_palette": PALETTE}
SMALL = {"generator": "unet_64", "discriminator": "patch_16", "ngf": 4, "ndf": 4, "crop_size": 64}


def label_map(bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    classes = np.random.default_rng(0).integers(0, len(PALETTE), (2, 64, 64))
    colours = np.array(PALETTE, np.uint16 if bits == 16 else np.uint8)[classes]
    return classes, colours * 257 if bits == 16 else colours


def test_every_16_bit_value_survives_the_model_range() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256, 1)
    tensor = to_model_range(values)
    assert tensor.dtype == torch.float32 and tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(to_pixels(tensor, 16).numpy(), values)
    beyond = to_pixels(torch.tensor([-7.0, 0.0, 9.0]).reshape(1, 1, 1, 3), 16)
    assert beyond.flatten().tolist() == [0, 32768, 65535]


def test_widened_8_bit_pixels_mean_the_same() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert torch.allclose(to_model_range(values), to_model_range(values.astype(np.uint16) * 257), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_each_class_is_one_in_its_own_plane_and_zero_elsewhere(bits: int) -> None:
    classes, colours = label_map(bits)
    planes = InputEncoder(ModelConfig(**ONE_HOT))(colours)
    assert planes.shape == (2, 6, 64, 64) and planes.is_contiguous(memory_format=torch.channels_last)
    assert set(planes.unique().tolist()) == {0.0, 1.0}
    assert np.array_equal(planes.argmax(1).numpy(), classes)
    assert (planes.sum(1) == 1).all() and not planes[:, len(PALETTE) :].any()


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3))
@example([128, 0, 128])  # as far from red as from blue
@settings(max_examples=30)
def test_a_colour_between_classes_takes_the_nearest_and_of_two_the_first(colour: list[int]) -> None:
    planes = InputEncoder(ModelConfig(**ONE_HOT))(np.array(colour, np.uint8).reshape(1, 1, 1, 3))
    distances = ((np.array(PALETTE) - np.array(colour)) ** 2).sum(1)
    assert planes.argmax() == distances.argmin() and planes.sum() == 1


def test_classes_are_told_apart_under_autocast_too() -> None:
    close = ((100, 100, 100), (101, 100, 100))
    encode = InputEncoder(ModelConfig(input_channels=2, input_encoding="onehot:2", input_palette=close))
    pixels = np.array(close, np.uint8).reshape(1, 1, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert encode(pixels).argmax(1).flatten().tolist() == [0, 1]


@pytest.mark.parametrize("encoding", ["one-hot", "onehot", "onehot:", "onehot:1", "onehot:33", "onehot:-2", "Colour"])
def test_encodings_that_do_not_exist_are_named_with_what_does(encoding: str) -> None:
    with pytest.raises(UsageError, match=f"input_encoding {encoding}: use colour, or onehot:N for 2 to 32 classes"):
        class_planes(encoding)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_encoding": "onehot:3", "input_channels": 3, "input_palette": PALETTE}, "4 colours; use onehot:4"),
        ({"input_encoding": "onehot:3", "input_channels": 3}, "no palette; use colour"),
        ({**ONE_HOT, "input_channels": 3}, "input_channels 3: input_encoding onehot:6 makes 6"),
        ({"input_palette": PALETTE}, "input_encoding colour: takes no palette"),
        ({"bits": 12}, "bits 12: use one of 8, 16"),
    ],
)
def test_a_model_of_planes_needs_its_palette(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ModelConfig(**values)


def test_a_checkpoint_carries_depth_and_palette(tmp_path) -> None:
    config = ModelConfig(**SMALL, **ONE_HOT, output_channels=1, bits=16)
    model = p2p.Pix2Pix(config)
    save_checkpoint(str(tmp_path), model, {}, {})
    generator = load_generator(str(tmp_path))
    assert generator.config == config
    assert torch.equal(generator.encode(label_map(16)[1]), model.encode(label_map(16)[1]))
    other = p2p.Pix2Pix(ModelConfig(**SMALL, **{**ONE_HOT, "input_palette": PALETTE[::-1]}, output_channels=1, bits=16))
    with pytest.raises(CheckpointError, match="input_palette is"):
        load_trainer(str(tmp_path), other)


def test_an_update_learns_from_planes_and_16_bits() -> None:
    model = p2p.Pix2Pix(ModelConfig(**SMALL, **ONE_HOT, output_channels=12, bits=16))
    targets = np.full((2, 64, 64, 12), 60000, np.uint16)
    losses = [model.update(model.encode(label_map(16)[1]), to_model_range(targets)) for _ in range(3)]
    assert all(torch.isfinite(loss) for step in losses for loss in step.values())
    assert losses[-1]["g_l1"] < losses[0]["g_l1"]


def test_the_engine_takes_and_gives_the_models_depth() -> None:
    model = p2p.Pix2Pix(ModelConfig(**SMALL, input_channels=12, output_channels=2, bits=16))
    engine = Engine(model.generator, tile_size=64, batch_size=2)
    tiles = np.random.default_rng(2).integers(0, 65536, (3, 64, 64, 12), dtype=np.uint16)
    outputs = engine(tiles)
    with torch.inference_mode():
        expected = to_pixels(model.generator.eval()(to_model_range(tiles)), 16).numpy()
    assert outputs.dtype == np.uint16 and outputs.shape == (3, 64, 64, 2)
    assert np.abs(outputs.astype(int) - expected).max() <= 4
    with pytest.raises(ValueError, match="uint16"):
        engine(tiles.astype(np.uint8))


def test_16_bits_are_not_thrown_away_by_an_arithmetic_of_8(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert choose_precision("auto", "cpu") == "bf16"
    assert choose_precision("auto", "cpu", 16) == "fp32"
    assert choose_precision("bf16", "cpu", 16) == "bf16"


def test_metrics_of_16_bit_images_are_those_of_the_same_images_in_8() -> None:
    rng = np.random.default_rng(3)
    pairs = [rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8) for _ in range(2)]
    names = ["l1", "psnr", "ssim", "pixel_accuracy", "palette_accuracy"]
    narrow = measure(*map(torch.from_numpy, pairs), names, PALETTE)
    wide = measure(*(torch.from_numpy(x.astype(np.uint16) * 257) for x in pairs), names, PALETTE)
    for name in names:
        assert torch.allclose(narrow.values[name], wide.values[name]), name
    black, nearly = (torch.from_numpy(np.full((1, 16, 16, 5), value, np.uint16)) for value in (0, 1))
    assert measure(black, nearly, ["l1"]).values["l1"].item() == pytest.approx(1 / 65535)
