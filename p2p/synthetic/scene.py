"""A georeferenced photograph of the synthetic city, for the demo: `python -m p2p.synthetic.scene FILE.tif`."""

from __future__ import annotations

import os
import sys

import numpy as np

from p2p.storage.rasters import rasterio
from p2p.synthetic.canvas import METRES_PER_PIXEL
from p2p.synthetic.pairs import city_pair

_SEED, _PIXELS = 2000, 1500
_EAST, _NORTH, _CRS = 500_000.0, 5_000_000.0, "EPSG:32633"
_COLLAR = 40  # pixels without a picture, as scenes have them at their edges
_NODATA = 0


def write_scene(path: str, seed: int = _SEED, size: int = _PIXELS) -> None:
    """Write a GeoTIFF of `size` x `size` pixels, RGB, with a collar of nodata on its left."""
    picture = np.maximum(np.moveaxis(city_pair(seed, 0, size, size)[0], 2, 0), 1)
    picture[:, :, :_COLLAR] = _NODATA
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    transform = rasterio().Affine(METRES_PER_PIXEL, 0.0, _EAST, 0.0, -METRES_PER_PIXEL, _NORTH)
    shape = {"driver": "GTiff", "count": 3, "height": size, "width": size, "dtype": "uint8", "nodata": _NODATA}
    layout = {"tiled": True, "compress": "deflate", "crs": _CRS, "transform": transform}
    with rasterio().open(path, "w", **shape, **layout) as file:
        file.write(picture)


if __name__ == "__main__":
    write_scene(sys.argv[1])
