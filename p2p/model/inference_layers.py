"""What the layers of a generator become in the engine, where weights and statistics no longer change."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CHANNELS_AT_ONCE = 8  # tensor cores take so many 16-bit channels; for others cuDNN copies pixels, or uses no such core


class PerSampleNorm(nn.Module):
    """Batch norm in training mode, applied to each sample of the batch as if it were a batch of its own.

    On CUDA `instance_norm` would put the channels first and the next convolution last again.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return self._in_layout(x) if x.is_cuda else F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)

    def _in_layout(self, x: Tensor) -> Tensor:
        """The same in x's own memory layout, with statistics in float32."""
        variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0, keepdim=True)
        scale = self.weight.float()[:, None, None] * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.float()[:, None, None] - mean * scale, x.float(), scale).to(x.dtype)


class KeyedDropout(nn.Module):
    """Dropout whose mask for each sample is drawn from that sample's seed; samples beyond the seeds are unchanged.

    Masks are drawn on the CPU, so that every device gets the same.
    """

    def __init__(self, dropout: nn.Dropout) -> None:
        super().__init__()
        self.keep = 1.0 - dropout.p
        self._of_thread = threading.local()

    @property
    def seeds(self) -> list[int]:
        """One for each sample of the batch that this thread computes."""
        return getattr(self._of_thread, "seeds", [])

    @seeds.setter
    def seeds(self, seeds: list[int]) -> None:
        self._of_thread.seeds = seeds

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        mask = torch.ones(x.shape, dtype=torch.float32)
        for sample, seed in zip(mask, self.seeds, strict=False):
            sample.bernoulli_(self.keep, generator=torch.Generator().manual_seed(seed)).div_(self.keep)
        return x * mask.to(device=x.device, dtype=x.dtype)


class SignBitReLU(nn.Module):
    """ReLU of bfloat16, in place: read as 16-bit integers, negative numbers are negative too.

    On a CPU six times as quick as torch's own, which converts each number to float32 and back.
    """

    def __init__(self, relu: nn.ReLU) -> None:
        super().__init__()
        assert relu.inplace, "another layer may need the input"

    def forward(self, x: Tensor) -> Tensor:
        """Changes `x` and returns it."""
        x.view(torch.int16).clamp_(min=0)
        return x


def fold_batch_norm(network: nn.Module) -> None:
    """Put each batch norm that follows a convolution into its weights; exact, as the statistics no longer change."""
    for parent in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        layers = list(parent)
        for index in range(1, len(layers)):
            convolution, norm = layers[index - 1], layers[index]
            if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d):
                transpose = isinstance(convolution, nn.ConvTranspose2d)
                parent[index - 1] = fuse_conv_bn_eval(convolution, norm, transpose=transpose)
                parent[index] = nn.Identity()


def pad_thin_layers(network: nn.Module) -> int:
    """Give the first convolution's inputs and the last one's outputs a multiple of eight channels, with weights of 0.

    Exact: a sum is not changed by products that are 0. Returns how many planes the inputs must have more; of the
    outputs, the first planes are those that were there.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    first, last = convolutions[0], convolutions[-1]
    assert isinstance(first, nn.Conv2d)
    inputs, outputs = -first.in_channels % _CHANNELS_AT_ONCE, -last.out_channels % _CHANNELS_AT_ONCE
    first.weight = nn.Parameter(F.pad(first.weight, (0, 0, 0, 0, 0, inputs)), requires_grad=False)
    first.in_channels += inputs
    more = (
        (0, outputs) if isinstance(last, nn.ConvTranspose2d) else (0, 0, 0, outputs)
    )  # its weights are (in, out, ...)
    last.weight = nn.Parameter(F.pad(last.weight, (0, 0, 0, 0, *more)), requires_grad=False)
    last.out_channels += outputs
    if last.bias is not None:
        last.bias = nn.Parameter(F.pad(last.bias, (0, outputs)), requires_grad=False)
    return inputs
