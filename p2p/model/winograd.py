"""4x4 convolutions and their weights' gradients in nine sixteenths of the multiplications.

It is Winograd's F(2, 2) (Lavin and Gray, 2016, "Fast Algorithms for Convolutional Neural Networks"). With v and w for
two taps of the kernel, a, b, c for the pixels that they see from two neighbouring positions, and d and e for the
gradients at those positions, the outputs and the taps' gradients

    a v + b w = (a - b) v + b (v + w)        a d + b e = (a - b) d + b (d + e)
    b v + c w = b (v + w) + (c - b) w        b d + c e = b (d + e) + (c - b) e

have three products instead of four; along both axes that makes nine instead of sixteen. Factors and products are
rounded once more, which takes a result in bfloat16 from 0.2 % off float32's to 0.6 %.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_KERNEL = 4
_FEWEST_OF_FEW = 256
_FEWEST_OF_MANY = 128
_FEWEST_POSITIONS = 2048
"""In the batch. With less of these, taking sums and differences costs more than the multiplications they spare."""
_PAIRS = torch.kron(*2 * [torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])])
"""Which of the nine products make each of the four results."""


def is_quicker(weight: Tensor, positions: int, stride: int) -> bool:
    """Whether what is below can take (C, C', k, k) weights, and is quicker (measured on AVX512-bf16).

    C and C' are the channels of the side with a value for each position of the kernel, and of the other;
    `positions` are those of the whole batch.
    """
    can = weight.shape[-1] == _KERNEL and stride in (1, 2)
    wide = weight.shape[0] >= _FEWEST_OF_FEW and weight.shape[1] >= _FEWEST_OF_MANY
    return can and wide and positions >= _FEWEST_POSITIONS and not _multiplies_at_once()


def _multiplies_at_once() -> bool:
    # AMX multiplies many times as fast, but adds no faster: by that, not measured, there is nothing to gain.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def differences(pixels: Tensor, few_sides: torch.Size, stride: int, padding: int) -> Tensor:
    """Of (B, C', H, W) `pixels`, for a kernel with `few_sides` positions: (9, B * h / 2 * w / 2, 4 * C').

    These are a - b, b and c - b along both axes, for the first of every two taps: nine times the pixels' memory for
    stride 1, a quarter of that for stride 2.
    """
    halves = _halves(few_sides)
    seen = [(half - 1) * 2 * stride + _KERNEL + stride for half in halves]
    spare = [count - padding - side for count, side in zip(seen, pixels.shape[2:], strict=True)]
    padded = F.pad(pixels.permute(0, 2, 3, 1), (0, 0, padding, spare[1], padding, spare[0]))
    nine = [both for rows in _along(padded, 1, stride) for both in _along(rows, 2, stride)]
    if stride == 1:
        nine = [both.unfold(1, 2, 1).unfold(2, 2, 1) for both in nine]
    return torch.stack([both.permute(0, 1, 2, 4, 5, 3) for both in nine]).flatten(4).flatten(1, 3)


def convolve(taken: Tensor, weight: Tensor, few_sides: torch.Size, stride: int) -> Tensor:
    """(B, C, h, w) in channels-last layout, from the pixels' `differences` and (C, C', 4, 4) weights."""
    places = weight.permute(0, 2, 3, 1).reshape(len(weight), 2, 2, 2, 2, -1)
    first, second = (2, 4) if stride == 1 else (1, 3)  # of the axes, those along which taps see neighbours
    halves = (row.unbind(second - 1) for row in places.unbind(first))
    sums = torch.stack(_with_sums(*(torch.stack(_with_sums(*half)) for half in halves))).flatten(0, 1)
    products = taken @ sums.flatten(2).transpose(1, 2)
    height, width = _halves(few_sides)
    results = (_PAIRS.to(products) @ products.flatten(1)).view(2, 2, -1, height, width, len(weight))
    shape = (results.shape[2], len(weight), 2 * height, 2 * width)
    # Copied into place, since the layer after this one may not change a view in place.
    output = torch.empty(shape, dtype=results.dtype, memory_format=torch.channels_last)
    output.permute(0, 2, 3, 1).view(-1, height, 2, width, 2, len(weight)).copy_(results.permute(2, 3, 0, 4, 1, 5))
    if output.shape[2:] == few_sides:
        return output
    return output[:, :, : few_sides[0], : few_sides[1]].clone(memory_format=torch.channels_last)


def weight_gradient(taken: Tensor, few: Tensor, stride: int) -> Tensor:
    """Of (C, C', 4, 4) weights, from `differences` of the side of which they see patches, and (B, C, h, w) `few`.

    `few` is the other side, with a value for each position of the kernel: the gradient of a convolution's output, or
    the input of a transposed one.
    """
    halves = _halves(few.shape[2:])
    spare = [2 * half - side for half, side in zip(halves, few.shape[2:], strict=True)]
    padded = F.pad(few.permute(0, 2, 3, 1), (0, 0, 0, spare[1], 0, spare[0]))
    blocks = padded.reshape(len(few), halves[0], 2, halves[1], 2, -1).permute(2, 4, 0, 1, 3, 5)
    sums = torch.stack([both for rows in _with_sums(*blocks) for both in _with_sums(*rows)]).flatten(1, 3)
    products = sums.transpose(1, 2) @ taken
    gradient = (_PAIRS.to(products) @ products.flatten(1)).view(2, 2, len(products[0]), 2, 2, -1)
    # Taps that see neighbours are `stride` apart.
    order = (2, 3, 0, 4, 1, 5) if stride == 1 else (2, 0, 3, 1, 4, 5)
    many_channels = taken.shape[-1] // 4
    return gradient.permute(order).reshape(-1, _KERNEL, _KERNEL, many_channels).permute(0, 3, 1, 2)


def _halves(sides: torch.Size) -> list[int]:
    return [(side + 1) // 2 for side in sides]


def _with_sums(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return v, v + w, w


def _along(images: Tensor, axis: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    if stride == 1:
        a, b, c = images.unfold(axis, 3, 2).unbind(-1)
    else:
        a, b, c = images.unfold(axis, 6, 4).tensor_split(3, -1)
    return a - b, b, c - b
