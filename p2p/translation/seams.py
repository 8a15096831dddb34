"""Whether the borders of tiles can be seen in what was put together from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.scenes.tiling import TilePlan

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_OFFSETS = (-4, 4)
"""Where to look for comparison, in pixels from a border. Near, since blending two tiles makes all between their borders
smoother; a multiple of 4, since the stride-2 layers of a generator leave a pattern that repeats so."""


@dataclass(frozen=True)
class Seams:
    """Sums over steps from one pixel to the next: those across a tile's border, and others beside them."""

    across: float = 0.0
    across_count: int = 0
    beside: float = 0.0
    beside_count: int = 0

    def __add__(self, other: Seams) -> Seams:
        return Seams(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def score(self) -> float | None:
        """Mean absolute step across borders over that beside them: 1 where borders cannot be seen, None without any."""
        if not self.across_count or not self.beside:
            return None
        return (self.across / self.across_count) / (self.beside / self.beside_count)


def _places(starts: Iterable[int], tile_size: int, size: int) -> tuple[list[int], list[int]]:
    """Steps (from pixel n to n + 1) at which a tile begins or ends, and those that they are compared with."""
    ends = {place for start in starts for place in (start, start + tile_size)}
    borders = sorted(place - 1 for place in ends if 0 < place < size)
    near = [place + offset for place in borders for offset in _OFFSETS if 0 <= place + offset < size - 1]
    return borders, [place for place in near if place not in borders]


class SeamMeter:
    """Measures an output, or some neighbouring rows of it, as its rows come. Steps to an invalid pixel do not count.

    Only the few rows and columns that count are looked at.
    """

    def __init__(self, plan: TilePlan, channels: int) -> None:
        self._channels = channels
        self._rows = _places(plan.rows, plan.tile_size, plan.height)
        self._columns = _places(plan.columns, plan.tile_size, plan.width)
        self._wanted_rows = sorted({*self._rows[0], *self._rows[1]})
        self._wanted_columns = np.array(sorted({*self._columns[0], *self._columns[1]}), np.intp)
        self._down, self._down_count = np.zeros(plan.height), np.zeros(plan.height)
        self._right, self._right_count = np.zeros(plan.width), np.zeros(plan.width)
        self._above: tuple[Array, Mask | None] | None = None

    def add(self, top: int, rows: Array, valid: Mask | None = None) -> None:
        """Take (n, W, C) uint8 or uint16, the rows from `top` on, below those before."""
        columns = self._wanted_columns
        left, right = (
            (rows[:, places], None if valid is None else valid[:, places]) for places in (columns, columns + 1)
        )
        sums, counts = _steps(left, right)
        self._right[columns] += sums
        self._right_count[columns] += counts
        for place in self._wanted_rows:
            row = place - top
            if not -1 <= row < len(rows) - 1 or (row < 0 and self._above is None):
                continue
            above = self._above if row < 0 else _row(rows, valid, row)
            assert above is not None
            self._down[place], self._down_count[place] = _steps(above, _row(rows, valid, row + 1))
        self._above = _row(rows, valid, len(rows) - 1)

    def result(self) -> Seams:
        """What the rows so far have."""
        seams = Seams()
        for steps, counts, (borders, beside) in (
            (self._down, self._down_count, self._rows),
            (self._right, self._right_count, self._columns),
        ):
            seams += Seams(
                float(steps[borders].sum()),
                int(counts[borders].sum()) * self._channels,
                float(steps[beside].sum()),
                int(counts[beside].sum()) * self._channels,
            )
        return seams


def _row(rows: Array, valid: Mask | None, row: int) -> tuple[Array, Mask | None]:
    return rows[row].copy(), None if valid is None else valid[row].copy()


def _steps(one: tuple[Array, Mask | None], other: tuple[Array, Mask | None]) -> tuple[Any, Any]:
    """Sums over the first axis of steps between (n, m, C) or (m, C) pixels that are both valid, and their number."""
    steps = np.abs(one[0].astype(np.int32) - other[0]).sum(-1)
    if one[1] is None or other[1] is None:
        return steps.sum(0), len(steps)
    both = one[1] & other[1]
    return (steps * both).sum(0), both.sum(0)


def measure_seams(output: Array, tiling: tuple[int, int]) -> Seams:
    """(H, W, C) uint8, made of tiles of `tiling` (tile size, overlap) -> its steps across borders and beside them."""
    height, width, channels = output.shape
    meter = SeamMeter(TilePlan(height, width, *tiling), channels)
    meter.add(0, output)
    return meter.result()
