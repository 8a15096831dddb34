"""How an image of any size meets a network that wants certain sizes: cut into tiles, resized, or padded.

Each plan turns one (H, W, C) uint8 image into (N, h, w, C) network inputs and (N, h, w, C') outputs into (H, W, C').
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from p2p.scenes.tiling import TilePlan, reflect_to

Array = npt.NDArray[np.uint8]
SizeMode = Literal["tile", "resize", "pad"]


class ImagePlan(Protocol):
    """What the three ways have in common; `len(plan)` is the number of network inputs."""

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(h, w) of every network input."""

    def __len__(self) -> int: ...

    def split(self, image: Array) -> Array:
        """(H, W, C) uint8 -> (N, h, w, C) uint8."""

    def join(self, tiles: Iterable[Array]) -> Array:
        """(N, h, w, C) uint8 -> (H, W, C) uint8."""


@dataclass(frozen=True)
class ResizePlan:
    """The whole image, bicubic, to one square of `tile_size` pixels, and back."""

    height: int
    width: int
    tile_size: int

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(h, w) of the network input."""
        return self.tile_size, self.tile_size

    def __len__(self) -> int:
        return 1

    def split(self, image: Array) -> Array:
        """(H, W, C) uint8 -> (1, T, T, C) uint8."""
        return _resize(image, self.tile_size, self.tile_size)[None]

    def join(self, tiles: Iterable[Array]) -> Array:
        """(1, T, T, C) uint8 -> (H, W, C) uint8."""
        (tile,) = tiles
        return _resize(tile, self.height, self.width)


@dataclass(frozen=True)
class PadPlan:
    """The whole image, continued by reflection to multiples of `stride` pixels, and cropped back."""

    height: int
    width: int
    stride: int

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(h, w) of the network input."""
        return -(-self.height // self.stride) * self.stride, -(-self.width // self.stride) * self.stride

    def __len__(self) -> int:
        return 1

    def split(self, image: Array) -> Array:
        """(H, W, C) uint8 -> (1, h, w, C) uint8."""
        return reflect_to(image, *self.tile_shape)[None]

    def join(self, tiles: Iterable[Array]) -> Array:
        """(1, h, w, C) uint8 -> (H, W, C) uint8."""
        (tile,) = tiles
        return tile[: self.height, : self.width]


def plan_image(height: int, width: int, *, size_mode: SizeMode, tile_size: int, overlap: int, stride: int) -> ImagePlan:
    """The plan for one image. `tile_size` serves tile and resize, `overlap` tile, `stride` (the network's) pad."""
    if size_mode == "resize":
        return ResizePlan(height, width, tile_size)
    if size_mode == "pad":
        return PadPlan(height, width, stride)
    return TilePlan(height, width, tile_size, overlap)


def _resize(image: Array, height: int, width: int) -> Array:
    if image.shape[:2] == (height, width):
        return image
    size = (width, height)
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, 2, 0)]
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], axis=2)
