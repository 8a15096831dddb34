"""Whether both sides of a pair can show the same place, by their sizes."""

from __future__ import annotations

from p2p.errors import BadInputError
from p2p.storage.pixels import Pixels

_MAX_ASPECT_DIFFERENCE = 0.01  # relative, of two sides that still show the same place


def check_sizes(pair_id: str, a: Pixels, b: Pixels, load_size: int, *, scale: str = "", also: str = "") -> None:
    """Raise BadInputError unless A and B, (H, W, C) each, are of one size; of one shape, if they are to be scaled.

    Args:
        pair_id: of the pair, for the message.
        a: one side.
        b: the other.
        load_size: side in pixels to which both will be scaled; 0 keeps their sizes.
        scale: how to have both scaled, for the message.
        also: what else would do, for its end.

    Example:
        >>> import numpy as np
        >>> check_sizes("x", np.zeros((4, 4, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), 16)

    """
    if a.shape[:2] == b.shape[:2]:
        return
    aspect_a, aspect_b = (side.shape[1] / side.shape[0] for side in (a, b))
    same_shape = abs(aspect_a / aspect_b - 1) <= _MAX_ASPECT_DIFFERENCE
    if same_shape and load_size:
        return
    size_a, size_b = (f"{side.shape[1]}x{side.shape[0]}" for side in (a, b))
    way_out = scale if same_shape else "their shapes differ, so correct one of them"
    raise BadInputError("MismatchedSizes", f"pair {pair_id!r}: a is {size_a}, b is {size_b}; {way_out}{also}")
