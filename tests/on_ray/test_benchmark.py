"""The benchmark measures and writes what it measured; how fast is no business of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from p2p.benchmark import BenchmarkConfig, benchmark


def test_the_feed_is_measured_and_written(ray_cluster: None, run_cli: Any, tmp_path: Path) -> None:
    words = ["--what", "data", "--seconds", "0.1", "--images", "8", "--output", tmp_path]
    outcome = run_cli(BenchmarkConfig, benchmark, *words)
    assert outcome.status == 0, outcome.stderr
    written = json.loads((tmp_path / "benchmark.json").read_text())
    (row,) = written["rows"]
    assert row["unit"] == "pairs/s" and row["value"] > 0
    assert written["machine"]["cores"] >= 1
    assert outcome.summary is not None and outcome.summary["rows"] == written["rows"]


def test_too_few_images_are_told_before_anything_runs(run_cli: Any, make_pairs: Any, tmp_path: Path) -> None:
    source = make_pairs(tmp_path / "raw", 3)
    words = ["--what", "data", "--source", source, "--images", "8", "--output", tmp_path / "out"]
    outcome = run_cli(BenchmarkConfig, benchmark, *words)
    assert outcome.status == 2
    assert "has 3 images, --images asks for 8" in outcome.stderr
