"""The options of `jobs/evaluate.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2p.errors import ConfigError
from p2p.model.config import Direction


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a generator on held-out pairs: metrics.json, per_image.parquet and a report with examples.

    Each pair is cropped in the middle to the side the generator was trained on, as validation does while training.
    """

    checkpoint: str
    """A run (its best checkpoint; RUN#latest for the latest), a checkpoint folder, or a generator .safetensors or
    .pth file."""
    data: str
    """Prepared data set made by jobs/prepare.py, or a raw folder of combined images. Path or URI."""
    output: str
    """Folder or prefix for metrics.json, per_image.parquet, report.html and summary.json. Path or URI."""
    split: str = "val"
    """Sub-folder of --data to measure on."""
    direction: Direction | None = None
    """Which side is the input. Default: the side the checkpoint was trained on."""
    metrics: str | None = None
    """Comma-separated list of l1, psnr, ssim, pixel_accuracy, palette_accuracy, palette_iou. Default: all that the data
    set allows; the last two need a palette, which jobs/prepare.py records where the targets have one."""
    inception_weights: str | None = None
    """Weights for fid, kid and is, which this version does not compute yet."""
    lpips_weights: str | None = None
    """Weights for lpips, which this version does not compute yet."""
    compare_untrained: bool = False
    """Also measure an untrained generator of the same architecture; its figures are named untrained.METRIC."""
    limit: int = 0
    """Measure the first N pairs only; 0 measures all."""
    gpu: Literal["auto", "true", "false"] = "auto"
    """Where the generator runs; auto takes the cluster's GPUs if it has any."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; auto takes bf16 where the processor is made for it."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError("limit", f"{self.limit}: must be 0 (all pairs) or more")
        for name in ("inception_weights", "lpips_weights"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    name,
                    f"{getattr(self, name)}: this version does not compute the metrics that need them "
                    "(lpips, fid, kid, is); leave the option out",
                )

    @property
    def metric_names(self) -> list[str]:
        """What --metrics lists, without blanks; empty for the default."""
        return [name.strip() for name in (self.metrics or "").split(",") if name.strip()]
