import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from p2p.data.augment import CropSettings, centre_crop, jitter
from p2p.data.pairs import Pair
from p2p.errors import BadInputError
from p2p.storage.pixels import PixelFormat


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose every pixel tells where it is."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8)


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(1, 8), st.integers(0, 99), st.text("az09/é鳥", max_size=9))
def test_both_sides_get_the_same_window_of_the_image(height, width, crop, epoch, pair_id):
    image = coordinates(height, width)
    a, b = jitter(image, image.copy(), crop, seed=0, epoch=epoch, pair_id=pair_id)
    assert a.shape == (crop, crop, 3)
    assert np.array_equal(a, b)
    top, left = a[0, :, :2].min(axis=0)
    window = image[top : top + crop, left : left + crop]
    assert np.array_equal(a, window) or np.array_equal(a, window[:, ::-1])


def test_the_choice_depends_on_seed_epoch_and_pair_alone():
    image = coordinates(60, 60)

    def crop(**key):
        return jitter(image, image, 30, **{"seed": 0, "epoch": 1, "pair_id": "x", **key})[0].tobytes()

    assert crop() == crop()
    assert len({crop(), crop(seed=1), crop(epoch=2), crop(pair_id="y")}) == 4


def test_crops_reach_every_place_and_half_are_mirrored():
    image = coordinates(9, 9)
    crops = [jitter(image, image, 8, seed=0, epoch=1, pair_id=str(n))[0] for n in range(400)]
    assert {(int(c[0, :, 0].min()), int(c[0, :, 1].min())) for c in crops} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    mirrored = sum(int(c[0, 0, 1]) > int(c[0, 1, 1]) for c in crops)
    assert 150 < mirrored < 250


def test_nothing_is_mirrored_without_flip():
    image = coordinates(9, 9)
    crops = [jitter(image, image, 8, seed=0, epoch=1, pair_id=str(n), flip=False)[0] for n in range(50)]
    assert all(c[0, 0, 1] < c[0, 1, 1] for c in crops)


@pytest.mark.parametrize("wanted", [PixelFormat(3, 8), PixelFormat(1, 16), PixelFormat(12, 8)], ids=str)
def test_a_row_holds_both_sides_as_they_are_cropped(wanted):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (9, 10, wanted.channels)).astype(wanted.dtype) for _ in range(2))
    crop = CropSettings(8, flip=True, swap=True, formats=(wanted, wanted))
    rows = np.zeros((20, crop.pair_values), wanted.dtype)
    for number, row in enumerate(rows):
        sides = jitter(b, a, 8, seed=0, epoch=1, pair_id=str(number))
        crop.crop(Pair(pair_id=str(number), a=a, b=b), 1, row)
        assert np.array_equal(row, np.concatenate(sides, axis=None))
    inputs, targets = crop.sides(rows)
    assert inputs.shape == targets.shape == (20, 8, 8, wanted.channels)


def test_the_centre_crop_is_the_middle():
    a, b = centre_crop(coordinates(10, 20), coordinates(10, 20), 4)
    assert np.array_equal(a, b)
    assert tuple(a[0, 0, :2]) == (3, 8)


@pytest.mark.parametrize("crop", [jitter, centre_crop])
def test_pairs_that_do_not_fit_are_bad_inputs(crop):
    key = {"seed": 0, "epoch": 1, "pair_id": "x"} if crop is jitter else {}
    with pytest.raises(BadInputError, match="a is 8x9, b is 8x8"):
        crop(coordinates(9, 8), coordinates(8, 8), 4, **key)
    with pytest.raises(BadInputError, match="smaller than crop_size 9"):
        crop(coordinates(8, 20), coordinates(8, 20), 9, **key)
