"""Windows of rasters, as locations of images."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from p2p.errors import BadInputError
from p2p.scenes.bands import RasterBands
from p2p.scenes.reading import SceneReader
from p2p.storage import images
from p2p.storage.names import printable
from p2p.storage.pixels import PixelFormat
from p2p.storage.rasters import open_raster

_MAX_OPEN = 2  # both sides of a pair of rasters


@dataclass(frozen=True)
class RasterWindow:
    """A square of `size` pixels of a raster, whose upper left pixel is at `column`, `row`."""

    address: str
    column: int
    row: int
    size: int
    pixels: PixelFormat
    bands: RasterBands
    crs: str
    """Of the raster, as WKT."""
    transform: tuple[float, ...]
    """Of the window: six numbers, as `Raster` has them."""

    @property
    def uri(self) -> str:
        """What names it to a person."""
        return printable(f"{self.address}#{self.column},{self.row}")


class _OpenRasters(threading.local):
    """The rasters that a thread used last."""

    def __init__(self) -> None:
        self.found: OrderedDict[tuple[str, PixelFormat, RasterBands], tuple[contextlib.ExitStack, SceneReader]] = (
            OrderedDict()
        )

    def reader(self, where: RasterWindow) -> SceneReader:
        key = where.address, where.pixels, where.bands  # both sides may be bands of one file
        if key not in self.found:
            while len(self.found) >= _MAX_OPEN:
                self.found.popitem(last=False)[1][0].close()
            stack = contextlib.ExitStack()
            raster = stack.enter_context(open_raster(where.address))
            # A side of 8 bits is stored as it is, and becomes 16 when it is read, where its partner has them.
            bands = where.bands if where.pixels.bits == 16 else dataclasses.replace(where.bands, low=(), high=())
            reader = SceneReader(raster, where.pixels.channels, where.pixels.dtype, bands)
            self.found[key] = stack, reader
        self.found.move_to_end(key)
        return self.found[key][1]


_open_rasters = _OpenRasters()


def read_window(where: RasterWindow) -> bytes:
    """Its pixels, encoded without loss. Raises BadInputError, StorageError."""
    image, valid, _ = _open_rasters.reader(where).read(
        where.row, where.row + where.size, where.column, where.column + where.size
    )
    if valid is not None and not valid.all():
        raise BadInputError("InvalidPixels", "the raster has changed since its windows were chosen")
    return images.encode_exactly(np.ascontiguousarray(image))
