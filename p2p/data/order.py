"""Which pair comes when: an order that depends on seed and epoch alone, dealt to any number of ranks.

Row groups are permuted, then joined in windows of `lanes` lanes; a lane holds one row group's rows (or those of
several small ones), shuffled, and the window takes one row from each lane in turn. Position p of the whole order
belongs to rank p % world, so where world divides `lanes` a rank reads only its own lanes' row groups, each once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Row = tuple[int, int]
"""(row group, row inside it)."""

LANE_ROWS = 32
"""A lane is filled with whole row groups until it has at least this many rows."""


@dataclass(frozen=True)
class Window:
    """What one rank takes from one window: its rows of each lane, and from which lane each next row comes."""

    lanes: tuple[tuple[Row, ...], ...]
    turns: tuple[int, ...]


def _lanes(group_rows: Sequence[int], groups: Sequence[int]) -> Iterator[list[Row]]:
    lane: list[Row] = []
    for group in groups:
        lane += [(int(group), row) for row in range(group_rows[group])]
        if len(lane) >= LANE_ROWS:
            yield lane
            lane = []
    if lane:
        yield lane


def _in_turn(lanes: Sequence[Sequence[Row]]) -> list[int]:
    """Lane numbers in the order of a round robin that passes over exhausted lanes."""
    return [
        number
        for turn in range(max(len(lane) for lane in lanes))
        for number, lane in enumerate(lanes)
        if turn < len(lane)
    ]


def _window_of_rank(lanes: Sequence[Sequence[Row]], mine: Sequence[bool]) -> Window:
    """Keep those rows of the round robin over `lanes` that `mine` marks."""
    remaining = [iter(lane) for lane in lanes]
    kept: list[list[Row]] = [[] for _ in lanes]
    turns: list[int] = []
    for number, is_mine in zip(_in_turn(lanes), mine, strict=True):
        row = next(remaining[number])
        if is_mine:
            kept[number].append(row)
            turns.append(number)
    places = {number: place for place, number in enumerate(n for n, lane in enumerate(kept) if lane)}
    return Window(
        lanes=tuple(tuple(lane) for lane in kept if lane),
        turns=tuple(places[number] for number in turns),
    )


def pairs_per_rank(total: int, world: int) -> int:
    """How many pairs each rank sees in an epoch: equal counts, so that no rank waits for another's last step."""
    return total // world


def epoch_order(
    group_rows: Sequence[int],
    *,
    seed: int,
    epoch: int,
    lanes: int,
    rank: int = 0,
    world: int = 1,
    skip: int = 0,
    stop: int | None = None,
) -> Iterator[Window]:
    """Yield the windows of one rank's epoch, or of its pairs number `skip` to `stop`.

    Args:
        group_rows: pairs in each row group.
        seed: with `epoch` it decides the order, whatever the number of ranks.
        epoch: 1 for the first.
        lanes: lanes of a window, the number of row groups that are mixed.
        rank: 0 <= rank < world.
        world: number of ranks.
        skip: pairs at the front of this rank's share to leave out.
        stop: pairs of this rank's share after which to end; None goes to the share's end.

    """
    random = np.random.default_rng([seed, epoch])
    share = pairs_per_rank(sum(group_rows), world)
    stop = share if stop is None else min(stop, share)
    groups = [int(group) for group in random.permutation(len(group_rows))]
    position = 0  # of the window's first row in the whole order
    batch: list[list[Row]] = []
    filled = _lanes(group_rows, groups)
    while batch := [lane for _, lane in zip(range(lanes), filled, strict=False)]:
        shuffled = [[lane[int(place)] for place in random.permutation(len(lane))] for lane in batch]
        count = sum(map(len, shuffled))
        mine = [p % world == rank and skip <= p // world < stop for p in range(position, position + count)]
        position += count
        if any(mine):
            yield _window_of_rank(shuffled, mine)


def stored_order(group_rows: Sequence[int], *, rank: int = 0, world: int = 1) -> Iterator[Window]:
    """Yield one rank's share of every pair in stored order; shares differ by one pair at most."""
    position = 0
    for lane in _lanes(group_rows, range(len(group_rows))):
        mine = [p % world == rank for p in range(position, position + len(lane))]
        position += len(lane)
        if any(mine):
            yield _window_of_rank([lane], mine)
