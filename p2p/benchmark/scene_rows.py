"""The translation of one scene against the bare generator on as many tiles."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from p2p.benchmark.networks import SIZE, alone, engine_rate
from p2p.benchmark.rows import Row, Setting, alternate, median_ratio, row
from p2p.benchmark.translate_rows import network_batch, untrained_checkpoint
from p2p.model.sizing import default_overlap
from p2p.scenes.tiling import TilePlan, reflect_to
from p2p.storage.images import decode, split_halves
from p2p.storage.rasters import rasterio
from p2p.translation import TranslateConfig, translate

_BLOCK, _DISTINCT = 512, 16
_METRES_PER_PIXEL = 0.5


@dataclass(frozen=True)
class _SceneJob:
    """What `jobs/translate.py` did with one scene."""

    rate: float
    """Tiles per second, from the first one to the published file."""
    megapixels: float
    """Per second, likewise."""
    assembly: float
    """Share of the processes' time for which sections were put together."""
    around: float
    """Seconds of the job before the first tile and after the file."""


def scene_rows(at: Setting, side: int) -> list[Row]:
    """One scene of `side` x `side` pixels (0: as large as `at.seconds` allow), from its first tile to the published
    file, against the bare generator.
    """
    batch, size = network_batch(at), SIZE

    def network() -> float:
        return alone(engine_rate, batch, at.seconds / 2, at.device, at.precision, 0)

    overlap = default_overlap(size)
    side = side or _side_for(network() * at.seconds, size, overlap)
    tiles = len(TilePlan(side, side, size, overlap))
    scene, runs = at.folder / "scene.tif", itertools.count()
    alone(write_scene, str(scene), side, str(at.images))
    limits, jobs = alternate(
        network, lambda: _scene_job(at, scene, tiles, at.folder / f"scenes-{next(runs)}"), at.rounds
    )
    bare = row(f"bare network, {at.precision}, batch {batch}", statistics.median(limits), "tiles/s")
    what, rates = f"scene of {side}x{side}, {tiles} tiles", [job.rate for job in jobs]
    middle = statistics.median
    return [
        bare,
        row(f"{what}, first tile to file", middle(rates), "tiles/s", bare, median_ratio(rates, limits)),
        row(f"{what}, first tile to file", middle(job.megapixels for job in jobs), "megapixels/s"),
        row(f"{what}, putting sections together", middle(100 * job.assembly for job in jobs), "% of the time"),
        row(f"{what}, before and after", middle(job.around for job in jobs), "s"),
    ]


def _side_for(tiles: float, size: int, overlap: int) -> int:
    """Pixels on a side of a square scene of about so many tiles."""
    return max(size, round(math.sqrt(max(1.0, tiles))) * (size - overlap) + overlap)


def write_scene(path: str, side: int, images: str) -> None:
    """A GeoTIFF of `side` x `side` pixels: the left halves of some of the images in a folder, over and over."""
    squares = []
    for file in sorted(Path(images).iterdir())[:_DISTINCT]:
        half = split_halves(decode(file.read_bytes()))[0][:_BLOCK, :_BLOCK]
        squares.append(np.ascontiguousarray(np.moveaxis(reflect_to(half, _BLOCK, _BLOCK), 2, 0)))
    library = rasterio()
    transform = library.Affine(_METRES_PER_PIXEL, 0.0, 500_000.0, 0.0, -_METRES_PER_PIXEL, 5_000_000.0)
    shape = {"driver": "GTiff", "count": 3, "height": side, "width": side, "dtype": "uint8", "bigtiff": "IF_SAFER"}
    layout = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "zlevel": 1}
    with library.open(path, "w", **shape, **layout, predictor=2, crs="EPSG:32633", transform=transform) as file:
        for number, (_, window) in enumerate(file.block_windows(1)):
            file.write(squares[number % len(squares)][:, : window.height, : window.width], window=window)


def _scene_job(at: Setting, scene: Path, tiles: int, output: Path) -> _SceneJob:
    """Run `jobs/translate.py` on it, as it comes."""
    summary = translate(
        TranslateConfig(
            checkpoint=str(untrained_checkpoint(at.folder)),
            source=str(scene),
            output=str(output),
            format="geotiff",
            gpu="true" if at.device == "cuda" else "false",
            precision=at.precision,
        )
    )
    around = summary["start_up_seconds"]
    return _SceneJob(
        rate=tiles / (summary["seconds"] - around),
        megapixels=summary["megapixels_per_second"],
        assembly=summary["stage_share"]["assemble"],
        around=around,
    )
