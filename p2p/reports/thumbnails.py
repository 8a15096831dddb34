"""Images made small enough that a page with dozens of them still opens at once."""

from __future__ import annotations

from p2p.reports.sheets import as_rgb
from p2p.storage.images import Array, Pixels, resize

LONGEST_SIDE = 320
"""Pixels. A page shows an image at this size or smaller."""


def thumbnail(image: Pixels, longest: int = LONGEST_SIDE) -> Array:
    """(H, W) or (H, W, C) uint8 or uint16 -> (h, w, 3) uint8 of the same shape, no side above `longest` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    return resize(as_rgb(image), max(1, round(height * scale)), max(1, round(width * scale)))
