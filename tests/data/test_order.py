from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2p.data.order import EpochRange, PairBlock, block_rows, pairs_per_worker, training_blocks, validation_blocks

group_rows = st.lists(st.integers(1, 40), min_size=1, max_size=40)
SEED, WINDOW = 3, 32


def rows_of(groups: list[int], block: PairBlock, seed: int = SEED, window: int = WINDOW) -> list[tuple[int, int]]:
    return block_rows(block, groups, seed=seed, window=window)


def every_row(groups: list[int]) -> list[tuple[int, int]]:
    return [(group, row) for group, rows in enumerate(groups) for row in range(rows)]


def shares(groups: list[int], part: EpochRange, workers: int, block_pairs: int) -> list[list[tuple[int, int]]]:
    """What each worker sees, in its order."""
    blocks = list(training_blocks(part, sum(groups), workers, block_pairs))
    assert len(blocks) % workers == 0
    return [[row for block in blocks[worker::workers] for row in rows_of(groups, block)] for worker in range(workers)]


@settings(max_examples=40, deadline=None)
@given(group_rows, st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 200), st.integers(1, 50))
def test_an_epoch_has_each_pair_once_in_an_order_that_no_cutting_changes(groups, seed, epoch, window, cut):
    total = sum(groups)
    whole = rows_of(groups, PairBlock(epoch, 0, total), seed, window)
    assert Counter(whole) == Counter(every_row(groups))
    parts = [PairBlock(epoch, start, min(start + cut, total)) for start in range(0, total, cut)]
    assert [row for part in parts for row in rows_of(groups, part, seed, window)] == whole


@settings(max_examples=40, deadline=None)
@given(group_rows, st.integers(1, 7), st.integers(1, 40), st.data())
def test_workers_see_equal_numbers_of_different_pairs_wherever_an_epoch_is_entered_and_left(
    groups, workers, block_pairs, data
):
    share = pairs_per_worker(sum(groups), workers)
    whole = shares(groups, EpochRange(2, 0, share), workers, block_pairs)
    assert [len(rows) for rows in whole] == [share] * workers
    seen = [row for rows in whole for row in rows]
    assert len(set(seen)) == len(seen)
    if workers == 1:
        assert seen == rows_of(groups, PairBlock(2, 0, share))
    skip = data.draw(st.integers(0, share))
    stop = data.draw(st.integers(skip, share))
    found = shares(groups, EpochRange(2, skip, stop), workers, block_pairs)
    assert found == [rows[skip:stop] for rows in whole]


@settings(max_examples=40, deadline=None)
@given(group_rows, st.integers(1, 7), st.integers(1, 40), st.integers(1, 50))
def test_with_fixed_shares_a_worker_has_the_same_pairs_in_every_epoch(groups, workers, block_pairs, window):
    pairs = sum(groups)
    share = pairs_per_worker(pairs, workers)

    def of_workers(epoch: int, skip: int = 0) -> list[list[tuple[int, int]]]:
        blocks = list(training_blocks(EpochRange(epoch, skip, share), pairs, workers, block_pairs, fixed_shares=True))
        in_order = [block_rows(block, groups, seed=SEED, window=window, shares=workers) for block in blocks]
        return [[row for rows in in_order[worker::workers] for row in rows] for worker in range(workers)]

    first = of_workers(1)
    assert list(map(set, first)) == list(map(set, of_workers(2)))
    seen = [row for rows in first for row in rows]
    assert len(set(seen)) == len(seen) == share * workers and set(seen) <= set(every_row(groups))
    assert of_workers(1, share // 2) == [rows[share // 2 :] for rows in first]


@settings(max_examples=40, deadline=None)
@given(group_rows, st.integers(1, 7), st.integers(1, 40))
def test_validation_sees_each_pair_once_in_stored_order_and_workers_about_as_many(groups, workers, block_pairs):
    blocks = list(validation_blocks(sum(groups), workers, block_pairs))
    assert len(blocks) % workers == 0
    assert max(map(len, blocks)) <= block_pairs
    assert [row for block in blocks for row in rows_of(groups, block)] == every_row(groups)
    rounds = [blocks[start : start + workers] for start in range(0, len(blocks), workers)]
    assert all(len({len(block) for block in of_round}) == 1 for of_round in rounds[:-1])


@pytest.mark.parametrize("window", [8, 64])
def test_pairs_of_several_row_groups_are_mixed_and_each_epoch_and_seed_differs(window):
    groups = [8] * 40
    first, second, other = (
        rows_of(groups, PairBlock(epoch, 0, 320), seed, window) for seed, epoch in ((1, 1), (1, 2), (2, 1))
    )
    assert first != second and first != other
    assert len({group for group, _ in first[:window]}) == max(1, window // 8)
