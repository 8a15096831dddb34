"""The options of `jobs/benchmark.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2p.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure how close the jobs come to what the bare network does on the same machine, in the same run."""

    output: str
    """Folder or prefix for benchmark.json and summary.json."""
    what: Literal["train", "translate", "evaluate", "data", "scenes", "gpu", "all"] = "all"
    """Which part to measure; scenes: one GeoTIFF from the first tile to the published file; gpu: whether a CUDA GPU
    computes what a CPU does, and all of its rates, in six minutes; all: train, translate, evaluate and data."""
    seconds: float = 30.0
    """Seconds each single measurement lasts, after its warm-up, and about as long as each job has work; with --what gpu
    at most 4."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes a GPU if there is one."""
    batch_size: int | None = None
    """Batch of the training measurements, in pairs. Default: 8 on a CPU, 64 on a GPU."""
    source: str | None = None
    """Combined pair images to measure on. Default: made pairs of 1200x600 from the embedded synthetic city."""
    images: int = 200
    """Images to measure on, repeated as often as --seconds take."""
    scene_side: int = 0
    """Pixels on a side of the scene of --what scenes. 0: as many as the bare network needs --seconds for."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ConfigError("seconds", f"{self.seconds:g}: must be above 0")
        if self.images < 8:
            raise ConfigError("images", f"{self.images}: at least 8 are needed to measure anything")
        if self.scene_side < 0:
            raise ConfigError("scene_side", f"{self.scene_side}: must be 0 or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError("batch_size", f"{self.batch_size}: must be at least 1")
