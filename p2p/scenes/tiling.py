"""Cuts an image into overlapping square tiles, and blends the tiles back into one image. NumPy only.

An image smaller than a tile is padded by reflection; its tile is cropped afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.errors import ConfigError, UsageError

Array = npt.NDArray[Any]
"""Of uint8 or uint16; results have the dtype of the inputs."""
Floats = npt.NDArray[np.float32]

_EMITTED_ROWS = 32  # at a time, so that rows of a wide scene are not there twice
_WEIGHT_SUM = 2**15
"""Horizontal blend weights are integers with this sum. Weight times uint8 then stays below 2**24, where float32 adds
exactly, so the order in which tiles arrive cannot change a bit of the result; uint16 is added in float64."""
_SUM_TYPES = {1: np.float32, 2: np.float64}
"""By bytes of one value of a tile."""


def reflect_to(image: Array, height: int, width: int) -> Array:
    """(H, W, C) -> (height, width, C), padded below and to the right by reflection, repeated where needed.

    Example:
        >>> row = np.array([[[1], [2], [3]]], np.uint8)
        >>> reflect_to(row, 1, 7)[0, :, 0].tolist()
        [1, 2, 3, 2, 1, 2, 3]

    """
    if image.shape[:2] == (height, width):
        return image
    rows = _reflected_indices(image.shape[0], height)
    columns = _reflected_indices(image.shape[1], width)
    return image[rows[:, None], columns[None, :]]


def _reflected_indices(size: int, length: int) -> npt.NDArray[np.intp]:
    period = max(1, 2 * (size - 1))
    indices = np.arange(length) % period
    return np.minimum(indices, period - indices) if size > 1 else np.zeros(length, np.intp)


def _starts(size: int, tile_size: int, overlap: int) -> list[int]:
    """First pixel of each tile along one axis: evenly spaced, neighbours share at least `overlap` pixels."""
    if size <= tile_size:
        return [0]
    last = size - tile_size
    steps = -(-last // (tile_size - overlap))
    return [last * step // steps for step in range(steps + 1)]


def _axis_weights(starts: list[int], tile_size: int, size: int, overlap: int) -> npt.NDArray[np.float64]:
    """(tiles, tile_size) weights that sum to one at every pixel: smoothstep ramps where tiles overlap."""
    position = np.minimum(np.arange(tile_size), np.arange(tile_size)[::-1]) + 0.5
    ramp = np.clip(position / max(1, overlap), 0.0, 1.0)
    bump = ramp * ramp * (3.0 - 2.0 * ramp)
    total = np.zeros(max(size, tile_size))
    for start in starts:
        total[start : start + tile_size] += bump
    return np.stack([bump / total[start : start + tile_size] for start in starts])


def _integer_weights(weights: npt.NDArray[np.float64], starts: list[int], tile_size: int, size: int) -> Floats:
    """The same weights as integers that sum to `_WEIGHT_SUM`; the tile of largest weight takes the rounding error."""
    whole = np.rint(weights * _WEIGHT_SUM)
    total = np.zeros(max(size, tile_size))
    heaviest = np.full(max(size, tile_size), -1.0)
    owner = np.zeros(max(size, tile_size), np.intp)
    for index, start in enumerate(starts):
        window = slice(start, start + tile_size)
        total[window] += whole[index]
        heavier = whole[index] > heaviest[window]
        owner[window][heavier] = index
        heaviest[window][heavier] = whole[index][heavier]
    for index, start in enumerate(starts):
        window = slice(start, start + tile_size)
        mine = owner[window] == index
        whole[index][mine] += (_WEIGHT_SUM - total[window])[mine]
    return whole.astype(np.float32)


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of a `height` x `width` image are. Tiles are numbered row by row.

    tile_size: side of a tile in pixels.
    overlap: pixels that neighbouring tiles share at least.
    Raises UsageError unless 0 <= overlap < tile_size and the image has at least one pixel.

    Example:
        >>> image = np.arange(100 * 140 * 3, dtype=np.uint8).reshape(100, 140, 3)
        >>> plan = TilePlan(height=100, width=140, tile_size=64, overlap=16)
        >>> tiles = plan.split(image)
        >>> tiles.shape
        (6, 64, 64, 3)
        >>> bool((plan.join(tiles) == image).all())
        True

    """

    height: int
    width: int
    tile_size: int
    overlap: int

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise ConfigError("tile_size", f"{self.tile_size}: must be at least 1")
        if not 0 <= self.overlap < self.tile_size:
            raise ConfigError(
                "overlap",
                f"{self.overlap}: must be from 0 to {self.tile_size - 1}, less than tile_size; "
                f"{self.tile_size // 4} is usual",
            )
        if self.height < 1 or self.width < 1:
            raise UsageError(f"an image of {self.width}x{self.height} pixels has nothing to cut into tiles")

    @cached_property
    def rows(self) -> list[int]:
        """First image row of each row of tiles."""
        return _starts(self.height, self.tile_size, self.overlap)

    @cached_property
    def columns(self) -> list[int]:
        """First image column of each column of tiles."""
        return _starts(self.width, self.tile_size, self.overlap)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def tile(self, image: Array, index: int) -> Array:
        """Tile `index` of the (height, width, C) `image`: (T, T, C), a view where no reflection is needed."""
        y, x = self.rows[index // len(self.columns)], self.columns[index % len(self.columns)]
        window = image[y : y + self.tile_size, x : x + self.tile_size]
        return reflect_to(window, self.tile_size, self.tile_size)

    def split(self, image: Array) -> Array:
        """(height, width, C) -> (N, T, T, C)."""
        if image.ndim != 3 or image.shape[:2] != (self.height, self.width):
            raise ValueError(f"the plan is for ({self.height}, {self.width}, C), the image is {image.shape}")
        return np.stack([self.tile(image, index) for index in range(len(self))])

    def join(self, tiles: Iterable[Array]) -> Array:
        """(N, T, T, C) or an iterator of tiles, in order -> (height, width, C), blended where tiles overlap."""
        stitcher = Stitcher(self)
        for index, tile in enumerate(tiles):
            stitcher.add(index, tile)
        return stitcher.result()


class RowStitcher:
    """Blends the tiles of some rows of tiles, in any order, and hands on image rows as soon as they are finished.

    It holds one strip of floats for each unfinished row of tiles: two when tiles arrive in order. The result depends on
    neither the order nor the row at which it begins, but for image rows that tiles above that row touch too.

    Args:
        plan: of the whole image.
        channels: of every tile.
        dtype: likewise, uint8 or uint16.
        emit: called with the number of an image row and finished rows, (n, width, C), from there on; in order.
        first: the row of tiles to begin with.

    """

    def __init__(
        self, plan: TilePlan, channels: int, dtype: np.dtype[Any], emit: Callable[[int, Array], None], first: int = 0
    ) -> None:
        self.plan = plan
        size, overlap = plan.tile_size, plan.overlap
        across = _axis_weights(plan.columns, size, plan.width, overlap)
        self._across = _integer_weights(across, plan.columns, size, plan.width)
        self._down = (_axis_weights(plan.rows, size, plan.height, overlap) / _WEIGHT_SUM).astype(np.float32)
        self._channels, self._dtype, self._emit = channels, dtype, emit
        self._strips: dict[int, npt.NDArray[np.floating]] = {}
        self._missing = [len(plan.columns)] * len(plan.rows)
        self._next_row = first
        self._carry: npt.NDArray[np.floating] | None = None

    def add(self, index: int, tile: Array | None) -> None:
        """Add tile `index`, (T, T, C), once. Its memory may be reused afterwards. None: zeros that nobody looks at."""
        plan = self.plan
        size = plan.tile_size
        row, column = divmod(index, len(plan.columns))
        height, width = min(size, plan.height), min(size, plan.width)
        if row not in self._strips:
            self._strips[row] = np.zeros((height, plan.width, self._channels), _SUM_TYPES[self._dtype.itemsize])
        if tile is not None:
            x = plan.columns[column]
            weights = self._across[column, :width, None]
            strip = self._strips[row]
            strip[:, x : x + width] += np.multiply(tile[:height, :width], weights, dtype=strip.dtype)
        self._missing[row] -= 1
        while self._next_row < len(plan.rows) and not self._missing[self._next_row]:
            self._finish_row(self._next_row)
            self._next_row += 1

    def _finish_row(self, row: int) -> None:
        """Add the strips above where they overlap this one, and hand on the rows that no later strip overlaps."""
        rows = self.plan.rows
        strip = self._strips.pop(row)
        strip *= self._down[row, : strip.shape[0], None, None]
        if self._carry is not None:
            strip[: self._carry.shape[0]] += self._carry
        finished = rows[row + 1] - rows[row] if row + 1 < len(rows) else strip.shape[0]
        for top in range(0, finished, _EMITTED_ROWS):
            pixels = strip[top : min(top + _EMITTED_ROWS, finished)]
            np.rint(pixels, out=pixels)
            pixels.clip(0, np.iinfo(self._dtype).max, out=pixels)
            self._emit(rows[row] + top, pixels.astype(self._dtype))
        self._carry = strip[finished:].copy() if row + 1 < len(rows) else None


class Stitcher:
    """Blends tiles, in any order, into one image. The result does not depend on the order.

    Example:
        >>> stitcher = Stitcher(TilePlan(height=64, width=100, tile_size=64, overlap=16))
        >>> stitcher.add(1, np.full((64, 64, 1), 200, np.uint8))
        >>> stitcher.add(0, np.full((64, 64, 1), 100, np.uint8))
        >>> stitcher.result()[0, [0, 50, 99], 0].tolist()
        [100, 151, 200]

    """

    def __init__(self, plan: TilePlan) -> None:
        self.plan = plan
        self._seen: set[int] = set()
        self._rows: RowStitcher | None = None
        self._image: Array | None = None

    def add(self, index: int, tile: Array) -> None:
        """Add tile `index`, (T, T, C) uint8 or uint16, once. Its memory may be reused afterwards."""
        plan = self.plan
        size = plan.tile_size
        if index in self._seen or not 0 <= index < len(plan):
            raise ValueError(f"tile {index} of {len(plan)} was added before or does not exist")
        if tile.ndim != 3 or tile.shape[:2] != (size, size):
            raise ValueError(f"tile {index}: expected ({size}, {size}, C), got {tile.shape}")
        self._seen.add(index)
        if self._rows is None:
            image = self._image = np.empty((plan.height, plan.width, tile.shape[2]), tile.dtype)

            def keep(top: int, rows: Array) -> None:
                image[top : top + len(rows)] = rows

            self._rows = RowStitcher(plan, tile.shape[2], tile.dtype, keep)
        self._rows.add(index, tile)

    def result(self) -> Array:
        """(height, width, C), after every tile was added."""
        if self._image is None or len(self._seen) < len(self.plan):
            raise ValueError(f"only {len(self._seen)} of {len(self.plan)} tiles were added")
        return self._image
