"""Packed weights change the time, never a bit."""

import numpy as np
import pytest
from formula_weights import fill

from p2p.model import packing
from p2p.model.config import ModelConfig
from p2p.model.engine import Engine
from p2p.model.networks import build_generator

TILES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def generator_of(name, norm="batch"):
    config = ModelConfig(generator=name, crop_size=64, ngf=8, norm=norm)
    return fill(build_generator(config), "generator").eval()


@pytest.mark.parametrize("name, norm", [("unet_64", "batch"), ("unet_64", "instance"), ("resnet_6", "none")])
def test_a_packed_network_gives_the_same_bits(name, norm):
    generator = generator_of(name, norm)
    packed = Engine(generator, tile_size=64, batch_size=4, precision="bf16")
    plain = Engine(generator, tile_size=None, batch_size=4, precision="bf16")
    expected = plain(TILES)
    assert expected.std() > 5
    assert np.array_equal(packed(TILES), expected)
    assert np.array_equal(packed.with_batch_size(2)(TILES), plain.with_batch_size(2)(TILES))


def test_where_nothing_can_be_packed_the_network_stays_as_it_is_and_says_so(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("bf16 path needs a processor with avx512")

    generator = generator_of("unet_64")
    packed = Engine(generator, tile_size=64, batch_size=2, precision="bf16")
    monkeypatch.setattr(packing._PackedConvolution, "__init__", refuse)
    slower = Engine(generator, tile_size=64, batch_size=2, precision="bf16")
    assert np.array_equal(slower(TILES), packed(TILES))
    assert Engine(generator, tile_size=64, batch_size=2, precision="fp32").fallbacks == []
    assert len(slower.fallbacks) == 1 and "runs slower: bf16 path needs" in slower.fallbacks[0]
