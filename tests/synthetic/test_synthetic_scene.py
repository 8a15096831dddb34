"""A synthetic scene and its map lie on one grid, so that pairs can be cut out of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from p2p.preparation import PrepareConfig, prepare
from p2p.synthetic.canvas import METRES_PER_PIXEL
from p2p.synthetic.pairs import PALETTE
from p2p.synthetic.scene import _north_of

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


def test_scenes_of_other_seeds_lie_elsewhere() -> None:
    places = sorted(_north_of(seed) for seed in range(1800, 2600))
    assert np.diff(places).min() >= 7142 * METRES_PER_PIXEL
    assert places[0] > 0 and places[-1] < 9_300_000, "the northings of a zone of UTM"


def test_what_cannot_be_drawn_or_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.tif").mkdir()
    for place, size in (("x.tif", "0"), ("file/x.tif", "64"), ("folder.tif", "64")):
        words = [sys.executable, "-m", "p2p.synthetic.scene", str(tmp_path / place), "--size", size]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2) and "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
