"""The benchmark of scenes measures what it says; how fast is no business of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.benchmark import BenchmarkConfig, benchmark, scene_rows
from p2p.benchmark.rows import Setting

rasterio = pytest.importorskip("rasterio")


@pytest.fixture
def setting(tmp_path: Path, make_image: Any) -> Setting:
    (tmp_path / "images").mkdir()
    for index in range(3):
        (tmp_path / "images" / f"{index}.png").write_bytes(make_image(300, 600, seed=index))
    return Setting(
        device="cpu", precision="fp32", seconds=2, batch=1, rounds=2, images=tmp_path / "images", folder=tmp_path
    )


def test_a_scene_is_as_large_as_the_seconds_allow(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    def alone(measure: Any, *arguments: Any) -> Any:
        if measure is not scene_rows.write_scene:
            return 50.0
        scene_rows.write_scene(*arguments)
        return None

    summary = {
        "seconds": 9.0,
        "start_up_seconds": 6.5,
        "megapixels_per_second": 1.5,
        "stage_share": {"assemble": 0.01},
    }
    monkeypatch.setattr(scene_rows, "alone", alone)
    monkeypatch.setattr(scene_rows, "translate", lambda config: summary)
    bare, job, *others = scene_rows.scene_rows(setting, 0)
    assert bare["value"] == 50.0
    assert job["what"] == "scene of 1984x1984, 100 tiles, first tile to file"
    assert (job["value"], job["ratio"], job["against"]) == (40.0, 0.8, bare["what"])
    assert [(line["value"], line["unit"]) for line in others] == [
        (1.5, "megapixels/s"),
        (1.0, "% of the time"),
        (6.5, "s"),
    ]
    with rasterio.open(setting.folder / "scene.tif") as file:
        assert file.shape == (1984, 1984) and file.crs.to_epsg() == 32633
        assert len(np.unique(file.read())) > 100, "a picture, not one colour"


def test_a_side_that_is_no_size_is_told(run_cli: Any, tmp_path: Path) -> None:
    outcome = run_cli(BenchmarkConfig, benchmark, "--scene-side", "-1", "--output", tmp_path / "out")
    assert outcome.status == 2 and "--scene-side -1" in outcome.stderr
