"""Which images are cut into tiles, and which would need too many."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from p2p.errors import BadInputError
from p2p.translation.pipeline.windows import SizePolicy


def blank(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(0), (height, width, 3))  # takes no memory


@pytest.mark.parametrize("width, height", [(1_000_000, 1), (1, 1_000_000), (1_000_000, 12), (4_000_000, 1)])
def test_an_image_so_thin_that_its_tiles_are_mostly_reflection_is_refused_before_they_are_planned(
    width: int, height: int
) -> None:
    tracemalloc.start()
    with pytest.raises(
        BadInputError, match=f"{width}x{height} is so thin .* tiles of 256x256 .* cut it into shorter"
    ) as caught:
        SizePolicy("tile", 256, 64, 256)(blank(height, width))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.kind == "TooManyTiles"
    assert peak < 4e6  # the weights alone would be 183 MB


@pytest.mark.parametrize("overlap", [0, 64, 192])
@pytest.mark.parametrize(
    "width, height", [(1, 1), (20, 5000), (5000, 20), (50_000, 64), (1_000_000, 200), (10_000, 10_000), (300, 257)]
)
def test_images_of_any_ordinary_shape_are_cut(width: int, height: int, overlap: int) -> None:
    assert len(SizePolicy("tile", 256, overlap, 256)(blank(height, width))) >= 1


def test_a_long_strip_is_cut_with_the_usual_overlap() -> None:
    assert len(SizePolicy("tile", 256, 64, 256)(blank(64, 100_000))) == 521


@pytest.mark.parametrize("tile_size", [16, 512, 16_384])
def test_the_tiles_size_does_not_matter(tile_size: int) -> None:
    policy = SizePolicy("tile", tile_size, tile_size // 4, 16)
    assert policy(blank(1, 1)).shape == (tile_size, tile_size)
    assert len(policy(blank(3000, 3000))) >= 1
