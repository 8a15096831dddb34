"""The options of `jobs/train.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from p2p.cli import TrueFalse
from p2p.errors import ConfigError
from p2p.model.config import ModelConfig, ModelOptions, Palette, Precision, class_planes
from p2p.scenes.bands import RasterBands
from p2p.storage.pixels import MAX_CHANNELS, RGB

BestMetric = Literal[
    "val_l1",
    "val_rmse",
    "val_psnr",
    "val_ssim",
    "val_pixel_accuracy_5",
    "val_pixel_accuracy_10",
    "val_pixel_accuracy",
    "val_palette_accuracy",
    "val_class_accuracy",
    "val_palette_iou",
    "val_detail",
]
"""What validation measures; those with `palette` need a data set with a palette of its targets."""

_FREE_TO_CHANGE = {
    *(
        "output",
        "epochs",
        "epochs_decay",
        "max_steps",
        "workers",
        "gpu",
        "cache",
        "precision",
    ),
    *("checkpoint_every", "checkpoint_every_steps", "samples_every", "samples_every_steps", "keep_checkpoints"),
    *("best_metric", "patience", "resume"),
}
"""What the same run may have otherwise when it is continued."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run's pairs come from and where it goes."""

    data: str
    """Prepared data set made by jobs/prepare.py, or a raw folder of pairs: combined images, or a layout
    that jobs/prepare.py recognises. Path or URI."""
    output: str
    """Folder or prefix of the run: checkpoints, metrics, samples, report. Path or URI."""
    split: str = "train"
    """Sub-folder of --data to train on."""
    val_split: str = "val"
    """Sub-folder of --data to validate on after each epoch; where it is missing, nothing is validated."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelOptions, RunOptions):
    """Train a pix2pix generator on aligned pairs. The same command again continues a run that was stopped."""

    flip: TrueFalse = True
    """Mirror half of the training crops left to right, both sides alike."""
    batch_size: int = 1
    """Pairs per optimiser step and worker."""
    epochs: int = 100
    """Epochs at the full learning rate."""
    epochs_decay: int = 100
    """Epochs after them in which the learning rate falls linearly towards 0."""
    max_steps: int = 0
    """Stop after this many optimiser steps whatever the epochs say; 0 is no limit."""
    input_channels: int = 0
    """Channels of the input images, 1 to 16; 1 of a colour data set is its luma. 0: what the data set says, else 3."""
    output_channels: int = 0
    """Channels of the target images, as for the inputs."""
    sync_batch_norm: TrueFalse = False
    """With several workers, batch norm over the batches of all of them; otherwise each worker's batch is by itself."""
    workers: int = 1
    """Training processes; with several, each takes --batch-size pairs per step and gradients are averaged."""
    gpu: Literal["auto", "true", "false"] = "auto"
    """One GPU per worker; auto takes them if the cluster has enough."""
    cache: Literal["auto", "none", "host", "device"] = "auto"
    """Keep the first epoch's decoded pairs for all others, in the machine's memory or the GPUs'; auto does where GPUs
    are used and a quarter of either suffices."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; auto takes bf16 where the processor is made for it. Weights stay in 32 bit."""
    seed: int = 0
    """Decides initial weights, order, crops and dropout."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; the last epoch always gets one. 0: no others."""
    checkpoint_every_steps: int = 0
    """Optimiser steps between further checkpoints, within epochs too; 0: none."""
    samples_every: int = 1
    """Epochs between sample sheets; the last epoch always gets one. 0: no others."""
    samples_every_steps: int = 0
    """Optimiser steps between further sample sheets, within epochs too; 0: none."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep; the best and the latest are always kept. 0 keeps all."""
    best_metric: BestMetric = "val_l1"
    """Metric of validation that picks the best checkpoint; those with palette need one in the data set."""
    patience: int = 0
    """Stop after this many epochs without a better --best-metric; needs a validation split. 0 never stops early."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues the run in --output; never deletes that run and starts over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(TrainConfig):
            minimum = 1 if field.name in ("batch_size", "workers") else 0
            value = getattr(self, field.name)
            if isinstance(value, int) and value < minimum:
                raise ConfigError(field.name, f"{value}: must be at least {minimum}")
        if self.last_epoch < 1:
            raise ConfigError("epochs", "0: with epochs_decay 0 there is nothing to train; give one of them at least 1")
        for name in ("input_channels", "output_channels"):
            if getattr(self, name) > MAX_CHANNELS:
                raise ConfigError(name, f"{getattr(self, name)}: must be at most {MAX_CHANNELS}")
        if class_planes(self.input_encoding) and self.input_channels not in (0, RGB.channels):
            raise ConfigError(
                "input_channels",
                f"{self.input_channels}: input_encoding {self.input_encoding} reads RGB label maps; leave it out",
            )
        if self.sync_batch_norm and self.norm != "batch":
            raise ConfigError(
                "sync_batch_norm", f"true: norm {self.norm} has no batch statistics; use norm batch, or leave it out"
            )

    def model(
        self,
        precision: Precision = "fp32",
        bits: Literal[8, 16] = 8,
        input_palette: Palette | None = None,
        bands: tuple[RasterBands | None, RasterBands | None] = (None, None),
    ) -> ModelConfig:
        """The networks and objective that these options describe, for images of `bits` and, one-hot, that palette.

        `bands` are those of inputs and targets that were cut out of rasters. Raises ConfigError for other channels.
        """
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelOptions)}
        planes = class_planes(self.input_encoding)
        return ModelConfig(
            **options,
            input_channels=planes or self.input_channels or RGB.channels,
            output_channels=self.output_channels or RGB.channels,
            bits=bits,
            input_palette=input_palette if planes else None,
            input_bands=bands[0],
            output_bands=bands[1],
            precision=precision,
        )

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch; epochs count from 1."""
        return self.epochs + self.epochs_decay

    def learning_rate(self, epoch: int) -> float:
        """The rate in `epoch`: constant for `epochs`, then falling by lr / (epochs_decay + 1) with each epoch."""
        return self.lr * (1.0 - max(0, epoch - self.epochs) / (self.epochs_decay + 1))

    def to_dict(self) -> dict[str, Any]:
        """Every option, for config.json."""
        return dataclasses.asdict(self)

    def conflicts(self, earlier: dict[str, Any]) -> list[str]:
        """Options that shape the network or its data and differ from those of an `earlier` run, as readable text.

        An option that did not exist then had the value that is its default now.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        found = []
        for name, value in self.to_dict().items():
            before = earlier.get(name, defaults[name])
            if name not in _FREE_TO_CHANGE and before is not dataclasses.MISSING and before != value:
                found.append(f"{name} was {before}, now {value}")
        return found
