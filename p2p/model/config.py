"""The configuration of a model: its networks, objective and inputs, as checkpoints contain it. Without torch."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from p2p.cli import TrueFalse
from p2p.documents import build
from p2p.errors import ConfigError, UsageError
from p2p.scenes.bands import RasterBands

GeneratorName = Literal["unet_64", "unet_128", "unet_256", "unet_512", "resnet_6", "resnet_9"]
DiscriminatorName = Literal["patch_16", "patch_70", "patch_286", "pixel"]
NormName = Literal["batch", "instance", "none"]
GanMode = Literal["vanilla", "lsgan", "hinge", "wgangp"]
Direction = Literal["AtoB", "BtoA"]
Precision = Literal["fp32", "bf16"]

UNET_DOWNS: dict[str, int] = {"unet_64": 6, "unet_128": 7, "unet_256": 8, "unet_512": 9}
"""Halvings of each U-Net: unet_N reduces an NxN input to one pixel at its bottleneck."""
RESNET_BLOCKS: dict[str, int] = {"resnet_6": 6, "resnet_9": 9}
PATCH_LAYERS: dict[str, int] = {"patch_16": 1, "patch_70": 3, "patch_286": 5}
"""Strided convolutions of each patch discriminator, which is named by its receptive field in pixels."""
MAX_PALETTE = 32
"""Colours of an image that still count as classes; an image of more is a picture."""
Palette: TypeAlias = tuple[tuple[int, int, int], ...]
"""RGB colours, 0..255, in the order of classes."""
_MAX_SIZE = 2**16
"""Of channels, filters and crops: more than fits any memory, while products of several still fit 64 bits."""
_RESNET_STRIDE = 4
_ONE_HOT = "onehot:"


def generator_stride(generator: str) -> int:
    """Pixels of which both input sides must be a multiple."""
    return 1 << UNET_DOWNS[generator] if generator in UNET_DOWNS else _RESNET_STRIDE


def smallest_crop(discriminator: str) -> int:
    """Side in pixels of the smallest square for which the discriminator has at least one logit."""
    if discriminator == "pixel":
        return 1
    return 3 << PATCH_LAYERS[discriminator]


def as_palette(colours: Sequence[Sequence[int]] | None) -> Palette | None:
    """Colours as JSON holds them -> a palette. Raises UsageError unless each is three numbers from 0 to 255."""
    if colours is None:
        return None
    palette = tuple((int(red), int(green), int(blue)) for red, green, blue in colours)
    if not all(0 <= value <= 255 for colour in palette for value in colour):
        raise UsageError(f"palette {reprlib.repr(palette)}: colours are three numbers from 0 to 255")
    return palette


def class_planes(input_encoding: str) -> int:
    """`onehot:12` -> 12 class planes; `colour` -> 0. Raises ConfigError for anything else."""
    count = input_encoding.removeprefix(_ONE_HOT)
    if input_encoding == "colour":
        return 0
    if input_encoding.startswith(_ONE_HOT) and count.isdecimal() and 2 <= int(count) <= MAX_PALETTE:
        return int(count)
    raise ConfigError("input_encoding", f"{input_encoding}: use colour, or onehot:N for 2 to {MAX_PALETTE} classes")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a user chooses about a model, in training options and in the model itself alike.

    Raises ConfigError for values that do not fit.
    """

    direction: Direction = "AtoB"
    """Which side is the input and which the target."""
    crop_size: int = 256
    """Side in pixels of the square training inputs, a multiple of the generator's stride."""
    lr: float = 0.0002
    """Adam's learning rate, of both networks."""
    beta1: float = 0.5
    """Adam's first momentum; the second is 0.999."""
    lambda_l1: float = 100.0
    """Weight of the L1 distance (in [-1, 1] units) in the generator's loss; 0 leaves it out."""
    gan_mode: GanMode = "vanilla"
    """Adversarial loss; vanilla is the paper's cross-entropy, wgangp is meant for instance norm or none."""
    label_smoothing: float = 0.0
    """The discriminator's label of real pairs is 1 minus this (vanilla and lsgan)."""
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
    ema_images: int = 0
    """Half-life in images of a moving average of the generator's weights, 10000 for example. Validation, samples and
    checkpoints then show the average, and translate uses it. 0 keeps none."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                choices = ", ".join(map(str, get_args(kind)))
                raise ConfigError(name, f"{getattr(self, name)!r}: use one of {choices}")
        class_planes(self.input_encoding)
        self._check_numbers()
        self._check_sizes()

    def _check_numbers(self) -> None:
        self._require_size("ngf", "ndf", "crop_size")
        if self.ema_images < 0:
            raise ConfigError("ema_images", f"{self.ema_images}: must be 0 (off) or more")
        if not 0 < self.lr < math.inf:
            raise ConfigError("lr", f"{self.lr}: must be a finite number above 0")
        if not 0 <= self.beta1 < 1:
            raise ConfigError("beta1", f"{self.beta1}: must lie in [0, 1)")
        if not 0 <= self.lambda_l1 < math.inf:
            raise ConfigError("lambda_l1", f"{self.lambda_l1}: must be a finite number, 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError("label_smoothing", f"{self.label_smoothing}: must lie in [0, 1)")
        if self.label_smoothing and self.gan_mode in ("hinge", "wgangp"):
            raise ConfigError(
                "label_smoothing",
                f"{self.label_smoothing}: gan_mode {self.gan_mode} has no labels; use vanilla or lsgan, or 0",
            )

    def _require_size(self, *names: str) -> None:
        for name in names:
            if not 1 <= getattr(self, name) <= _MAX_SIZE:
                raise ConfigError(name, f"{getattr(self, name)}: must be at least 1, and {_MAX_SIZE} at most")

    def _check_sizes(self) -> None:
        if self.crop_size % self.stride:
            fitting = [name for name in get_args(GeneratorName) if self.crop_size % generator_stride(name) == 0]
            unets = [name for name in fitting if name in UNET_DOWNS]
            other = f" or generator {(unets or fitting)[-1]}" if fitting else ""
            raise ConfigError(
                "crop_size",
                f"{self.crop_size}: generator {self.generator} needs a multiple of {self.stride}; "
                f"use {-(-self.crop_size // self.stride) * self.stride}{other}",
            )
        if self.crop_size < smallest_crop(self.discriminator):
            raise ConfigError(
                "crop_size",
                f"{self.crop_size}: discriminator {self.discriminator} needs at least "
                f"{smallest_crop(self.discriminator)}; use that, or discriminator patch_16",
            )

    @property
    def stride(self) -> int:
        """Pixels of which both sides of the generator's input must be a multiple."""
        return generator_stride(self.generator)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelOptions):
    """One model: its two networks, its objective, and its inputs. Written into every checkpoint.

    Raises ConfigError for values that do not fit.

    Example:
        >>> from p2p import ModelConfig
        >>> config = ModelConfig(generator="unet_128", crop_size=128, gan_mode="lsgan")
        >>> config.stride
        128
        >>> ModelConfig.from_dict(config.to_dict()) == config
        True

    """

    input_channels: int = 3
    """Channels that the generator takes: those of the input image, or its class planes."""
    output_channels: int = 3
    """Channels of the output image."""
    bits: Literal[8, 16] = 8
    """Of every value of input and output images."""
    input_palette: Palette | None = None
    """The colour of each class, in the order of planes; planes beyond it stay 0. For onehot only."""
    input_bands: RasterBands | None = None
    """Of inputs that were cut out of rasters: which bands they are, and how their values were scaled."""
    output_bands: RasterBands | None = None
    """The same for outputs."""
    precision: Precision = "fp32"
    """bf16: convolutions in bfloat16 under autocast; weights and optimiser stay float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_size("input_channels", "output_channels")
        planes, colours = class_planes(self.input_encoding), len(self.input_palette or ())
        if planes and not 1 <= colours <= planes:
            has = f"a palette of {colours} colours" if colours else "no palette"
            fix = f"onehot:{colours} or more" if 0 < colours <= MAX_PALETTE else "colour"
            raise ConfigError("input_encoding", f"{self.input_encoding}: the inputs have {has}; use {fix}")
        if planes and self.input_channels != planes:
            raise ConfigError(
                "input_channels",
                f"{self.input_channels}: input_encoding {self.input_encoding} makes {planes}; leave it out",
            )
        for name, bands in (("input", self.input_bands), ("output", self.output_bands)):
            channels = self.input_image_channels if name == "input" else self.output_channels
            if bands is not None and bands.is_scaled and len(bands.low) != channels:
                raise ConfigError(
                    f"{name}_channels", f"{channels}: the images are {len(bands.low)} scaled bands; leave it out"
                )
        as_palette(self.input_palette)
        if not planes and self.input_palette is not None:
            raise ConfigError("input_encoding", "colour: takes no palette")

    @property
    def input_image_channels(self) -> int:
        """Channels of input images: `input_channels`, or the three of a label map that becomes class planes."""
        return self.input_channels if self.input_palette is None else 3

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. Missing fields take their defaults; anything else that is wrong raises UsageError."""
        try:
            sides = {
                name: build(RasterBands, values[name]) for name in ("input_bands", "output_bands") if values.get(name)
            }
            return build(cls, {**values, **sides})
        except ValueError as error:
            raise UsageError(f"model configuration: {error}") from None
