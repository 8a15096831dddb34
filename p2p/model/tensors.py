"""The one owner of the value range: images are uint8 outside, float in [-1, 1] inside the networks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_HALF_RANGE = 127.5


def as_tensor(images: npt.NDArray[np.uint8]) -> Tensor:
    """(B, H, W, C) uint8 array -> the same as a tensor, sharing memory where torch may: read-only arrays are copied."""
    return torch.from_numpy(np.require(images, requirements=("C", "W")))


def to_model_range(images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-1, 1], on the device of `images`, laid out channels-last."""
    if isinstance(images, np.ndarray):
        images = as_tensor(images)
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(_HALF_RANGE).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """(B, C, H, W) float in [-1, 1] -> (B, H, W, C) uint8, rounded; values outside the range are clamped."""
    scaled = images.to(torch.float32).add(1.0).mul_(_HALF_RANGE).round_().clamp_(0.0, 255.0)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
