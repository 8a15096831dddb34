"""The options of `jobs/train.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from p2p.cli import TrueFalse
from p2p.errors import UsageError
from p2p.model.config import (
    Direction,
    DiscriminatorName,
    GanMode,
    GeneratorName,
    ModelConfig,
    NormName,
    Palette,
    Precision,
    class_planes,
)
from p2p.storage.pixels import RGB
from p2p.storage.tiff import MAX_CHANNELS

BestMetric = Literal["val_l1", "val_psnr", "val_ssim", "val_pixel_accuracy", "val_palette_accuracy", "val_palette_iou"]
"""What validation measures; those with `palette` need a data set with a palette of its targets."""

_FREE_TO_CHANGE = frozenset(
    (
        "output",
        "epochs",
        "epochs_decay",
        "max_steps",
        "workers",
        "gpu",
        "precision",
        "checkpoint_every",
        "checkpoint_every_steps",
        "samples_every",
        "samples_every_steps",
        "keep_checkpoints",
        "best_metric",
        "patience",
        "resume",
    )
)
_MAY_BE_ZERO = (
    "epochs",
    "epochs_decay",
    "max_steps",
    "seed",
    "input_channels",
    "output_channels",
    "checkpoint_every",
    "checkpoint_every_steps",
    "samples_every",
    "samples_every_steps",
    "keep_checkpoints",
    "patience",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a pix2pix generator on aligned pairs. The same command again continues a run that was stopped."""

    data: str
    """Prepared data set made by jobs/prepare.py, or a raw folder of combined images (A left, B right). Path or URI."""
    output: str
    """Folder or prefix of the run: checkpoints, metrics, samples, report. Path or URI."""
    split: str = "train"
    """Sub-folder of --data to train on."""
    val_split: str = "val"
    """Sub-folder of --data to validate on after each epoch; where it is missing, training goes on without."""
    direction: Direction = "AtoB"
    """Which side is the input and which the target."""
    crop_size: int = 256
    """Side in pixels of the random training crop, a multiple of the generator's stride."""
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
    lr: float = 0.0002
    """Adam's learning rate, of both networks."""
    beta1: float = 0.5
    """Adam's first momentum."""
    lambda_l1: float = 100.0
    """Weight of the L1 distance in the generator's loss; 0 leaves it out."""
    gan_mode: GanMode = "vanilla"
    """Adversarial loss; vanilla is the paper's cross-entropy."""
    label_smoothing: float = 0.0
    """The discriminator's label of real pairs is 1 minus this (vanilla and lsgan)."""
    input_channels: int = 0
    """Channels of the input images, 1 to 16; 1 of a colour data set is its luma. 0: what the data set says, else 3."""
    output_channels: int = 0
    """Channels of the target images, as for the inputs."""
    input_encoding: str = "colour"
    """colour: as the pixels are. onehot:N: the inputs are label maps of at most N colours, which jobs/prepare.py
    recorded as their palette; the networks get one plane of 0 and 1 for each."""
    generator: GeneratorName = "unet_256"
    """Generator; unet_N halves an image log2(N) times and needs crops that are multiples of N."""
    ngf: int = 64
    """Channels of the generator's first layer."""
    dropout: TrueFalse = True
    """Dropout 0.5 in the generator's inner layers."""
    discriminator: DiscriminatorName = "patch_70"
    """Discriminator; patch_N judges overlapping NxN patches."""
    ndf: int = 64
    """Channels of the discriminator's first layer."""
    norm: NormName = "batch"
    """Normalisation of both networks."""
    sync_batch_norm: TrueFalse = False
    """With several workers, batch norm over the batches of all of them; otherwise each worker's batch is by itself."""
    ema_images: int = 0
    """Half-life in images of a moving average of the generator's weights, 10000 for example. Validation, samples and
    checkpoints then show the average, and translate uses it. 0 keeps none."""
    workers: int = 1
    """Training processes; with several, each takes --batch-size pairs per step and gradients are averaged."""
    gpu: Literal["auto", "true", "false"] = "auto"
    """One GPU per worker; auto takes them if the cluster has enough."""
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
        for name in ("batch_size", "workers"):
            self._at_least(name, 1)
        for name in _MAY_BE_ZERO:
            self._at_least(name, 0)
        if self.last_epoch < 1:
            raise UsageError("--epochs 0 --epochs-decay 0: there is nothing to train; give one of them at least 1")
        for name in ("input_channels", "output_channels"):
            if getattr(self, name) > MAX_CHANNELS:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {getattr(self, name)}: must be at most {MAX_CHANNELS}")
        planes = class_planes(self.input_encoding)
        if planes and self.input_channels not in (0, 3):
            raise UsageError(
                f"--input-channels {self.input_channels}: --input-encoding {self.input_encoding} makes {planes} planes "
                "of RGB label maps; leave --input-channels out"
            )
        # The other options are checked by their owner. What the palette is, only the data set knows.
        self.model("fp32", input_palette=((0, 0, 0),))
        if self.best_metric not in get_args(BestMetric):
            raise UsageError(
                f"--best-metric {self.best_metric}: validation does not measure that; use one of "
                f"{', '.join(get_args(BestMetric))}"
            )
        if self.sync_batch_norm and self.norm != "batch":
            raise UsageError(
                f"--sync-batch-norm true: --norm {self.norm} has no batch statistics; use --norm batch, or leave it out"
            )

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: must be at least {least}")

    def model(
        self, precision: Precision, bits: Literal[8, 16] = 8, input_palette: Palette | None = None
    ) -> ModelConfig:
        """The networks and objective that these options describe, for images of `bits` and, one-hot, that palette."""
        planes = class_planes(self.input_encoding)
        own = {field.name for field in dataclasses.fields(self)}
        shared = {field.name for field in dataclasses.fields(ModelConfig)} & own - {"precision"}
        values = {name: getattr(self, name) for name in shared}
        values["input_channels"] = planes or self.input_channels or RGB.channels
        values["output_channels"] = self.output_channels or RGB.channels
        palette = input_palette if planes else None
        return ModelConfig(**values, precision=precision, bits=bits, input_palette=palette)

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
                found.append(f"--{name.replace('_', '-')} was {before}, now {value}")
        return found
