"""A georeferenced photograph of the synthetic city, and its map: `python -m p2p.synthetic.scene --help`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from p2p.errors import P2PError
from p2p.storage.rasters import rasterio
from p2p.synthetic.canvas import METRES_PER_PIXEL
from p2p.synthetic.pairs import city_pair

_SEED, _PIXELS = 2000, 1500
_EAST, _NORTH, _CRS = 500_000.0, 5_000_000.0, "EPSG:32633"
_PLACES, _METRES_APART = 800, 5000.0
_COLLAR = 40  # pixels without a picture, as scenes have them at their edges
_MIN_PIXELS = 64
_NODATA = 0


def write_scene(photograph: str, map_path: str = "", seed: int = _SEED, size: int = _PIXELS) -> None:
    """Write a GeoTIFF of `size` x `size` pixels, RGB, with a collar of nodata on its left; and its map, without one.

    Each seed has a place of its own, 5 km further north than the one before; after 800 they begin again at the first.
    So scenes of up to 7142 pixels, of 0.7 m each, do not overlap where their seeds are less than 800 apart.
    """
    photo, drawn = (np.moveaxis(picture, 2, 0) for picture in city_pair(seed, 0, size, size))
    photo = np.maximum(photo, 1)
    photo[:, :, :_COLLAR] = _NODATA
    north = _north_of(seed)
    _write(photograph, photo, north, nodata=_NODATA)
    if map_path:
        _write(map_path, drawn, north)


def _north_of(seed: int) -> float:
    """The northing of a scene's upper edge, metres."""
    return _NORTH + seed % _PLACES * _METRES_APART


def _write(path: str, pixels: npt.NDArray[np.uint8], north: float, **options: Any) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    transform = rasterio().Affine(METRES_PER_PIXEL, 0.0, _EAST, 0.0, -METRES_PER_PIXEL, north)
    bands, height, width = pixels.shape
    shape = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": "uint8"}
    layout = {"tiled": True, "compress": "deflate", "crs": _CRS, "transform": transform}
    with rasterio().open(path, "w", **shape, **layout, **options) as file:
        file.write(pixels)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m p2p.synthetic.scene", description=__doc__)
    parser.add_argument("photograph", help="GeoTIFF to write")
    parser.add_argument("map", nargs="?", default="", help="GeoTIFF of the same city's map; default: none")
    parser.add_argument("--seed", type=int, default=_SEED, help="which city; default: %(default)s")
    parser.add_argument("--size", type=int, default=_PIXELS, help="pixels on a side; default: %(default)s")
    words = parser.parse_args()
    if words.size < _MIN_PIXELS:
        parser.error(f"argument --size: {words.size} is less than {_MIN_PIXELS} pixels")
    if words.seed < 0:
        parser.error(f"argument --seed: {words.seed} is negative")
    try:
        write_scene(words.photograph, words.map, words.seed, words.size)
    except (P2PError, OSError) as error:  # rasterio's are of the second kind as well
        sys.exit(f"{parser.prog}: error: {error}")


if __name__ == "__main__":
    _main()
