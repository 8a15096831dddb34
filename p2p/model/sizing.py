"""Three ways to run a network of fixed input size on images of any size: cut into tiles, resize, or pad.

Each plan turns one (H, W, C) uint8 or uint16 image into (N, h, w, C) network inputs of the same depth, and
(N, h, w, C') outputs into (H, W, C').
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from p2p.scenes.tiling import TilePlan, reflect_to
from p2p.storage.images import resize
from p2p.storage.pixels import Pixels

SizeMode = Literal["tile", "resize", "pad"]
_DEFAULT_OVERLAP = 64


def default_overlap(tile_size: int) -> int:
    """Pixels that neighbouring tiles share by default: 64, or a quarter of a tile below 256 pixels."""
    return min(_DEFAULT_OVERLAP, tile_size // 4)


class ImagePlan(Protocol):
    """What the three plans have in common; `len(plan)` is the number of network inputs."""

    def __len__(self) -> int: ...

    def split(self, image: Pixels) -> Pixels:
        """(H, W, C) -> (N, h, w, C)."""

    def join(self, tiles: Iterable[Pixels]) -> Pixels:
        """(N, h, w, C) -> (H, W, C)."""


@dataclass(frozen=True)
class ResizePlan:
    """The whole image, bicubic, to one square of `tile_size` pixels, and back."""

    height: int
    width: int
    tile_size: int

    def __len__(self) -> int:
        return 1

    def split(self, image: Pixels) -> Pixels:
        """(H, W, C) -> (1, T, T, C)."""
        return resize(image, self.tile_size, self.tile_size)[None]

    def join(self, tiles: Iterable[Pixels]) -> Pixels:
        """(1, T, T, C) -> (H, W, C)."""
        (tile,) = tiles
        return resize(tile, self.height, self.width)


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

    def split(self, image: Pixels) -> Pixels:
        """(H, W, C) -> (1, h, w, C)."""
        return reflect_to(image, *self.tile_shape)[None]

    def join(self, tiles: Iterable[Pixels]) -> Pixels:
        """(1, h, w, C) -> (H, W, C)."""
        (tile,) = tiles
        return tile[: self.height, : self.width]


def plan_image(height: int, width: int, *, size_mode: SizeMode, tile_size: int, overlap: int, stride: int) -> ImagePlan:
    """The plan for one image. tile and resize use `tile_size`, tile `overlap`, pad the network's `stride`."""
    if size_mode == "resize":
        return ResizePlan(height, width, tile_size)
    if size_mode == "pad":
        return PadPlan(height, width, stride)
    return TilePlan(height, width, tile_size, overlap)
