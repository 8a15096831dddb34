"""torch's convolutions. Where oneDNN is slow at them, matrix products compute them instead.

That is in training on CPUs in bfloat16. oneDNN puts weights, pixels and gradients into orders of its own, and results
back: at the U-Net's inner levels, whose pixels are few and whose weights are many, that takes up to five times as long
as the arithmetic. And its kernels fill their vectors with channels, of which the last layers have one or three.

A convolution has a side with a value for each position of the kernel (its output; of a transposed one the input) and
a side of which the kernel sees a patch from there. They are called `few` and `many` here, and weights are (few's
channels, many's channels, kernel, kernel).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.model import winograd

_MOST_POSITIONS = 32 * 32
"""Of `few`, in one image: above, copying the patches out costs what the products gain."""
_MOST_INNER_POSITIONS = 16 * 16
"""Of `few`, in the whole batch: with so few, outputs and the inputs' gradients are products too."""
_MOST_THIN_CHANNELS, _MOST_THIN_VALUES = 4, 64
"""Of `many`, and of one patch of it: so few are soon copied, whatever the number of positions."""
_FEWEST_CHANNELS = 16
"""Of `few`."""


class _Shape(NamedTuple):
    """How a convolution moves over its input; square kernels, strides and paddings, no dilation, no groups."""

    kernel: int
    stride: int
    padding: int
    transposed: bool = False
    output_padding: int = 0

    def arguments(self) -> tuple[Any, ...]:
        """As torch's own functions take them."""
        return ([self.stride] * 2, [self.padding] * 2, [1, 1], self.transposed, [self.output_padding] * 2, 1)

    def output(self, sides: torch.Size) -> torch.Size:
        """The output's height and width for the input's."""
        if self.transposed:
            beyond = self.kernel + self.output_padding - 2 * self.padding
            return torch.Size((side - 1) * self.stride + beyond for side in sides)
        return torch.Size((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in sides)

    def positions(self, x: Tensor) -> int:
        """Of `few` in one image, for the input `x`."""
        return (x.shape[2:] if self.transposed else self.output(x.shape[2:])).numel()


_DOUBLING = _Shape(4, 2, 1, transposed=True)


class Conv2d(nn.Conv2d):
    """(B, C, H, W) -> (B, C', H', W'), as torch's."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) float of any precision -> (B, C', H', W')."""
        if _may_use_products(input):
            weight, shape = self.weight, _Shape(self.kernel_size[0], self.stride[0], int(self.padding[0]))
            if shape.stride == 1 and _is_thin(self.out_channels, shape.kernel):
                # The same sums the other way round: each input pixel adds its share to the few values that see it.
                weight = weight.flip(2, 3).transpose(0, 1)
                shape = _Shape(shape.kernel, 1, shape.kernel - 1 - shape.padding, transposed=True)
            if _are_products_quicker(input, weight, shape):
                return _convolve(input, weight, self.bias, shape)
        return super().forward(input)


class ConvTranspose2d(nn.ConvTranspose2d):
    """(B, C, H, W) -> (B, C', H', W'), as torch's."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) float of any precision -> (B, C', H', W')."""
        if output_size is None and _may_use_products(input):
            shape = _Shape(self.kernel_size[0], self.stride[0], int(self.padding[0]), True, self.output_padding[0])
            if _are_products_quicker(input, self.weight, shape):
                return _convolve(input, self.weight, self.bias, shape)
        return super().forward(input, output_size)


def _may_use_products(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _are_products_quicker(x: Tensor, weight: Tensor, shape: _Shape) -> bool:
    thin = shape.transposed and _is_thin(weight.shape[1], shape.kernel)
    return (thin or shape.positions(x) <= _MOST_POSITIONS) and len(weight) >= _FEWEST_CHANNELS


def _is_thin(channels: int, kernel: int) -> bool:
    return channels <= _MOST_THIN_CHANNELS and channels * kernel**2 <= _MOST_THIN_VALUES


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
    bias = None if bias is None else bias.bfloat16()
    convolved: Tensor = _Convolution.apply(x.bfloat16(), weight.bfloat16(), bias, shape)
    return convolved


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: _Shape) -> Tensor:
        ctx.shape = shape
        sides, positions = shape.output(x.shape[2:]), len(x) * shape.positions(x)
        ctx.inner = positions <= _MOST_INNER_POSITIONS
        ctx.by_winograd = winograd.is_quicker(weight, positions, shape.stride)
        thin = shape.transposed and _is_thin(weight.shape[1], shape.kernel)
        differences = None
        if ctx.by_winograd and not shape.transposed:
            differences = winograd.differences(x, sides, shape.stride, shape.padding)
            output = winograd.convolve(differences, weight, sides, shape.stride)
        elif thin and shape == _DOUBLING:
            output, bias = _doubled(x, weight, bias), None
        elif thin or (ctx.inner and shape.transposed):
            output = _add_up(_pixels(x) @ _rows(weight), x.shape[2:], sides, shape)
        elif ctx.inner:
            # Into place, since the layer after this one may not change a view in place.
            output = torch.empty(len(x), len(weight), *sides, dtype=x.dtype, memory_format=torch.channels_last)
            torch.mm(_patches(x, sides, shape), _rows(weight).t(), out=_pixels(output))
        else:
            output, bias = torch.convolution(x, weight, bias, *shape.arguments()), None
        ctx.save_for_backward(x, weight, differences if ctx.needs_input_grad[1] else None)
        return output if bias is None else output + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight, differences), shape = gradients, ctx.saved_tensors, ctx.shape
        few, many = (x, gradient) if shape.transposed else (gradient, x)
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        x_gradient = weight_gradient = None
        if (for_x and shape.transposed) or (for_weight and not ctx.by_winograd):
            patches = _patches(many, few.shape[2:], shape)
        if for_x and shape.transposed:
            x_gradient = (patches @ _rows(weight).t()).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        elif for_x and ctx.inner:
            x_gradient = _add_up(_pixels(gradient) @ _rows(weight), few.shape[2:], x.shape[2:], shape)
        elif for_x:
            only_x = [True, False, False]
            x_gradient = torch.ops.aten.convolution_backward(gradient, x, weight, None, *shape.arguments(), only_x)[0]
        if for_weight and ctx.by_winograd:
            if differences is None or torch.is_grad_enabled():  # for the gradient's gradient it depends on the pixels
                differences = winograd.differences(many, few.shape[2:], shape.stride, shape.padding)
            weight_gradient = winograd.weight_gradient(differences, few, shape.stride)
        elif for_weight:
            rows = _pixels(few).t() @ patches
            weight_gradient = rows.view(len(rows), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        return x_gradient, weight_gradient, gradient.sum((0, 2, 3)) if for_bias else None, None


def _pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _rows(weight: Tensor) -> Tensor:
    """(C, C', kernel, kernel) -> (C, kernel * kernel * C'), which is how channels-last weights lie in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _patches(many: Tensor, few_sides: torch.Size, shape: _Shape) -> Tensor:
    """What the kernel sees of (B, C, H, W) `many` at each of `few`'s positions: (positions, kernel * kernel * C)."""
    height, width = few_sides
    padded = F.pad(many.permute(0, 2, 3, 1), (0, 0, *[shape.padding] * 4))
    seen = padded.unfold(1, shape.kernel, shape.stride).unfold(2, shape.kernel, shape.stride)[:, :height, :width]
    return seen.permute(0, 1, 2, 4, 5, 3).reshape(len(many) * height * width, -1)


def _add_up(patches: Tensor, few_sides: torch.Size, many_sides: torch.Size, shape: _Shape) -> Tensor:
    """The transpose of `_patches`: what each of `many`'s pixels has in all patches together, (B, C, H, W)."""
    height, width = few_sides
    seen = patches.view(-1, height, width, shape.kernel, shape.kernel, patches.shape[1] // shape.kernel**2)
    sides = [side + 2 * shape.padding for side in many_sides]
    padded = torch.zeros(len(seen), *sides, seen.shape[-1])  # float32, so that adding up rounds no further
    rows, columns = (slice(0, shape.stride * count, shape.stride) for count in few_sides)
    for row in range(shape.kernel):
        for column in range(shape.kernel):
            padded[:, row:, column:][:, rows, columns] += seen[:, :, :, row, column]
    inside = padded[:, shape.padding :, shape.padding :][:, : many_sides[0], : many_sides[1]]
    return inside.permute(0, 3, 1, 2).to(patches.dtype)


def _doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`_DOUBLING`: each of the four pixels that lie between four of the input's sees those with a 2x2 kernel."""
    kernels = weight.reshape(*weight.shape[:2], 2, 2, 2, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)
    bias = None if bias is None else bias.repeat_interleave(4)
    between = F.conv2d(x, kernels.contiguous(memory_format=torch.channels_last), bias, padding=1)
    return F.pixel_shuffle(between, 2)[:, :, 1:-1, 1:-1].contiguous(memory_format=torch.channels_last)
