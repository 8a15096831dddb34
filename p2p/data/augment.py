"""Crops and mirrors that both sides of a pair share, decided by (seed, epoch, pair id) alone."""

from __future__ import annotations

import hashlib

import numpy as np

from p2p.errors import BadInputError
from p2p.storage.images import Pixels


def _check(image_a: Pixels, image_b: Pixels, crop_size: int) -> None:
    height, width = image_a.shape[:2]
    if image_b.shape[:2] != (height, width):
        raise BadInputError(
            "SizeMismatch", f"a is {width}x{height}, b is {image_b.shape[1]}x{image_b.shape[0]}; both must be equal"
        )
    if min(height, width) < crop_size:
        raise BadInputError("TooSmall", f"the pair is {width}x{height}, smaller than crop_size {crop_size}")


def _crop(image: Pixels, top: int, left: int, crop_size: int, mirror: bool) -> Pixels:
    window = image[top : top + crop_size, left : left + crop_size]
    return window[:, ::-1] if mirror else window


def jitter(
    image_a: Pixels, image_b: Pixels, crop_size: int, *, seed: int, epoch: int, pair_id: str, flip: bool = True
) -> tuple[Pixels, Pixels]:
    """Crop both (H, W, C) images to the same random window and, with `flip`, mirror both in half of the cases.

    The choice is a hash of (seed, epoch, pair_id), so it is the same on any number of workers and after any restart.

    Returns:
        Two (crop_size, crop_size, C) views.

    Raises:
        BadInputError: the sides differ in size, or are smaller than the crop.

    """
    _check(image_a, image_b, crop_size)
    height, width = image_a.shape[:2]
    digest = hashlib.blake2b(f"{seed}/{epoch}/{pair_id}".encode(), digest_size=17).digest()
    top = int.from_bytes(digest[:8], "big") % (height - crop_size + 1)
    left = int.from_bytes(digest[8:16], "big") % (width - crop_size + 1)
    mirror = flip and bool(digest[16] & 1)
    return _crop(image_a, top, left, crop_size, mirror), _crop(image_b, top, left, crop_size, mirror)


def centre_crop(image_a: Pixels, image_b: Pixels, crop_size: int) -> tuple[Pixels, Pixels]:
    """The middle (crop_size, crop_size, C) window of both images; raises BadInputError as `jitter` does."""
    _check(image_a, image_b, crop_size)
    height, width = image_a.shape[:2]
    top, left = (height - crop_size) // 2, (width - crop_size) // 2
    return _crop(image_a, top, left, crop_size, False), _crop(image_b, top, left, crop_size, False)


def join_sides(image: Pixels, target: Pixels) -> Pixels:
    """Two images of one depth, (H, W, C) and (H, W, C') -> one contiguous row of all their values."""
    joined = np.empty(image.size + target.size, image.dtype)
    joined[: image.size].reshape(image.shape)[...] = image
    joined[image.size :].reshape(target.shape)[...] = target
    return joined
