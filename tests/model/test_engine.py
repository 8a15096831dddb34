import numpy as np
import pytest
import torch
from formula_weights import fill

from p2p.errors import UsageError
from p2p.model.config import ModelConfig
from p2p.model.engine import (
    Engine,
    choose_device,
    choose_engine_precision,
    choose_precision,
)
from p2p.model.inference_layers import KeyedDropout, PerSampleNorm, SignBitReLU, pad_thin_layers
from p2p.model.networks import build_generator
from p2p.model.tensors import to_model_range, to_pixels

TILES = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)
KEYS = [f"image-{index}" for index in range(7)]


def small_generator(**values):
    config = {"generator": "unet_64", "crop_size": 64, "ngf": 8, **values}
    return fill(build_generator(ModelConfig(**config)), "generator").eval()


def engine(generator, **values):
    return Engine(generator, **{"tile_size": 64, "batch_size": 4, **values})


def plain(generator, tiles):
    with torch.inference_mode():
        return to_pixels(generator(to_model_range(tiles))).numpy()


def steps(a, b):
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize("name", ["unet_64", "resnet_6"])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_the_engine_gives_what_the_generator_gives(name, norm):
    generator = small_generator(generator=name, norm=norm)
    expected = plain(generator, TILES)
    assert expected.std() > 5
    assert steps(engine(generator)(TILES), expected).max() <= 1
    assert steps(engine(generator, precision="bf16")(TILES), expected).mean() <= 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm_mode", ["running", "batch"])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_tile_depends_on_nothing_but_itself(precision, norm_mode, dropout):
    run = engine(small_generator(), precision=precision, norm_mode=norm_mode, dropout=dropout)
    together = run(TILES, KEYS)
    order = [3, 6, 0, 2, 5, 1, 4]
    assert np.array_equal(run(TILES[order], [KEYS[i] for i in order]), together[order])
    alone = np.concatenate([run(TILES[i : i + 1], KEYS[i : i + 1]) for i in range(7)])
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("tile_size, threads, batches", [(64, 3, 3), (64, None, 1), (None, 2, 0)])
def test_warming_up_computes_a_batch_for_each_thread_and_changes_no_result(monkeypatch, tile_size, threads, batches):
    run = engine(small_generator(), tile_size=tile_size, threads=threads)
    expected = run(TILES)
    computed = []
    forward = run._forward
    monkeypatch.setattr(run, "_forward", lambda tiles: computed.append(len(tiles)) or forward(tiles))
    run.warm_up()
    assert computed == [4] * batches
    assert np.array_equal(run(TILES), expected)


def test_relu_by_sign_bit_is_relu_for_every_bfloat16():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]
    expected = torch.relu(numbers)
    assert torch.equal(SignBitReLU(torch.nn.ReLU(inplace=True))(numbers.clone()), expected)


def test_own_statistics_are_those_of_training_mode_with_a_batch_of_one():
    generator = small_generator(dropout=False)
    found = engine(generator, norm_mode="batch")(TILES)
    generator.train()
    expected = np.concatenate([plain(generator, TILES[i : i + 1]) for i in range(7)])
    assert steps(found, expected).max() <= 1
    assert steps(found, engine(small_generator())(TILES)).max() > 1


def test_noise_is_reproducible_by_seed_and_key():
    generator = small_generator()
    run = engine(generator, dropout=True)
    same = TILES[[0, 0, 0]]
    a, b, again = run(same, ["a", "b", "a"])
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, engine(generator, dropout=True, seed=1)(same, ["a", "b", "a"])[0])
    assert not np.array_equal(a, engine(generator)(same)[0])


def test_noise_drops_half_of_the_features_and_keeps_their_mean():
    dropout = KeyedDropout(torch.nn.Dropout(0.5))
    dropout.seeds = [1, 2]
    found = dropout(torch.ones(3, 16, 32, 32))
    assert set(found[:2].unique().tolist()) == {0.0, 2.0}
    assert found[:2].mean().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(found[0], found[1])
    assert (found[2] == 1).all()


def test_the_generator_given_stays_as_it_was():
    generator = small_generator()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    engine(generator, precision="bf16", dropout=True)(TILES, KEYS)
    after = generator.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_no_tiles_give_no_tiles_and_other_channel_counts_work():
    generator = small_generator(input_channels=1, output_channels=2)
    run = engine(generator)
    assert run(TILES[:0, ..., :1]).shape == (0, 64, 64, 2)
    assert run(TILES[..., :1]).shape == (7, 64, 64, 2)


def test_without_a_tile_size_any_multiple_of_the_stride_goes():
    run = engine(small_generator(generator="resnet_6"), tile_size=None)
    assert run(TILES[:1, :8, :52]).shape == (1, 8, 52, 3)
    with pytest.raises(ValueError, match="a multiple of 4"):
        run(TILES[:1, :7])


def test_wrong_tiles_and_sizes_are_told():
    generator = small_generator()
    with pytest.raises(UsageError, match=r"tile_size 100: .*multiple of 64; use 128"):
        engine(generator, tile_size=100)
    with pytest.raises(UsageError, match="batch_size 0"):
        engine(generator, batch_size=0)
    with pytest.raises(ValueError, match="uint8"):
        engine(generator)(TILES.astype(np.float32))
    with pytest.raises(ValueError, match="key for each tile"):
        engine(generator, dropout=True)(TILES)
    with pytest.raises(ValueError, match="7 tiles came with 1 keys"):
        engine(generator)(TILES, ["a"])


def test_devices_and_precisions_are_chosen_by_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("false").type == "cpu"
    with pytest.raises(UsageError, match="gpu true"):
        choose_device("true")
    assert choose_precision("fp32", "cpu") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert choose_precision("auto", "cpu") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert choose_precision("auto", "cpu") == "bf16"


def test_cards_without_bfloat16_translate_in_float16_and_train_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_engine_precision("auto", "cuda") == "fp16"
    assert choose_precision("auto", "cuda") == choose_engine_precision("fp32", "cuda") == "fp32"
    assert choose_engine_precision("auto", "cuda", bits=16) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_engine_precision("auto", "cuda:1") == "bf16"


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_float16_is_used_where_its_range_suffices(scale):
    generator = small_generator(norm="none")
    with torch.no_grad():
        next(generator.parameters()).mul_(scale)
    half, exact = engine(generator, precision="fp16"), engine(generator)
    assert steps(half(TILES), exact(TILES)).max() <= (1 if scale == 1 else 0)
    assert len(half.fallbacks) == (scale > 1)
    assert half.precision == ("fp32" if scale > 1 else "fp16")


def test_every_uint8_value_survives_the_model_range():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = to_model_range(values)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(to_pixels(tensor).numpy(), values)
    assert np.array_equal(to_pixels(to_model_range(torch.from_numpy(values))).numpy(), values)
    read_only = values.copy()
    read_only.flags.writeable = False
    assert np.array_equal(to_pixels(to_model_range(read_only)).numpy(), values)
    assert to_pixels(torch.tensor([-7.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5)).flatten().tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]


@pytest.mark.parametrize("name", ["unet_64", "resnet_6"])
@pytest.mark.parametrize("channels", [(3, 1), (12, 3), (8, 8)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_thin_layers_padded_to_eight_channels_change_no_output(name, channels, precision):
    generator = small_generator(generator=name, input_channels=channels[0], output_channels=channels[1])
    tiles = np.random.default_rng(1).integers(0, 256, (4, 64, 64, channels[0]), np.uint8)
    plain, padded = (engine(generator, precision=precision, tile_size=None) for _ in range(2))
    padded._more_planes = pad_thin_layers(padded._network)
    assert (channels[0] + padded._more_planes) % 8 == 0
    with torch.inference_mode():
        planes = torch.zeros(1, channels[0] + padded._more_planes, 64, 64).to(padded._dtype)
        assert padded._network(planes).shape[1] == 8
    difference = steps(padded(tiles), plain(tiles))
    if precision == "fp32":
        assert not difference.any()
    else:  # kernels of other widths may round otherwise, by how much depends on the processor
        assert difference.mean() <= 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_statistics_in_channels_last_are_those_of_torch(dtype):
    torch.manual_seed(0)
    layer = torch.nn.BatchNorm2d(8)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    norm = PerSampleNorm(layer).to(dtype)
    pixels = (torch.randn(3, 8, 16, 16) * 5 + 20).to(dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        found = norm._in_layout(pixels)
        expected = norm.double()(pixels.double())
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == dtype
    assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2)
