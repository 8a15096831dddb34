from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2p.errors import UsageError
from p2p.scenes.tiling import RowStitcher, Stitcher, TilePlan, reflect_to

SIDES = st.one_of(st.integers(1, 70), st.sampled_from([97, 127, 131, 200, 257]))
TILES = st.integers(1, 48).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@settings(max_examples=120, deadline=None)
@given(height=SIDES, width=SIDES, tile=TILES)
@example(height=1, width=1, tile=(16, 4))
@example(height=1, width=5000, tile=(64, 16))
@example(height=257, width=131, tile=(7, 6))
@example(height=65, width=64, tile=(64, 0))
def test_tiles_of_any_image_stitch_back_to_it_exactly(height, width, tile):
    plan = TilePlan(height, width, *tile)
    if len(plan) > 3000:
        plan = TilePlan(height, width, 48, tile[1])
    image = picture(height, width)
    tiles = plan.split(image)
    assert tiles.shape == (len(plan), plan.tile_size, plan.tile_size, 3)
    assert np.array_equal(plan.join(tiles), image)


@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, overlap=st.integers(0, 23), data=st.randoms(use_true_random=False))
def test_16_bit_tiles_stitch_back_exactly_in_any_order(height, width, overlap, data):
    plan = TilePlan(height, width, 24, overlap if height * width < 5000 else 8)
    image = picture(height, width, 2).astype(np.uint16) * 257
    tiles = plan.split(image)
    order = list(range(len(plan)))
    data.shuffle(order)
    stitcher = Stitcher(plan)
    for index in order:
        stitcher.add(index, tiles[index])
    assert stitcher.result().dtype == np.uint16
    assert np.array_equal(stitcher.result(), image)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, tile=TILES)
def test_windows_cover_the_image_with_at_least_the_overlap_and_stay_inside(height, width, tile):
    size, overlap = tile
    plan = TilePlan(height, width, size, overlap)
    for starts, side in ((plan.rows, height), (plan.columns, width)):
        assert starts[0] == 0
        assert starts[-1] == max(0, side - size)
        assert all(0 < after - before <= size - overlap for before, after in pairwise(starts))


@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES, overlap=st.integers(0, 23), data=st.randoms(use_true_random=False))
def test_the_order_in_which_tiles_come_changes_no_bit(height, width, overlap, data):
    plan = TilePlan(height, width, 24, overlap)
    if len(plan) > 400:
        plan = TilePlan(height, width, 24, 8)
    tiles = picture(len(plan) * 24, 24).reshape(-1, 24, 24, 3)  # tiles that disagree where they meet
    order = list(range(len(plan)))
    data.shuffle(order)
    stitcher = Stitcher(plan)
    for index in order:
        stitcher.add(index, tiles[index])
    assert np.array_equal(stitcher.result(), plan.join(tiles))


def test_blending_is_a_smooth_ramp_from_one_tile_to_the_next():
    plan = TilePlan(32, 32 + 16, 32, 16)
    assert plan.columns == [0, 16]
    tiles = np.stack([np.full((32, 32, 1), value, np.uint8) for value in (0, 200)])
    line = plan.join(tiles)[7, :, 0].astype(int)
    assert line[:16].tolist() == [0] * 16 and line[32:].tolist() == [200] * 16
    steps = np.diff(line[15:33])
    assert (steps >= 0).all() and steps.max() <= 25
    assert abs(line[23] + line[24] - 200) <= 1


def test_a_tile_has_least_say_at_its_own_border():
    plan = TilePlan(48, 48, 32, 16)
    tiles = np.zeros((4, 32, 32, 1), np.uint8)
    tiles[0] = 255
    result = plan.join(tiles)[..., 0]
    assert result[0, 0] == 255
    assert result[0, 31] <= 2 and result[31, 0] <= 2 and result[31, 31] == 0


def test_an_image_smaller_than_the_tile_is_continued_by_reflection():
    image = np.arange(3, dtype=np.uint8).reshape(1, 3, 1)
    assert reflect_to(image, 2, 9)[..., 0].tolist() == [[0, 1, 2, 1, 0, 1, 2, 1, 0]] * 2
    assert reflect_to(np.full((1, 1, 3), 7, np.uint8), 4, 4).tolist() == [[[7] * 3] * 4] * 4
    padded = reflect_to(picture(5, 7), 12, 12)
    assert np.array_equal(padded, np.pad(picture(5, 7), ((0, 7), (0, 5), (0, 0)), mode="reflect"))


def test_a_large_scene_is_stitched_with_two_strips_of_floats():
    plan = TilePlan(3000, 5000, 256, 64)
    emitted = []
    stitcher = RowStitcher(plan, 3, np.dtype(np.uint8), lambda top, rows: emitted.append((top, rows)))
    tile = np.full((256, 256, 3), 9, np.uint8)
    most = 0
    for index in range(len(plan)):
        stitcher.add(index, tile)
        strips = sum(strip.nbytes for strip in stitcher._strips.values())
        most = max(most, strips + (stitcher._carry.nbytes if stitcher._carry is not None else 0))
    bottoms = [top + len(rows) for top, rows in emitted]
    assert [top for top, _ in emitted] == [0, *bottoms[:-1]] and bottoms[-1] == 3000
    assert all((rows == 9).all() and rows.nbytes <= 32 * 5000 * 3 for _, rows in emitted)
    assert most <= 2 * 256 * 5000 * 3 * 4


def test_tiles_can_be_taken_one_at_a_time():
    plan = TilePlan(100, 90, 32, 8)
    image = picture(100, 90)
    tiles = [plan.tile(image, index) for index in range(len(plan))]
    assert np.array_equal(np.stack(tiles), plan.split(image))
    assert np.array_equal(plan.join(iter(tiles)), image)


@pytest.mark.parametrize(
    "values, message", [((9, 9, 8, 8), "overlap 8"), ((9, 9, 0, 0), "tile_size 0"), ((0, 9, 8, 1), "9x0")]
)
def test_plans_that_cannot_be_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        TilePlan(*values)


def test_misuse_raises():
    plan = TilePlan(40, 40, 32, 8)
    stitcher = Stitcher(plan)
    stitcher.add(0, np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="added before"):
        stitcher.add(0, np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="expected"):
        stitcher.add(1, np.zeros((31, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="only 1 of 4"):
        stitcher.result()
    with pytest.raises(ValueError, match="the plan is for"):
        plan.split(picture(41, 40))
