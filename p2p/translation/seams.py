"""Whether the borders of tiles can be seen in what was put together from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from p2p.scenes.tiling import TilePlan

Array = npt.NDArray[np.uint8]

_OFFSETS = (-4, 4)
"""Where to look for comparison, in pixels from a border. Near, since blending two tiles makes all between their borders
smoother; a multiple of 4, since the stride-2 layers of a generator leave a pattern that repeats so."""
_STRIP = 512  # rows looked at together, so that a large scene is not copied


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


def measure_seams(output: Array, tiling: tuple[int, int]) -> Seams:
    """(H, W, C) uint8, made of tiles of `tiling` (tile size, overlap) -> its steps across borders and beside them."""
    height, width = output.shape[:2]
    plan = TilePlan(height, width, *tiling)
    down, right = np.zeros(max(0, height - 1)), np.zeros(max(0, width - 1))
    for top in range(0, height, _STRIP):
        strip = output[top : top + _STRIP + 1].astype(np.int16)
        down[top : top + _STRIP] = np.abs(np.diff(strip, axis=0)).sum((1, 2))
        right += np.abs(np.diff(strip[:_STRIP], axis=1)).sum((0, 2))
    seams = Seams()
    for steps, starts, length, across in ((down, plan.rows, height, width), (right, plan.columns, width, height)):
        borders = _borders(starts, tiling[0], length)
        beside = [place + offset for place in borders for offset in _OFFSETS if 0 <= place + offset < len(steps)]
        beside = [place for place in beside if place not in borders]
        values = across * output.shape[2]
        seams += Seams(
            float(steps[borders].sum()), len(borders) * values, float(steps[beside].sum()), len(beside) * values
        )
    return seams
