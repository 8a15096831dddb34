"""One image as the network sees it: tiles that come back one by one, in any order, and make the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from p2p.errors import BadInputError
from p2p.model.sizing import PadPlan
from p2p.scenes.tiling import Stitcher, TilePlan, reflect_to
from p2p.storage.images import resize
from p2p.translation.config import SizeMode

Array = npt.NDArray[np.uint8]

_FREE_TILES, _MAX_TILE_SHARE = 1024, 4
"""An image may have so many tiles, and so many times those that its pixels fill. One lower than a tile has more than
it fills, since each tile is continued to its full height: a row of a million pixels 5,208 instead of 28."""
_MAX_PAD_PIXELS = 16 * 2**20  # in one piece; the network's largest layers take about 400 bytes for each


class Windows(Protocol):
    """The network inputs of one image, and its output once the network has answered each."""

    shape: tuple[int, int]
    """(h, w) of every network input."""

    def __len__(self) -> int: ...

    def tile(self, index: int) -> Array:
        """Network input `index`: (h, w, C) uint8."""

    def add(self, index: int, output: Array) -> None:
        """Take the network's output for `index`: (h, w, C) uint8. Its memory may be reused afterwards."""

    def result(self) -> Array:
        """(H, W, C) uint8, once every output has come."""


class _TileWindows:
    """Overlapping tiles, blended as they come back: the same size out as in. Raises BadInputError for too many."""

    def __init__(self, image: Array, tile_size: int, overlap: int) -> None:
        height, width = image.shape[:2]
        self._image: Array = image
        self._plan = TilePlan(height, width, tile_size, overlap)
        if len(self._plan) > _FREE_TILES + _MAX_TILE_SHARE * height * width / (tile_size - overlap) ** 2:
            raise BadInputError(
                "TooManyTiles",
                f"{width}x{height} is so thin that it needs {len(self._plan)} tiles of {tile_size}x{tile_size} pixels; "
                "cut it into shorter images",
            )
        self._stitcher = Stitcher(self._plan)
        self.shape = (tile_size, tile_size)

    def __len__(self) -> int:
        return len(self._plan)

    def tile(self, index: int) -> Array:
        return self._plan.tile(self._image, index)

    def add(self, index: int, output: Array) -> None:
        self._stitcher.add(index, output)

    def result(self) -> Array:
        return self._stitcher.result()


class _WholeWindow:
    """The image in one piece, resized or padded before; `crop` is what to keep of the output."""

    def __init__(self, image: Array, crop: tuple[int, int]) -> None:
        self._image = image
        self._crop = crop
        self._output: Array | None = None
        self.shape = (image.shape[0], image.shape[1])

    def __len__(self) -> int:
        return 1

    def tile(self, index: int) -> Array:
        return self._image

    def add(self, index: int, output: Array) -> None:
        self._output = output[: self._crop[0], : self._crop[1]].copy()

    def result(self) -> Array:
        assert self._output is not None
        return self._output


@dataclass(frozen=True)
class SizePolicy:
    """`--size-mode` with its numbers. Called with an image, it returns its windows, or raises BadInputError."""

    size_mode: SizeMode
    tile_size: int
    overlap: int
    stride: int

    def __call__(self, image: Array) -> Windows:
        """(H, W, C) uint8 -> its windows."""
        height, width = image.shape[:2]
        if self.size_mode == "resize":
            return _WholeWindow(resize(image, self.tile_size, self.tile_size), (self.tile_size, self.tile_size))
        if self.size_mode == "pad":
            shape = PadPlan(height, width, self.stride).tile_shape
            if shape[0] * shape[1] > _MAX_PAD_PIXELS:
                raise BadInputError(
                    "TooLargeToPad",
                    f"{width}x{height} is too large for --size-mode pad; --size-mode tile takes any size",
                )
            return _WholeWindow(reflect_to(image, *shape), (height, width))
        return _TileWindows(image, self.tile_size, self.overlap)
