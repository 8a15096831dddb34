"""From an input's bytes to the pixels that are translated, and from the output's pixels to bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2p.storage.images import decode, encode, split_halves
from p2p.storage.pixels import Array
from p2p.translation.config import TranslateConfig


@dataclass(frozen=True)
class Codec:
    """Bytes to pixels and back, as `config` asks: which half, which limit, which format."""

    config: TranslateConfig

    def decode(self, data: bytes) -> Array:
        """Encoded bytes -> (H, W, 3) uint8 of the chosen side. Raises BadInputError."""
        image = decode(data, max_pixels=self.config.max_pixels)
        if self.config.side != "whole":
            left, right = split_halves(image)
            image = left if self.config.side == "left" else right
        return image

    def encode(self, image: Array) -> bytes:
        """(H, W, 1 or 3) uint8 -> encoded bytes. Raises BadInputError for an image too long for the format."""
        if image.shape[2] == 1:
            image = np.repeat(image, 3, axis=2)
        return encode(image, self.config.image_format, self.config.quality, self.config.png_level)
