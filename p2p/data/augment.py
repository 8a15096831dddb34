"""From a decoded pair to input and target: crops and mirrors that both sides share, by (seed, epoch, pair id) alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2p.data.pairs import Formats, Pair
from p2p.errors import BadInputError
from p2p.storage.pixels import RGB, Pixels

_FEW_CHANNELS = 8


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


def _copy(window: Pixels, target: Pixels) -> None:
    if window.strides[1] > 0 or window.shape[2] > _FEW_CHANNELS:
        target[...] = window
        return
    for channel in range(window.shape[2]):  # numpy copies RGB pixels that run backwards five times as slowly
        target[:, :, channel] = window[:, :, channel]


def _draw(height: int, width: int, crop_size: int, text: str, flip: bool) -> tuple[int, int, bool]:
    """Top and left of a window, and whether to mirror it, by a hash of `text`."""
    digest = hashlib.blake2b(text.encode(), digest_size=17).digest()
    top = int.from_bytes(digest[:8], "big") % (height - crop_size + 1)
    left = int.from_bytes(digest[8:16], "big") % (width - crop_size + 1)
    return top, left, flip and bool(digest[16] & 1)


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
    top, left, mirror = _draw(height, width, crop_size, f"{seed}/{epoch}/{pair_id}", flip)
    return _crop(image_a, top, left, crop_size, mirror), _crop(image_b, top, left, crop_size, mirror)


def centre_crop(image_a: Pixels, image_b: Pixels, crop_size: int) -> tuple[Pixels, Pixels]:
    """The middle (crop_size, crop_size, C) window of both images; raises BadInputError as `jitter` does."""
    _check(image_a, image_b, crop_size)
    height, width = image_a.shape[:2]
    top, left = (height - crop_size) // 2, (width - crop_size) // 2
    return _crop(image_a, top, left, crop_size, False), _crop(image_b, top, left, crop_size, False)


@dataclass(frozen=True)
class CropSettings:
    """How a decoded pair becomes input and target."""

    crop_size: int
    seed: int = 0
    flip: bool = False
    swap: bool = False
    """True puts B first: the input is B, the target A (direction BtoA)."""
    formats: Formats = (RGB, RGB)
    """Channels and depth in which A and B are read; one depth for both."""

    @property
    def pair_bytes(self) -> int:
        """Of one training pair in memory."""
        return self.crop_size**2 * self.pixel_bytes

    @property
    def pair_values(self) -> int:
        """Numbers in the row that `crop` makes of a pair."""
        return self.crop_size**2 * sum(wanted.channels for wanted in self.formats)

    @property
    def pixel_bytes(self) -> int:
        """Of one pixel of A and of B."""
        return sum(wanted.bytes_per_pixel for wanted in self.formats)

    def window(self, height: int, width: int, epoch: int, pair_id: str) -> tuple[int, int, bool]:
        """Top and left of what `crop` takes of a training pair of that size, and whether it is mirrored."""
        return _draw(height, width, self.crop_size, f"{self.seed}/{epoch}/{pair_id}", self.flip)

    def check(self, pair: Pair) -> None:
        """Raise BadInputError that names the pair, if its sides differ in size or it is too small."""
        try:
            _check(pair["a"], pair["b"], self.crop_size)
        except BadInputError as error:
            raise BadInputError(error.kind, f"pair {pair['pair_id']!r}: {error}") from None

    def crop(self, pair: Pair, epoch: int = 0, out: Pixels | None = None) -> Pixels:
        """Input and target of a pair, joined in a row of values; in epoch 0 (validation) the middle of both.

        Written to `out`, which is contiguous, if there is one.

        Raises BadInputError that names the pair, if it is too small.
        """
        image, target = (pair["b"], pair["a"]) if self.swap else (pair["a"], pair["b"])
        size, pair_id = self.crop_size, pair["pair_id"]
        try:
            if epoch:
                sides = jitter(image, target, size, seed=self.seed, epoch=epoch, pair_id=pair_id, flip=self.flip)
            else:
                sides = centre_crop(image, target, size)
        except BadInputError as error:
            raise BadInputError(error.kind, f"pair {pair_id!r}: {error}") from None
        row: Pixels = np.empty(self.pair_values, image.dtype) if out is None else out
        start = 0
        for side in sides:
            _copy(side, row[start : start + side.size].reshape(side.shape))
            start += side.size
        return row

    def sides(self, batch: Any) -> tuple[Any, Any]:
        """(N, values) array or tensor of pairs -> inputs (N, crop, crop, C) and targets (N, crop, crop, C'), views."""
        channels = [wanted.channels for wanted in self.formats][:: -1 if self.swap else 1]
        size = self.crop_size
        inputs = size * size * channels[0]
        shapes = [(len(batch), size, size, count) for count in channels]
        return batch[:, :inputs].reshape(shapes[0]), batch[:, inputs:].reshape(shapes[1])
