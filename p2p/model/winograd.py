"""The weights' gradient of 4x4 convolutions in nine sixteenths of the multiplications.

It is Winograd's F(2, 2) (Lavin and Gray, 2016, "Fast Algorithms for Convolutional Neural Networks"). With d and e for
the gradients at two neighbouring positions and a, b, c for the pixels that two places of the kernel see from there,

    a d + b e = (a - b) d + b (d + e)
    b d + c e = b (d + e) + (c - b) e

have three products instead of four; along both axes that makes nine instead of sixteen. Their factors are rounded once
more, which takes a gradient in bfloat16 from 0.2 % beside that of float32 to 0.6 %.
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
"""Which of the nine products make each of the four gradients."""


def is_quicker(few: Tensor, many: Tensor, kernel: int, stride: int) -> bool:
    """Whether `weight_gradient_of_4x4` can compute it, and sooner than one product does (measured, AVX512-bf16)."""
    enough = few.shape[1] >= _FEWEST_OF_FEW and many.shape[1] >= _FEWEST_OF_MANY
    can = kernel == _KERNEL and stride in (1, 2)
    return can and enough and few[:, 0].numel() >= _FEWEST_POSITIONS and not _multiplies_at_once()


def _multiplies_at_once() -> bool:
    # AMX multiplies many times as fast, but adds no faster: by that, not measured, there is nothing to gain.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def weight_gradient_of_4x4(few: Tensor, many: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of (C, C', 4, 4) weights from (B, C, h, w) `few` and (B, C', H, W) `many`; stride 1 or 2.

    Of a convolution `few` is the gradient of its output and `many` its input; of a transposed one, the other way round.
    """
    halves = [(side + 1) // 2 for side in few.shape[2:]]
    products = _sums(few, halves).transpose(1, 2) @ _differences(many, halves, stride, padding)
    gradient = (_PAIRS.to(products) @ products.flatten(1)).view(2, 2, len(products[0]), 2, 2, -1)
    # Places of the kernel that see neighbours are `stride` apart.
    order = (2, 3, 0, 4, 1, 5) if stride == 1 else (2, 0, 3, 1, 4, 5)
    return gradient.permute(order).reshape(-1, _KERNEL, _KERNEL, many.shape[1]).permute(0, 3, 1, 2)


def _sums(few: Tensor, halves: list[int]) -> Tensor:
    """(9, B * h / 2 * w / 2, C): d, d + e and e along either axis."""
    spare = [2 * half - side for half, side in zip(halves, few.shape[2:], strict=True)]
    padded = F.pad(few.permute(0, 2, 3, 1), (0, 0, 0, spare[1], 0, spare[0]))
    blocks = padded.reshape(len(few), halves[0], 2, halves[1], 2, -1).permute(2, 4, 0, 1, 3, 5)
    rows = (blocks[0], blocks[0] + blocks[1], blocks[1])
    return torch.stack([sums for d, e in rows for sums in (d, d + e, e)]).flatten(1, 3)


def _differences(many: Tensor, halves: list[int], stride: int, padding: int) -> Tensor:
    """(9, B * h / 2 * w / 2, 4 * C'): a - b, b and c - b along either axis, for every second place of the kernel."""
    seen = [(half - 1) * 2 * stride + _KERNEL + stride for half in halves]
    spare = [count - padding - side for count, side in zip(seen, many.shape[2:], strict=True)]
    padded = F.pad(many.permute(0, 2, 3, 1), (0, 0, padding, spare[1], padding, spare[0]))
    nine = [both for rows in _along(padded, 1, stride) for both in _along(rows, 2, stride)]
    if stride == 1:
        nine = [both.unfold(1, 2, 1).unfold(2, 2, 1) for both in nine]
    return torch.stack([both.permute(0, 1, 2, 4, 5, 3) for both in nine]).flatten(4).flatten(1, 3)


def _along(images: Tensor, axis: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    if stride == 1:
        a, b, c = images.unfold(axis, 3, 2).unbind(-1)
    else:
        a, b, c = images.unfold(axis, 6, 4).tensor_split(3, -1)
    return a - b, b, c - b
