"""The embedded data set: what its maps hold, and that its pictures depend on their numbers alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.synthetic.pairs import PALETTE, city_pair

COLOURS = np.array(list(PALETTE.values()))


def classes_of(city_map: np.ndarray) -> np.ndarray:
    return np.abs(city_map[:, :, None].astype(int) - COLOURS).sum(-1).argmin(-1)


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=25, deadline=None)
def test_a_pair_of_any_size_is_a_photograph_and_a_map_of_palette_colours(
    seed: int, index: int, height: int, width: int
) -> None:
    aerial, city_map = city_pair(seed, index, height, width)
    assert aerial.shape == city_map.shape == (height, width, 3)
    assert aerial.dtype == city_map.dtype == np.uint8
    assert {tuple(colour) for colour in city_map.reshape(-1, 3).tolist()} <= set(PALETTE.values())


def test_equal_numbers_give_equal_pixels_whatever_was_drawn_between() -> None:
    first = city_pair(7, 3, 96, 128)
    city_pair(7, 4, 64, 64)
    again = city_pair(7, 3, 96, 128)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("other", [(7, 4), (8, 3)])
def test_another_seed_or_index_is_another_city(other: tuple[int, int]) -> None:
    here, there = city_pair(7, 3, 96, 96)[1], city_pair(*other, 96, 96)[1]
    assert (here != there).any(-1).mean() > 0.1


def test_palette_colours_are_clearly_apart() -> None:
    distances = np.linalg.norm(COLOURS[:, None] - COLOURS[None], axis=-1)
    assert distances[~np.eye(len(COLOURS), dtype=bool)].min() > 60


def test_every_class_is_common_and_looks_like_itself() -> None:
    """The mean colour of a class in one half of the pictures is nearest to its own in the other half."""
    means = np.zeros((2, len(COLOURS), 3))
    shares = np.zeros(len(COLOURS))
    for half in (0, 1):
        pixels: list[list[np.ndarray]] = [[] for _ in COLOURS]
        for index in range(half, 40, 2):
            aerial, city_map = city_pair(11, index, 192, 192)
            classes = classes_of(city_map)
            for number, colours in enumerate(pixels):
                colours.append(aerial[classes == number])
                shares[number] += (classes == number).mean() / 40
        means[half] = [np.concatenate(colours).mean(axis=0) for colours in pixels]
    nearest = np.linalg.norm(means[0][:, None] - means[1][None], axis=-1).argmin(axis=1)
    assert nearest.tolist() == list(range(len(COLOURS)))
    assert shares.min() > 0.01
    assert shares.max() < 0.7


def test_a_large_scene_holds_every_class() -> None:
    aerial, city_map = city_pair(1, 0, 1100, 500)
    assert aerial.shape == (1100, 500, 3)
    assert len(np.unique(classes_of(city_map))) == len(COLOURS)
    # Rows are worked on in bands; no seam may show where two meet.
    steps = np.abs(np.diff(aerial.astype(float).mean(axis=(1, 2))))
    assert steps[511] < steps.mean() + 6 * steps.std()
