"""GeoTIFFs of others, opened and read: what they say of their pixels, and what they must not make us do."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.errors import BadInputError
from p2p.storage.rasters import open_raster
from p2p.storage.tiff_directories import read_directories

rasterio = pytest.importorskip("rasterio")


def write(path: Path, data: np.ndarray, **profile: Any) -> Path:
    count, height, width = data.shape
    shape = {"count": count, "height": height, "width": width, "dtype": data.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", photometric="minisblack", **shape, **profile) as file:
        file.write(data)
        for band in range(1, count + 1):
            file.set_band_description(band, f"band {band}")
    return path


def test_a_pixel_is_invalid_where_all_bands_that_are_read_hold_nodata(tmp_path: Path) -> None:
    data = np.full((3, 8, 8), 5, np.uint8)
    data[:2, 0], data[0, 1], data[:, 2] = 0, 0, 0
    with open_raster(str(write(tmp_path / "a.tif", data, nodata=0))) as raster:
        for bands, rows in (([1, 2], [0, 2]), ([1], [0, 1, 2]), ([3], [2]), ([1, 2, 3], [2])):
            valid = raster.read(bands, (0, 0, 8, 8))[1]
            assert valid is not None and np.flatnonzero(~valid.any(1)).tolist() == rows
            assert valid.any(1).tolist() == valid.all(1).tolist()


def test_a_description_that_is_no_utf_8_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.ones((2, 8, 8), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"band 2", b"b\xe4nd 2"))
    with open_raster(str(path)) as raster:
        assert raster.facts.names == ("", "")


def test_tags_that_share_bytes_are_not_read_over_and_over() -> None:
    count, shared = 1000, 100_000
    entries = b"".join(struct.pack("<HHLL", 300 + tag, 1, shared, 8) for tag in range(count))
    data = struct.pack("<2sHL", b"II", 42, 8 + shared) + bytes(shared)
    data += struct.pack("<H", count) + entries + bytes(4)
    with pytest.raises(BadInputError, match="share the same bytes"):
        read_directories(io.BytesIO(data), len(data))
