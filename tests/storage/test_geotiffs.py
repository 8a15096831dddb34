"""GeoTIFFs of others, opened and read: what they say of their pixels, and what they must not make us do."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from p2p.errors import BadInputError
from p2p.storage import rasters, watched_file
from p2p.storage.deadline import Deadline
from p2p.storage.rasters import open_raster
from p2p.storage.tiff_directories import read_directories

rasterio = pytest.importorskip("rasterio")


def write(path: Path, data: np.ndarray, **profile: Any) -> Path:
    count, height, width = data.shape
    shape = {"count": count, "height": height, "width": width, "dtype": data.dtype.name}
    with rasterio.open(path, "w", **{"driver": "GTiff", "photometric": "minisblack", **shape, **profile}) as file:
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


def test_beside_alpha_a_nodata_number_counts_too(tmp_path: Path) -> None:
    data = np.full((2, 8, 8), 255, np.uint8)
    data[1, 0], data[0, 1] = 0, 7
    path = write(tmp_path / "a.tif", data, nodata=7, alpha="yes")
    with open_raster(str(path)) as raster:
        valid = raster.read([1], (0, 0, 8, 8))[1]
        assert raster.facts.validity == "alpha" and valid is not None
        assert np.flatnonzero(~valid.any(1)).tolist() == [0, 1]


def test_what_alpha_and_nodata_say_is_read_without_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.ones((4, 8, 8), np.uint8), nodata=7, alpha="yes", photometric="rgb")
    # In a process of its own: pytest has filters of warnings for each test.
    read = "import sys; from p2p.storage.rasters import open_raster\n"
    read += "with open_raster(sys.argv[1]) as raster: raster.read([1], (0, 0, 8, 8))"
    done = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr


def test_half_floats_are_floats(tmp_path: Path) -> None:
    data = np.linspace(-3, 9, 64, dtype=np.float16).reshape(8, 8)
    tifffile.imwrite(tmp_path / "a.tif", data)
    with open_raster(str(tmp_path / "a.tif")) as raster:
        pixels = raster.read([1], (0, 0, 8, 8))[0][..., 0]
    assert raster.facts.dtype == pixels.dtype == np.float32 and (pixels == data).all()


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


def test_too_little_memory_is_no_damage_of_a_block(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 4096, 4096), np.uint8)
    path = write(tmp_path / "a.tif", noise, tiled=True, blockxsize=4096, blockysize=4096, compress="deflate", zlevel=1)
    small = write(
        tmp_path / "small.tif", noise[:, :64, :64], tiled=True, blockxsize=64, blockysize=64, compress="deflate"
    )
    code = """
import pathlib, resource, sys
from p2p.storage.rasters import open_raster
path, side, spare = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open_raster(sys.argv[4]) as small:
    small.read([1], (0, 0, 8, 8))  # what is imported and kept for any raster
with open_raster(path) as raster:
    now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + spare,) * 2)
    try:
        raster.read([1], (0, 0, side, side))
    except MemoryError as error:
        print("MemoryError", error)
"""
    # A block has 16.8 MB: too little for NumPy's array, for GDAL's block, and for what libtiff has read of it.
    for side, spare in ((4096, 8_000_000), (8, 8_000_000), (8, 25_000_000)):
        run = [sys.executable, "-c", code, str(path), str(side), str(spare), str(small)]
        told = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert told.startswith(f"MemoryError {path}: out of memory: ") and len(told.splitlines()) == 1


@pytest.mark.parametrize("place", ["open", "RasterFacts"])
def test_too_little_memory_to_open_a_raster_is_no_damage_of_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    path = write(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint8))
    monkeypatch.setattr(rasterio if place == "open" else rasters, place, fail)
    with pytest.raises(MemoryError), open_raster(str(path)):
        pass


def test_too_little_memory_for_what_gdal_asks_for_is_no_damage_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (1, 2048, 2048), np.uint8))

    def fail(*_: object) -> None:
        raise MemoryError

    with open_raster(str(path)) as raster:
        monkeypatch.setattr(watched_file, "file_errors", fail)
        with pytest.raises(MemoryError):
            raster.read([1], (0, 1024, 2048, 1024))


def test_a_storage_that_stalls_is_not_under_the_decoders_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, reads = [], []

    class NotedDeadline(Deadline):
        def _move(self, step: int) -> None:
            super()._move(step)
            entered.append(self._inside)

    class NotedFile(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append((len(entered), entered[-1] if entered else 0))
            return super().read(size)

    monkeypatch.setattr(watched_file, "open", NotedFile, raising=False)
    path = write(tmp_path / "a.tif", np.ones((1, 64, 64), np.uint8))
    with open_raster(str(path), NotedDeadline(1000)) as raster:
        assert reads and not entered
        raster.read([1], (0, 0, 64, 64))
    assert any(moves for moves, _ in reads), "nothing was read while GDAL decoded"
    assert all(inside == 0 for _, inside in reads)
    assert max(entered) == 1 and entered[-1] == 0
