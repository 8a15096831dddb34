"""torch's convolutions. Where oneDNN is slow at their gradients, matrix products compute them instead.

That is on CPUs in bfloat16: oneDNN puts weights, pixels and gradients into orders of its own, and results back. At the
U-Net's inner levels, whose pixels are few and whose weights are many, that takes five times as long as the arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_POSITIONS = 32 * 32
"""Of the side with fewer pixels: above, copying the other side's out for the products costs what they gain."""
_FEWEST_CHANNELS = 16


class _Shape(NamedTuple):
    """How a convolution moves over its input; square kernels, strides and paddings, no dilation, no groups."""

    stride: int
    padding: int
    transposed: bool
    output_padding: int

    def arguments(self) -> tuple[Any, ...]:
        """As torch's own functions take them."""
        return ([self.stride] * 2, [self.padding] * 2, [1, 1], self.transposed, [self.output_padding] * 2, 1)


class Conv2d(nn.Conv2d):
    """(B, C, H, W) -> (B, C', H', W'), as torch's."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) float of any precision -> (B, C', H', W')."""
        if _is_quicker(self, input, positions=_positions(input) // (self.stride[0] * self.stride[1])):
            return _convolve(self, input, _Shape(self.stride[0], int(self.padding[0]), False, 0))
        return super().forward(input)


class ConvTranspose2d(nn.ConvTranspose2d):
    """(B, C, H, W) -> (B, C', H', W'), as torch's."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) float of any precision -> (B, C', H', W')."""
        if output_size is None and _is_quicker(self, input, positions=_positions(input)):
            shape = _Shape(self.stride[0], int(self.padding[0]), True, self.output_padding[0])
            return _convolve(self, input, shape)
        return super().forward(input, output_size)


def _positions(images: Tensor) -> int:
    return images.shape[-2] * images.shape[-1]


def _is_quicker(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, positions: int) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and torch.is_grad_enabled()
        and layer.weight.requires_grad
        and layer.weight.shape[0] >= _FEWEST_CHANNELS
        and positions <= _MOST_POSITIONS
    )


def _convolve(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, shape: _Shape) -> Tensor:
    bias = None if layer.bias is None else layer.bias.bfloat16()
    convolved: Tensor = _Convolution.apply(x.bfloat16(), layer.weight.bfloat16(), bias, shape)
    return convolved


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(x, weight)
        return torch.convolution(x, weight, bias, *shape.arguments())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), shape = gradients, ctx.saved_tensors, ctx.shape
        few, many = (x, gradient) if shape.transposed else (gradient, x)
        columns = _columns(many, few, weight.shape[-1], shape)
        x_gradient = bias_gradient = None
        if ctx.needs_input_grad[0] and shape.transposed:
            x_gradient = (columns @ _rows(weight).t()).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            only_x = [True, False, False]
            x_gradient = torch.ops.aten.convolution_backward(gradient, x, weight, None, *shape.arguments(), only_x)[0]
        weight_rows = few.permute(1, 0, 2, 3).flatten(1) @ columns
        weight_gradient = weight_rows.view(len(weight_rows), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            bias_gradient = gradient.sum((0, 2, 3))
        return x_gradient, weight_gradient, bias_gradient, None


def _rows(weight: Tensor) -> Tensor:
    """(C, C', kernel, kernel) -> (C, kernel * kernel * C'), which is how channels-last weights lie in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _columns(many: Tensor, few: Tensor, kernel: int, shape: _Shape) -> Tensor:
    """What lies under the kernel at each of its places: (B * H * W, kernel * kernel * C').

    `few` (B, C, H, W) is the side with a position for each place of the kernel (a convolution's output, a transposed
    one's input), `many` (B, C', H', W') the other.
    """
    height, width = few.shape[-2:]
    padded = F.pad(many.permute(0, 2, 3, 1), (0, 0, *[shape.padding] * 4))
    under = padded.unfold(1, kernel, shape.stride).unfold(2, kernel, shape.stride)[:, :height, :width]
    return under.permute(0, 1, 2, 4, 5, 3).reshape(len(few) * height * width, -1)
