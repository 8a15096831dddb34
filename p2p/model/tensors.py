"""Converts between images and the networks' inputs and outputs.

Images are uint8 or uint16, the networks' values float in [-1, 1]: v / 127.5 - 1, or v / 32767.5 - 1. Label maps can be
one-hot class planes of 0 and 1 instead (`input_encoding="onehot:N"`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from p2p.model.config import ModelConfig
from p2p.storage.pixels import Pixels

_HALF_RANGES = {torch.uint8: 127.5, torch.uint16: 32767.5}
_UINT16_LEVELS = 257.0  # of uint16 to one of uint8: 255 * 257 = 65535


def as_tensor(images: Pixels) -> Tensor:
    """(B, H, W, C) array -> the same as a tensor, sharing memory unless the array is read-only."""
    return torch.from_numpy(np.require(images, requirements=("C", "W")))


def to_model_range(images: Pixels | Tensor) -> Tensor:
    """(B, H, W, C) uint8 or uint16 -> (B, C, H, W) float32 in [-1, 1], on the same device, in channels-last layout."""
    if isinstance(images, np.ndarray):
        images = as_tensor(images)
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(_HALF_RANGES[images.dtype]).sub_(1.0)


def to_pixels(images: Tensor, bits: int = 8) -> Tensor:
    """(B, C, H, W) float in [-1, 1] -> (B, H, W, C) uint8 (`bits` 8) or uint16 (16), rounded and clamped."""
    dtype = torch.uint16 if bits == 16 else torch.uint8
    half = _HALF_RANGES[dtype]
    scaled = images.to(torch.float32).add(1.0).mul_(half).round_().clamp_(0.0, 2 * half)
    return scaled.to(dtype).permute(0, 2, 3, 1).contiguous()


def to_levels(images: Tensor) -> Tensor:
    """Images of any depth on the 0..255 scale: uint16 as float64 / 257, others as they are."""
    return images.to(torch.float64) / _UINT16_LEVELS if images.dtype == torch.uint16 else images


def nearest_colour(images: Tensor, colours: Tensor) -> Tensor:
    """(B, H, W, 3) on the 0..255 scale and (K, 3) float32 -> (B, H, W) int64, the nearest by RGB distance.

    The first on a tie.
    """
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 is too coarse for similar colours
        # |x - p|² without |x|², which is the same for every p; whole numbers below 2**24, so float32 is exact.
        return (colours.square().sum(dim=1) - 2 * images.to(torch.float32) @ colours.T).argmin(dim=3)


class InputEncoder:
    """Converts images to the inputs of a model's generator, on one device.

    Example:
        >>> from p2p import ModelConfig
        >>> encode = InputEncoder(ModelConfig())
        >>> encode(np.array([[[[0, 255, 51]]]], np.uint8)).flatten().tolist()
        [-1.0, 1.0, -0.6000000238418579]

    """

    def __init__(self, config: ModelConfig, device: str | torch.device = "cpu") -> None:
        self._planes = config.input_channels
        self._colours: Tensor | None = None
        if config.input_palette is not None:
            self._colours = torch.tensor(config.input_palette, dtype=torch.float32, device=device)
            self._classes = torch.arange(self._planes, device=device)

    def __call__(self, images: Pixels | Tensor) -> Tensor:
        """(B, H, W, C) uint8 or uint16 -> (B, C_in, H, W) float32, in channels-last layout.

        Colour: in [-1, 1]. One-hot: plane k is 1 where palette colour k is the nearest, 0 elsewhere.
        """
        if self._colours is None:
            return to_model_range(images)
        if isinstance(images, np.ndarray):
            images = as_tensor(images)
        classes = nearest_colour(to_levels(images), self._colours)
        return (classes.unsqueeze(3) == self._classes).to(torch.float32).permute(0, 3, 1, 2)
