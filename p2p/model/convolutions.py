"""torch's convolutions, which in training on CPUs in bfloat16 are partly computed as matrix products (im2col).

Every convolution has a small side and a large one: from each position of the small side the kernel sees a patch of the
large side. Conv2d makes the small side from the large, ConvTranspose2d the large from the small. With

    im2col(large)    one row for each position: the patch that is seen from there, (positions, kernel * kernel * C)
    col2im(columns)  its transpose: adds each row up where its patch lies, (B, C, H, W)
    small            the small side's pixels as rows, (positions, small channels)
    W                the weights as (small channels, kernel * kernel * C)

all that forward and backward passes compute are three products:

    small = im2col(large) @ W.T         output of Conv2d, gradient of ConvTranspose2d's input
    large = col2im(small @ W)           output of ConvTranspose2d, gradient of Conv2d's input
    gradient of W = small.T @ im2col(large)

oneDNN, which computes torch's own, first reorders weights, pixels and gradients in memory, and the results back. Where
positions are few that takes longer than the arithmetic. The reason for each limit below is how many times as much CPU
time a whole update of the 256x256 networks takes without that case, measured on two cores of a Zen 4 (AVX512-bf16, no
AMX). Without all of them it takes 1.3 times as much, at batch 1 as at batch 8.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_POSITIONS = 32 * 32
"""Of the small side in one image, for gradients by im2col: 1.2 at batch 1 and at batch 8. With more positions
copying the patches costs what the products gain."""
_MAX_BATCH_POSITIONS = 16 * 16
"""Of the small side in the whole batch, for outputs, and for col2im, as well: 1.05 at batch 1 (nothing at batch 8, of
which few levels are so small). With more positions adding up the patches costs more than oneDNN's reordering."""
_MIN_SMALL_CHANNELS = 16
"""With fewer the matrices are too narrow."""
_MAX_OUTPUT_TAPS = 64
"""Output channels times kernel area, for the discriminator's last convolution, to one channel: 1.04 at batch 1 and 1.05
at batch 8, since oneDNN's kernels fill their vectors with output channels."""

Size: TypeAlias = tuple[int, int]
"""Height and width."""
_Layer: TypeAlias = "Conv2d | ConvTranspose2d"


class Conv2d(nn.Conv2d):
    """(B, C, H, W) -> (B, C', H', W'), as torch's; square kernels, strides and paddings, no dilation, no groups."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) float of any precision -> (B, C', H', W')."""
        if _has_few_outputs(self) and _trains_in_bfloat16(input):
            return _convolve_to_few_channels(input, self)
        if _are_products_quicker(input, self):
            return _convolve(input, self)
        return super().forward(input)


class ConvTranspose2d(nn.ConvTranspose2d):
    """(B, C, H, W) -> (B, C', H', W'), as torch's; square kernels, strides and paddings, no dilation, no groups."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) float of any precision -> (B, C', H', W')."""
        if output_size is None and _are_products_quicker(input, self):
            return _convolve(input, self)
        return super().forward(input, output_size)


def _trains_in_bfloat16(x: Tensor) -> bool:
    in_bfloat16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.device.type == "cpu" and torch.is_grad_enabled() and in_bfloat16


def _are_products_quicker(x: Tensor, layer: _Layer) -> bool:
    (height, width), _ = _sizes(x, layer)
    few_positions = height * width <= _MAX_POSITIONS and len(layer.weight) >= _MIN_SMALL_CHANNELS
    return few_positions and _trains_in_bfloat16(x)


def _has_few_outputs(layer: Conv2d) -> bool:
    kernel, stride, _ = _geometry(layer)
    return stride == 1 and kernel > 1 and layer.out_channels * kernel**2 <= _MAX_OUTPUT_TAPS


def _convolve_to_few_channels(x: Tensor, layer: Conv2d) -> Tensor:
    """A stride-1 convolution, computed as the transposed convolution with the flipped kernel."""
    kernel, _, padding = _geometry(layer)
    columns = _pixels(x).bfloat16() @ _rows(layer.weight.flip(2, 3).transpose(0, 1)).bfloat16()
    output = _col2im(columns, len(x), _sizes(x, layer)[0], (kernel, 1, kernel - 1 - padding))
    return output if layer.bias is None else output + layer.bias.bfloat16()[:, None, None]


def _convolve(x: Tensor, layer: _Layer) -> Tensor:
    bias = None if layer.bias is None else layer.bias.bfloat16()
    output: Tensor = _Convolution.apply(x.bfloat16(), layer.weight.bfloat16(), bias, layer)
    return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: _Layer) -> Tensor:
        small_size, large_size = _sizes(x, layer)
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.small_size, ctx.large_size = layer, small_size, large_size
        ctx.only_products = len(x) * small_size[0] * small_size[1] <= _MAX_BATCH_POSITIONS
        if not ctx.only_products:
            return torch.convolution(x, weight, bias, *_arguments(layer))
        if layer.transposed:
            output = _small_to_large(x, weight, large_size, layer)
        else:  # written into place: the next layer may rectify it in place, which autograd forbids for views
            shape = (len(x), len(weight), *small_size)
            output = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            torch.mm(_im2col(x, small_size, layer), _rows(weight).t(), out=_pixels(output))
        return output if bias is None else output + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), layer = gradients, ctx.saved_tensors, ctx.layer
        small, large = (x, gradient) if layer.transposed else (gradient, x)
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        x_gradient = weight_gradient = None
        if for_weight or (for_x and layer.transposed):
            columns = _im2col(large, ctx.small_size, layer)
        if for_weight:
            rows = _pixels(small).t() @ columns
            weight_gradient = rows.view(len(rows), *weight.shape[2:], -1).permute(0, 3, 1, 2)
        if for_x and layer.transposed:
            x_gradient = (columns @ _rows(weight).t()).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        elif for_x and ctx.only_products:
            x_gradient = _small_to_large(gradient, weight, ctx.large_size, layer)
        elif for_x:
            only_x = [True, False, False]
            x_gradient = torch.ops.aten.convolution_backward(gradient, x, weight, None, *_arguments(layer), only_x)[0]
        return x_gradient, weight_gradient, gradient.sum((0, 2, 3)) if for_bias else None, None


def _small_to_large(small: Tensor, weight: Tensor, large_size: Size, layer: _Layer) -> Tensor:
    return _col2im(_pixels(small) @ _rows(weight), len(small), large_size, _geometry(layer))


def _arguments(layer: _Layer) -> tuple[Any, ...]:
    """As torch's own functions take them."""
    return layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups


def _geometry(layer: _Layer) -> tuple[int, int, int]:
    """Kernel, stride and padding, in pixels along either axis."""
    return layer.kernel_size[0], layer.stride[0], int(layer.padding[0])


def _sizes(x: Tensor, layer: _Layer) -> tuple[Size, Size]:
    """Of the small and the large side, for the layer's input `x`."""
    kernel, stride, padding = _geometry(layer)
    height, width = x.shape[2:]
    if layer.transposed:
        beyond = kernel + layer.output_padding[0] - 2 * padding
        return (height, width), ((height - 1) * stride + beyond, (width - 1) * stride + beyond)
    margin = 2 * padding - kernel
    return ((height + margin) // stride + 1, (width + margin) // stride + 1), (height, width)


def _pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _rows(weight: Tensor) -> Tensor:
    """(small C, large C, kernel, kernel) -> (small C, kernel * kernel * large C), as channels-last weights lie."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _im2col(large: Tensor, small_size: Size, layer: _Layer) -> Tensor:
    """(B, C, H, W) -> (B * small height * small width, kernel * kernel * C)."""
    kernel, stride, padding = _geometry(layer)
    height, width = small_size
    padded = F.pad(large.permute(0, 2, 3, 1), (0, 0, *[padding] * 4))
    patches = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)[:, :height, :width]
    return patches.permute(0, 1, 2, 4, 5, 3).reshape(len(large) * height * width, -1)


def _col2im(columns: Tensor, batch: int, large_size: Size, geometry: tuple[int, int, int]) -> Tensor:
    """The transpose of `_im2col`: (B * small height * small width, kernel * kernel * C) -> (B, C, H, W)."""
    kernel, stride, padding = geometry
    patches = columns.view(batch, -1, kernel**2, columns.shape[1] // kernel**2)
    patches = patches.permute(0, 3, 2, 1).flatten(1, 2)  # the order of torch's fold
    images = F.fold(patches.float(), large_size, kernel, padding=padding, stride=stride)  # float32: rounded once
    return images.to(columns.dtype).contiguous(memory_format=torch.channels_last)
