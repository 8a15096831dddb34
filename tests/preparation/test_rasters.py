"""`--layout rasters`: pairs cut out of rasters, what is learnt of their values, and that checkpoints carry it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from p2p.data.description import read_description
from p2p.errors import BadInputError, ConfigError
from p2p.preparation import PrepareConfig
from p2p.preparation.job import run
from p2p.preparation.rasters import RasterPairing, pair_rasters
from p2p.scenes.bands import RasterBands
from p2p.storage import images
from p2p.storage.rasters import open_raster
from p2p.training import TrainConfig

rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.transform import Affine, from_origin  # noqa: E402

T = from_origin(500000, 5000000, 0.5, 0.5)


def write(path: Path, data: np.ndarray, transform: Any = T, crs: str | None = "EPSG:32633", **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = data.shape
    shape = {"count": count, "height": height, "width": width, "dtype": data.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, crs=crs, **shape, **profile) as file:
        file.write(data)
    return path


def noise(
    height: int, width: int, channels: int = 3, dtype: str = "uint8", low: int = 1, high: int = 256
) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (channels, height, width)).astype(dtype)


def cut(a: Path, b: Path, **options: Any) -> RasterPairing:
    options = {"window": 32, **options}
    config = PrepareConfig(source=str(a), source_b=str(b), output="unused", layout="rasters", **options)
    return pair_rasters(config, str(a), str(b))


def test_windows_show_the_same_place_on_both_sides(tmp_path: Path) -> None:
    data = noise(200, 180)
    a = write(tmp_path / "a.tif", data)
    b = write(tmp_path / "b.tif", 255 - data[:, 20:, 30:], T @ Affine.translation(30, 20))
    output = tmp_path / "out"
    run(PrepareConfig(source=str(a), source_b=str(b), output=str(output), layout="rasters", window=32))
    table = pq.read_table(output / "train" / "part-00000.parquet").to_pylist()
    assert len(table) == (150 // 32) * (180 // 32)
    for row in table:
        column, line = map(int, row["pair_id"].partition("#")[2].split(","))
        assert row["pair_id"].startswith("a.tif#") and column >= 30 and line >= 20
        window = np.moveaxis(data[:, line : line + 32, column : column + 32], 0, 2)
        assert (images.decode(row["a"]) == window).all() and (images.decode(row["b"]) == 255 - window).all()
        assert row["transform"][2] == 500000 + column / 2 and row["transform"][5] == 5000000 - line / 2
        assert "32633" in row["crs"]


def test_both_sides_can_be_bands_of_one_file(tmp_path: Path) -> None:
    data = noise(64, 64, 6)
    a, output = write(tmp_path / "a.tif", data, photometric="minisblack"), tmp_path / "out"
    sides = {"source": str(a), "source_b": str(a), "bands_a": "1,2,3", "bands_b": "4,5,6"}
    run(PrepareConfig(**sides, output=str(output), layout="rasters", window=32, val_fraction=0.0))
    for row in pq.read_table(output / "train" / "part-00000.parquet").to_pylist():
        column, line = map(int, row["pair_id"].partition("#")[2].split(","))
        window = np.moveaxis(data[:, line : line + 32, column : column + 32], 0, 2)
        assert (images.decode(row["a"]) == window[..., :3]).all() and (images.decode(row["b"]) == window[..., 3:]).all()


def test_windows_with_an_invalid_pixel_on_either_side_are_left_out(tmp_path: Path) -> None:
    data, other = noise(128, 128), noise(128, 128)
    data[:, :, 100:] = 0
    other[:, 5, 5] = 0
    found = cut(write(tmp_path / "a.tif", data, nodata=0), write(tmp_path / "b.tif", other, nodata=0))
    corners = {(pair.a.column, pair.a.row) for pair in found.pairing.pairs}
    assert corners == {(x, y) for x in (0, 32, 64) for y in (0, 32, 64, 96)} - {(0, 0)}


def test_windows_are_valid_by_the_bands_that_are_chosen(tmp_path: Path) -> None:
    data = noise(64, 64, 6)
    data[:3, 5, 5], data[3:, 60, 60], data[4, 60, 5] = 0, 0, 0
    path = write(tmp_path / "a.tif", data, photometric="minisblack", nodata=0)
    found = cut(path, path, bands_a="1,2,3", bands_b="4,5,6", val_fraction=0.0)
    assert {(pair.a.column, pair.a.row) for pair in found.pairing.pairs} == {(32, 0), (0, 32)}


def test_no_window_of_train_comes_near_one_of_val(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", noise(1024, 1024, 1))
    pairs = cut(a, a, val_fraction=0.3).pairing.pairs
    taken = {split: np.zeros((1024, 1024), bool) for split in ("train", "val")}
    for pair in pairs:
        taken[pair.split][pair.a.row : pair.a.row + 32, pair.a.column : pair.a.column + 32] = True
    assert 0.1 < taken["val"].mean() < 0.4 and taken["train"].mean() > 0.5
    near = taken["val"].copy()
    for shift in (-16, 16):  # half a window
        near |= np.roll(taken["val"], shift, 0) | np.roll(taken["val"], shift, 1)
    edge = np.s_[16:-16, 16:-16]
    assert not (near & taken["train"])[edge].any()


@pytest.mark.parametrize(
    ("transform", "crs", "kind"),
    [
        (T @ Affine.translation(0.5, 0), "EPSG:32633", "GridsDiffer"),
        (T @ Affine.scale(2), "EPSG:32633", "GridsDiffer"),
        (T @ Affine.translation(5000, 0), "EPSG:32633", "NoOverlap"),
        (T, "EPSG:3857", "CrsDiffers"),
        (T, None, "CrsDiffers"),
    ],
)
def test_rasters_on_another_grid_are_refused(transform: Any, crs: str | None, kind: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", noise(64, 64))
    b = write(tmp_path / "b.tif", noise(64, 64), transform, crs)
    with pytest.raises(ConfigError, match=kind) as caught:
        cut(a, b)
    if kind != "NoOverlap":
        assert "gdalwarp -t_srs EPSG:32633 -tr 0.5 0.5 -te 500000.0 4999968.0 500032.0 5000000.0" in str(caught.value)


def test_rasters_of_other_control_points_are_refused(tmp_path: Path) -> None:
    def placed(name: str, east: float) -> Path:
        corners = [(0, 0), (0, 64), (64, 0), (64, 64)]
        points = [GroundControlPoint(row, column, east + column, 5000000 - row) for row, column in corners]
        path = tmp_path / name
        with rasterio.open(path, "w", driver="GTiff", count=3, height=64, width=64, dtype="uint8") as file:
            file.gcps = points, rasterio.crs.CRS.from_epsg(32633)
            file.write(noise(64, 64))
        return path

    a = placed("a.tif", 500000)
    assert cut(a, placed("b.tif", 500000))
    with pytest.raises(ConfigError, match="other control points"):
        cut(a, placed("c.tif", 600000))


def test_pixels_without_an_area_are_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", noise(64, 64), Affine(1, 1, 500000, 1, 1, 5000000))
    with pytest.raises(ConfigError, match="have no area"):
        cut(a, a)


def test_a_damaged_block_is_a_bad_window_and_not_an_invalid_one(tmp_path: Path) -> None:
    tiles: dict[str, Any] = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    a = write(tmp_path / "a.tif", noise(128, 128, dtype="uint16"), nodata=0, **tiles)
    with rasterio.open(a) as file:
        [offset, size] = [int(file.get_tag_item(f"BLOCK_{what}_1_1", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")]
    data = bytearray(a.read_bytes())
    data[offset : offset + size] = b"\xff" * size
    a.write_bytes(data)
    found = cut(a, write(tmp_path / "b.tif", noise(128, 128)), scale_a="percentile:2,98").pairing.pairs
    assert len(found) == 16
    [damaged] = [pair.a for pair in found if (pair.a.column, pair.a.row) == (32, 32)]
    with open_raster(damaged.address) as raster, pytest.raises(BadInputError, match="rows 32"):
        raster.read([1], (32, 32, 32, 32))


def test_a_raster_that_cannot_be_read_or_has_the_name_of_another_is_a_bad_row(tmp_path: Path) -> None:
    for side in ("a", "b"):
        for name in ("1.tif", "1.tiff", "2.tif"):
            write(tmp_path / side / name, noise(64, 64))
    (tmp_path / "b" / "1.tiff").unlink()
    (tmp_path / "b" / "2.tif").write_bytes(b"II*\0")
    pairing = cut(tmp_path / "a", tmp_path / "b").pairing
    assert {pair.a.address for pair in pairing.pairs} == {str(tmp_path / "a" / "1.tif")}
    assert [(row.source_uri, row.error) for row in pairing.bad] == [
        (str(tmp_path / "a" / "1.tiff"), "DuplicateName"),
        (str(tmp_path / "b" / "2.tif"), "DamagedImage"),
    ]
    (tmp_path / "b" / "1.tif").write_bytes(b"II*\0")
    with pytest.raises(ConfigError, match="no raster and its partner can be read"):
        cut(tmp_path / "a", tmp_path / "b")


def test_scaling_is_learnt_over_valid_pixels_and_kept(tmp_path: Path) -> None:
    values = noise(128, 128, 2, "int16", -500, 1500)
    values[:, :, 100:] = -32768
    a = write(tmp_path / "a.tif", values, nodata=-32768)
    b = write(tmp_path / "b.tif", noise(128, 128))
    with pytest.raises(ConfigError, match="scale_a side A is int16"):
        cut(a, b)
    found = cut(a, b, scale_a="percentile:2,98")
    learnt, other = found.bands
    assert learnt.dtype == "int16" and len(learnt.low) == 2
    assert all(abs(low + 460) < 25 for low in learnt.low) and all(abs(high - 1460) < 25 for high in learnt.high)
    assert other == RasterBands((1, 2, 3), "uint8", (), (0.0,) * 3, (255.0,) * 3)
    assert [str(side) for side in found.formats] == ["2x16", "3x8"]
    output = str(tmp_path / "out")
    options = {"layout": "rasters", "window": 32, "scale_a": "range:-500,1500"}
    run(PrepareConfig(source=str(a), source_b=str(b), output=output, **options))
    description = read_description(output)
    assert description.a.bands == RasterBands((1, 2), "int16", (), (-500.0,) * 2, (1500.0,) * 2)
    row = pq.read_table(tmp_path / "out" / "train" / "part-00000.parquet").to_pylist()[0]
    stored = images.decode(row["a"], found.formats[0])
    column, line = map(int, row["pair_id"].partition("#")[2].split(","))
    window = np.moveaxis(values[:, line : line + 32, column : column + 32], 0, 2)
    assert (description.a.bands.from_shares(stored) == window).all()
    record = description.record("BtoA", 2)
    config = TrainConfig(data=output, output="unused", direction="BtoA", input_channels=3, output_channels=2)
    model = config.model("fp32", record.bits, record.input_palette, record.bands)
    assert (model.input_bands, model.output_bands) == (other, description.a.bands)
    assert type(model).from_dict(model.to_dict()) == model


@pytest.mark.parametrize(
    "options",
    [
        *({"scale_a": "percentile:98,2"}, {"scale_a": "range:0,inf"}, {"scale_a": "range:-inf,0"}, {"scale_b": "0,1"}),
        *({"bands_a": "0"}, {"bands_b": "1,1"}, {"pixels_a": "1x8"}),
    ],
)
def test_mistakes_are_told_before_any_work(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        PrepareConfig(source="a", source_b="b", output="c", layout="rasters", **options)
    assert caught.value.field in options
    with pytest.raises(ConfigError, match="layout rasters"):
        PrepareConfig(source="a", source_b="b", output="c", scale_a="none")


def test_colours_of_a_palette_are_not_scaled(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", noise(64, 64, 1, high=4), photometric="palette")
    with rasterio.open(a, "r+") as file:
        file.write_colormap(1, {index: (index, 0, 0, 255) for index in range(4)})
    assert [str(side) for side in cut(a, a, scale_a="none").formats] == ["3x8", "3x8"]
    with pytest.raises(ConfigError, match="palette") as caught:
        cut(a, a, scale_a="range:0,3")
    assert caught.value.field == "scale_a"
