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
_STRIP = 32  # rows looked at together, so that a large scene is not copied


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


def _borders(starts: Iterable[int], tile_size: int, size: int) -> list[int]:
    """Steps (from pixel n to n + 1) at which a tile begins or ends."""
    places = {place for start in starts for place in (start, start + tile_size)}
    return sorted(place - 1 for place in places if 0 < place < size)


class SeamMeter:
    """Measures an output, or some neighbouring rows of it, as its rows come. Steps to an invalid pixel do not count."""

    def __init__(self, plan: TilePlan, channels: int) -> None:
        self._plan, self._channels = plan, channels
        self._down, self._down_count = np.zeros(plan.height), np.zeros(plan.height)
        self._right, self._right_count = np.zeros(plan.width), np.zeros(plan.width)
        self._above: tuple[Array, Mask | None] | None = None

    def add(self, top: int, rows: Array, valid: Mask | None = None) -> None:
        """Take (n, W, C) uint8 or uint16, the rows from `top` on, below those before."""
        for start in range(0, len(rows), _STRIP):
            part = rows[start : start + _STRIP].astype(np.int16 if rows.dtype == np.uint8 else np.int32)
            good = None if valid is None else valid[start : start + _STRIP]
            self._add(top + start, part, good)

    def _add(self, top: int, rows: Array, valid: Mask | None) -> None:
        right = np.abs(np.diff(rows, axis=1)).sum(2, dtype=np.float64)
        self._right[: right.shape[1]] += (right if valid is None else right * _both(valid, 1)).sum(0)
        self._right_count[: right.shape[1]] += len(rows) if valid is None else _both(valid, 1).sum(0)
        if self._above is not None:
            above, valid_above = self._above
            rows = np.concatenate([above, rows])
            valid = None if valid is None or valid_above is None else np.concatenate([valid_above, valid])
            top -= 1
        down = np.abs(np.diff(rows, axis=0)).sum(2, dtype=np.float64)
        place = slice(top, top + len(down))
        self._down[place] = (down if valid is None else down * _both(valid, 0)).sum(1)
        self._down_count[place] = rows.shape[1] if valid is None else _both(valid, 0).sum(1)
        self._above = rows[-1:], None if valid is None else valid[-1:]

    def result(self) -> Seams:
        """What the rows so far have."""
        seams, size = Seams(), self._plan.tile_size
        plan = self._plan
        for steps, counts, starts, length in (
            (self._down, self._down_count, plan.rows, plan.height),
            (self._right, self._right_count, plan.columns, plan.width),
        ):
            borders = _borders(starts, size, length)
            beside = [place + offset for place in borders for offset in _OFFSETS if 0 <= place + offset < length - 1]
            beside = [place for place in beside if place not in borders]
            seams += Seams(
                float(steps[borders].sum()),
                int(counts[borders].sum()) * self._channels,
                float(steps[beside].sum()),
                int(counts[beside].sum()) * self._channels,
            )
        return seams


def _both(valid: Mask, axis: int) -> Mask:
    """Whether a pixel and the next one along `axis` are valid."""
    return valid[1:] & valid[:-1] if axis == 0 else valid[:, 1:] & valid[:, :-1]


def measure_seams(output: Array, tiling: tuple[int, int]) -> Seams:
    """(H, W, C) uint8, made of tiles of `tiling` (tile size, overlap) -> its steps across borders and beside them."""
    height, width, channels = output.shape
    meter = SeamMeter(TilePlan(height, width, *tiling), channels)
    meter.add(0, output)
    return meter.result()
