from collections import Counter

import hypothesis.strategies as st
from hypothesis import given, settings

from p2p.data.order import Window, epoch_order, pairs_per_rank, stored_order

group_rows = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def rows_of(windows) -> list[tuple[int, int]]:
    """The rows in the order a rank sees them."""
    seen = []
    for window in windows:
        lanes = [iter(lane) for lane in window.lanes]
        seen += [next(lanes[turn]) for turn in window.turns]
        assert all(next(lane, None) is None for lane in lanes)
    return seen


def every_row(groups: list[int]) -> list[tuple[int, int]]:
    return [(group, row) for group, rows in enumerate(groups) for row in range(rows)]


@settings(max_examples=40, deadline=None)
@given(group_rows, st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 24), st.integers(1, 7))
def test_each_pair_comes_once_and_the_order_is_the_same_for_any_number_of_ranks(groups, seed, epoch, lanes, world):
    whole = rows_of(epoch_order(groups, seed=seed, epoch=epoch, lanes=lanes))
    assert Counter(whole) == Counter(every_row(groups))

    ranks = [
        rows_of(epoch_order(groups, seed=seed, epoch=epoch, lanes=lanes, rank=rank, world=world))
        for rank in range(world)
    ]
    share = pairs_per_rank(len(whole), world)
    assert [len(rows) for rows in ranks] == [share] * world
    dealt = [row for together in zip(*ranks, strict=True) for row in together]
    assert dealt == whole[: share * world]


@settings(max_examples=30, deadline=None)
@given(group_rows, st.integers(1, 4), st.data())
def test_an_order_can_be_entered_and_left_anywhere(groups, world, data):
    share = pairs_per_rank(sum(groups), world)
    skip = data.draw(st.integers(0, share))
    stop = data.draw(st.integers(skip, share))
    for rank in range(world):
        settings = {"seed": 1, "epoch": 2, "lanes": 5, "rank": rank, "world": world}
        part = rows_of(epoch_order(groups, **settings, skip=skip, stop=stop))
        assert part == rows_of(epoch_order(groups, **settings))[skip:stop]


def test_epochs_and_seeds_have_different_orders():
    groups = [32] * 8
    orders = {
        tuple(rows_of(epoch_order(groups, seed=seed, epoch=epoch, lanes=4))) for seed in (0, 1) for epoch in (1, 2)
    }
    assert len(orders) == 4


def test_ranks_read_row_groups_of_their_own():
    groups = [32] * 96
    for world in (2, 3, 8):
        read = [
            {group for window in windows for lane in window.lanes for group, _ in lane}
            for windows in (
                epoch_order(groups, seed=0, epoch=1, lanes=24, rank=rank, world=world) for rank in range(world)
            )
        ]
        assert sum(map(len, read)) == len(groups)
        assert set.union(*read) == set(range(len(groups)))


def test_neighbours_come_from_many_row_groups():
    rows = rows_of(epoch_order([32] * 48, seed=0, epoch=1, lanes=24))
    for start in range(0, len(rows), 24):
        assert len({group for group, _ in rows[start : start + 24]}) == 24


@settings(max_examples=20, deadline=None)
@given(group_rows, st.integers(1, 5))
def test_validation_takes_each_pair_once_over_all_ranks(groups, world):
    ranks = [rows_of(stored_order(groups, rank=rank, world=world)) for rank in range(world)]
    assert sorted(row for rows in ranks for row in rows) == every_row(groups)
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_a_lane_of_small_groups_is_one_window():
    assert list(stored_order([1] * 3)) == [Window((((0, 0), (1, 0), (2, 0)),), (0, 0, 0))]
