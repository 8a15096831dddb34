"""Images made small enough that a page with dozens of them still opens at once."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from p2p.reports.page import data_uri
from p2p.reports.sheets import as_rgb
from p2p.storage.images import resize
from p2p.storage.pixels import Array, Pixels

MAX_SIDE = 320
"""Pixels. A page shows an image at this size or smaller."""
_MIN_SMOOTH = 128


class Picture(NamedTuple):
    """A labelled image for a page; a `small` one is to be enlarged with its pixels visible."""

    label: str
    uri: Markup
    small: bool


def shrink(image: Array, max_side: int) -> Array:
    """(H, W, 3) -> (h, w, 3) of the same shape, no side above `max_side` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def thumbnail(image: Pixels) -> Array:
    """(H, W) or (H, W, C) uint8 or uint16 -> (h, w, 3) uint8 of the same shape, no side above `MAX_SIDE`."""
    return shrink(as_rgb(image), MAX_SIDE)


def show(label: str, image: Pixels, quality: int = 85) -> Picture:
    """A picture for a page, as a JPEG of that quality, 1..100."""
    return Picture(label, data_uri(thumbnail(image), quality), max(image.shape[:2]) < _MIN_SMOOTH)
