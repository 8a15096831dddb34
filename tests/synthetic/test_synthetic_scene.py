"""A synthetic scene and its map lie on one grid, so that pairs can be cut out of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from p2p.preparation import PrepareConfig, prepare
from p2p.synthetic.pairs import PALETTE

rasterio = pytest.importorskip("rasterio")


def test_a_photograph_and_its_map_are_pairs(tmp_path: Path) -> None:
    for seed in (1, 2):
        paths = [str(tmp_path / side / f"{seed}.tif") for side in ("photo", "map")]
        words = [*paths, "--seed", str(seed), "--size", "300"]
        subprocess.run([sys.executable, "-m", "p2p.synthetic.scene", *words], check=True)
    places = []
    for seed in (1, 2):
        with (
            rasterio.open(tmp_path / "photo" / f"{seed}.tif") as photo,
            rasterio.open(tmp_path / "map" / f"{seed}.tif") as drawn,
        ):
            assert (photo.crs, photo.transform, photo.shape) == (drawn.crs, drawn.transform, (300, 300))
            assert not photo.dataset_mask()[:, :40].any() and photo.dataset_mask()[:, 40:].all()
            assert drawn.dataset_mask().all() and drawn.nodata is None
            colours = {tuple(colour) for colour in np.moveaxis(drawn.read(), 0, 2).reshape(-1, 3).tolist()}
            assert colours <= set(PALETTE.values())
            places.append(photo.bounds)
    assert rasterio.coords.disjoint_bounds(*places)
    summary = prepare(
        PrepareConfig(
            source=str(tmp_path / "photo"),
            source_b=str(tmp_path / "map"),
            output=str(tmp_path / "pairs"),
            layout="rasters",
            window=64,
        )
    )
    assert summary["pairs"]["train"] == 2 * 3 * 4 and summary["bad"] == 0, "windows with the collar are left out"
