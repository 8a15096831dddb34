"""The networks of the pix2pix paper (Isola et al., 2017, appendix 6.1), with the parameter names of its PyTorch code.

The names (`model.model.1.model.0.weight`, ...) are a file format: checkpoints saved elsewhere load as they are.
Every generator maps (B, C_in, H, W) float in [-1, 1] to (B, C_out, H, W) float in [-1, 1]; every discriminator maps
(B, C_in + C_out, H, W) to (B, 1, h, w) logits, one per patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.errors import ConfigError
from p2p.model.config import PATCH_LAYERS, RESNET_BLOCKS, UNET_DOWNS, ModelConfig, NormName
from p2p.model.convolutions import Conv2d, ConvTranspose2d
from p2p.model.tensors import InputEncoder
from p2p.storage.pixels import Pixels

_MAX_WIDTH_FACTOR = 8  # channels grow to eight times the first layer's
_MIN_DOWNS = 5
_NEGATIVE_SLOPE = 0.2  # of LeakyReLU
_INIT_STD = 0.02


def _norm_layer(norm: NormName, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    return nn.Identity()


class _Dropout(nn.Dropout):
    """Dropout whose mask, for one state of torch's generator, is the same in every memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # torch draws a mask in memory order; the reference implementation's tensors are contiguous (NCHW).
        dropped = F.dropout(x.contiguous(), self.p)
        return _channels_last(dropped) if _is_channels_last(x) else dropped


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Generator(nn.Module):
    """(B, C_in, H, W) float in [-1, 1] -> (B, C_out, H, W) float in [-1, 1]; H and W are multiples of `stride`."""

    stride: int
    """Pixels of which both input sides must be a multiple."""
    config: ModelConfig
    """Set by `build_generator` and `load_generator`."""
    checkpoint_id: str
    """Set by `load_generator`: the first 16 hex digits of the file's SHA-256."""

    def encode(self, images: Pixels | Tensor) -> Tensor:
        """(B, H, W, C) uint8 or uint16 images, as `config` has them -> what `forward` takes, on the images' device."""
        device = images.device if isinstance(images, Tensor) else "cpu"
        return InputEncoder(self.config, device)(images)


class Discriminator(nn.Module):
    """(B, C_in + C_out, H, W) float in [-1, 1] -> (B, 1, h, w) logits, high for real pairs."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in + C_out, H, W) float in [-1, 1] -> (B, 1, h, w) logits."""
        for layer in self.layers():
            x = layer(x)
        return x

    def layers(self) -> nn.Sequential:
        """All layers, in order."""
        raise NotImplementedError

    def logits_of_each(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """The logits of batches of one shape, in order, as separate calls of `forward` would return them.

        Each batch has its own statistics in batch norms; all other layers compute the batches together.
        """
        x = torch.cat(batches)
        for layer in self.layers():
            if isinstance(layer, nn.BatchNorm2d):
                x = torch.cat([layer(batch) for batch in x.chunk(len(batches))])
            else:
                x = layer(x)
        return x.chunk(len(batches))


class _Level(nn.Module):
    """One resolution of the U-Net; the next coarser one is among its layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]


class _SkipLevel(_Level):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2C, H, W): the input concatenated with the coarser levels' output.

        The first layer is a LeakyReLU that changes `x` in place. That saves a buffer and changes no result: the layer
        that reads the concatenation begins with a ReLU, and ReLU(LeakyReLU(x)) = ReLU(x).
        """
        coarser = self.model(x)
        concatenated: Tensor = _Concatenate.apply(x, coarser)
        return concatenated


class _Concatenate(torch.autograd.Function):
    """torch.cat along channels, with gradients that are contiguous in channels-last layout.

    cat's own gradients are strided views, on which torch's additions and batch norms on CPUs are ten to thirty times
    as slow: a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.channels = first.shape[1]
        return torch.cat([first, second], 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        first, second = gradient[:, : ctx.channels], gradient[:, ctx.channels :]
        if _is_channels_last(gradient):
            return _channels_last(first), _channels_last(second)
        return first, second


class UNetGenerator(Generator):
    """Encoder and decoder of 4x4 stride-2 convolutions with skip connections.

    `num_downs` halvings (at least 5): both input sides must be a multiple of 2**num_downs. Channels grow from `ngf` to
    8 * ngf. `dropout` of 0.5 acts in the inner decoder levels at full width (three of them for 8 halvings).

    Example:
        >>> import torch
        >>> from p2p import UNetGenerator
        >>> generator = UNetGenerator(num_downs=6, ngf=4).eval()
        >>> generator(torch.zeros(2, 3, 64, 128)).shape
        torch.Size([2, 3, 64, 128])

    """

    def __init__(
        self,
        input_channels: int = 3,
        output_channels: int = 3,
        *,
        num_downs: int = 8,
        ngf: int = 64,
        norm: NormName = "batch",
        dropout: bool = True,
    ) -> None:
        super().__init__()
        if num_downs < _MIN_DOWNS:
            raise ConfigError("num_downs", f"{num_downs}: a U-Net of this kind needs at least {_MIN_DOWNS}")
        self.stride = 2**num_downs
        widths = [ngf * min(2**level, _MAX_WIDTH_FACTOR) for level in range(num_downs)]
        bias = norm == "instance"  # batch norm has its own; with "none" the reference implementation has no bias either
        inner: nn.Module | None = None
        for level in reversed(range(1, num_downs)):
            outer_width, width = widths[level - 1], widths[level]
            layers: list[nn.Module] = [nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True)]
            layers.append(Conv2d(outer_width, width, 4, stride=2, padding=1, bias=bias))
            if inner is not None:
                layers += [_norm_layer(norm, width), inner]
            up_width = width if inner is None else 2 * width
            layers.append(nn.ReLU(inplace=True))
            layers.append(ConvTranspose2d(up_width, outer_width, 4, stride=2, padding=1, bias=bias))
            layers.append(_norm_layer(norm, outer_width))
            if dropout and 4 <= level < num_downs - 1:
                layers.append(_Dropout(0.5))
            inner = _SkipLevel(*layers)
        assert inner is not None
        self.model = _Level(
            Conv2d(input_channels, ngf, 4, stride=2, padding=1, bias=bias),
            inner,
            nn.ReLU(inplace=True),
            ConvTranspose2d(2 * ngf, output_channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) float in [-1, 1] -> (B, C_out, H, W) float in [-1, 1]."""
        return self.model(x)  # type: ignore[no-any-return]


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, norm: NormName, dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"
        layers: list[nn.Module] = [nn.ReflectionPad2d(1), Conv2d(channels, channels, 3, bias=bias)]
        layers += [_norm_layer(norm, channels), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(_Dropout(0.5))
        layers += [nn.ReflectionPad2d(1), Conv2d(channels, channels, 3, bias=bias), _norm_layer(norm, channels)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)  # type: ignore[no-any-return]


class ResnetGenerator(Generator):
    """Two halvings, `num_blocks` residual blocks at a quarter of the side, two doublings (Johnson et al., 2016)."""

    stride = 4

    def __init__(
        self,
        input_channels: int = 3,
        output_channels: int = 3,
        *,
        num_blocks: int = 9,
        ngf: int = 64,
        norm: NormName = "batch",
        dropout: bool = True,
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), Conv2d(input_channels, ngf, 7, bias=bias)]
        layers += [_norm_layer(norm, ngf), nn.ReLU(inplace=True)]
        for width in (2 * ngf, 4 * ngf):
            layers.append(Conv2d(width // 2, width, 3, stride=2, padding=1, bias=bias))
            layers += [_norm_layer(norm, width), nn.ReLU(inplace=True)]
        layers += [_ResidualBlock(4 * ngf, norm, dropout) for _ in range(num_blocks)]
        for width in (2 * ngf, ngf):
            layers.append(ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1, bias=bias))
            layers += [_norm_layer(norm, width), nn.ReLU(inplace=True)]
        layers += [nn.ReflectionPad2d(3), Conv2d(ngf, output_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) float in [-1, 1] -> (B, C_out, H, W) float in [-1, 1]."""
        return self.model(x)  # type: ignore[no-any-return]


class PatchDiscriminator(Discriminator):
    """One logit for each of many overlapping patches, 16, 70 or 286 pixels wide for `num_layers` 1, 3 or 5.

    A 256x256 pair has 30x30 logits with three layers.

    Example:
        >>> import torch
        >>> from p2p import PatchDiscriminator
        >>> discriminator = PatchDiscriminator(ndf=4)
        >>> discriminator(torch.zeros(1, 6, 256, 256)).shape
        torch.Size([1, 1, 30, 30])

    """

    def __init__(self, input_channels: int = 6, ndf: int = 64, num_layers: int = 3, norm: NormName = "batch") -> None:
        super().__init__()
        bias = norm == "instance"
        widths = [ndf * min(2**layer, _MAX_WIDTH_FACTOR) for layer in range(num_layers + 1)]
        layers: list[nn.Module] = [Conv2d(input_channels, ndf, 4, stride=2, padding=1)]
        layers.append(nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True))
        for layer in range(1, num_layers + 1):
            stride = 2 if layer < num_layers else 1
            layers.append(Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=bias))
            layers += [_norm_layer(norm, widths[layer]), nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True)]
        layers.append(Conv2d(widths[-1], 1, 4, padding=1))
        self.model = nn.Sequential(*layers)

    def layers(self) -> nn.Sequential:
        """All layers, in order."""
        return self.model


class PixelDiscriminator(Discriminator):
    """One logit for each pixel, from 1x1 convolutions."""

    def __init__(self, input_channels: int = 6, ndf: int = 64, norm: NormName = "batch") -> None:
        super().__init__()
        bias = norm == "instance"
        self.net = nn.Sequential(
            Conv2d(input_channels, ndf, 1),
            nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True),
            Conv2d(ndf, 2 * ndf, 1, bias=bias),
            _norm_layer(norm, 2 * ndf),
            nn.LeakyReLU(_NEGATIVE_SLOPE, inplace=True),
            Conv2d(2 * ndf, 1, 1, bias=bias),
        )

    def layers(self) -> nn.Sequential:
        """All layers, in order."""
        return self.net


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight from N(0, 0.02), those of batch norms from N(1, 0.02); biases 0, running statistics fresh."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            layer.weight.normal_(mean, _INIT_STD, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()


def replace_modules(network: nn.Module, substitute: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace each module inside `network` for which `substitute` returns another one."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            other = substitute(child)
            if other is not None:
                setattr(parent, name, other)


def empty_generator(config: ModelConfig) -> Generator:
    """The generator of `config`, on the meta device: shapes without memory, for weights from a file."""
    with torch.device("meta"):
        channels = (config.input_channels, config.output_channels)
        options: dict[str, Any] = {"ngf": config.ngf, "norm": config.norm, "dropout": config.dropout}
        network: Generator
        if config.generator in UNET_DOWNS:
            network = UNetGenerator(*channels, num_downs=UNET_DOWNS[config.generator], **options)
        else:
            network = ResnetGenerator(*channels, num_blocks=RESNET_BLOCKS[config.generator], **options)
    network.config = config
    return network


def build_generator(config: ModelConfig, *, seed: int = 0) -> Generator:
    """The generator of `config`, freshly initialised from `seed` alone, on the CPU, in training mode."""
    network = empty_generator(config).to_empty(device="cpu")
    initialise(network, torch.Generator().manual_seed(seed))
    return network


def build_discriminator(config: ModelConfig, *, seed: int = 0) -> Discriminator:
    """The discriminator of `config`, freshly initialised from `seed` alone, on the CPU, in training mode."""
    channels = config.input_channels + config.output_channels
    with torch.device("meta"):
        network: Discriminator
        if config.discriminator == "pixel":
            network = PixelDiscriminator(channels, config.ndf, config.norm)
        else:
            network = PatchDiscriminator(channels, config.ndf, PATCH_LAYERS[config.discriminator], config.norm)
    network = network.to_empty(device="cpu")
    initialise(network, torch.Generator().manual_seed(seed))
    return network
