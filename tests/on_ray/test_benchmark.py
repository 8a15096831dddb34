"""The benchmark measures what it says; how fast is no business of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2p.benchmark import BenchmarkConfig, benchmark
from p2p.preparation import PrepareConfig, prepare


def test_the_feed_and_the_codecs_are_measured(ray_cluster: None, make_pairs: Any, tmp_path: Path) -> None:
    from p2p.benchmark.data_rows import plain_rate, stream_rate
    from p2p.benchmark.images import codec_seconds

    raw = make_pairs(tmp_path / "raw", 4, size=300)
    prepare(PrepareConfig(source=str(raw), output=str(tmp_path / "pairs"), load_size=286))
    assert plain_rate(str(tmp_path / "pairs"), 256, 0.1) > 0
    assert stream_rate(str(tmp_path / "pairs"), 256, 8) > 0
    codecs = codec_seconds(str(raw), 0.1)
    assert min(codecs.decode, codecs.resize, codecs.encode) > 0


def test_too_few_images_are_told_before_anything_runs(run_cli: Any, make_pairs: Any, tmp_path: Path) -> None:
    source = make_pairs(tmp_path / "raw", 3)
    words = ["--what", "data", "--source", source, "--images", "8", "--output", tmp_path / "out"]
    outcome = run_cli(BenchmarkConfig, benchmark, *words)
    assert outcome.status == 2
    assert "has 3 images, 8 are asked for" in outcome.stderr
